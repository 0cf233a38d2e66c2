"""Thick-restart Lanczos with locking, driven from the host.

The basis holds, from row 0 on, the locked pairs, then the active block: Ritz vectors kept at the
last restart (their projected matrix is diagonal with an arrow) followed by Lanczos vectors. The
projected matrix is solved in float64.

A single start vector sees one copy of a multiple eigenvalue. So once the wanted pairs have
converged they are locked, and a sweep from a fresh random vector orthogonal to them looks for what
was missed, until the Chebyshev bound says that it would have been seen.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax._trees import Tree
from flatjax.linalg.krylov import _ritz as ritz
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.vectors import _basis as bases
from flatjax.operators._base import Operator

# A random vector's component along a given direction is below 1/(100 sqrt(n)) in one case of 100.
_MISS = 100.0


class Solution(NamedTuple):
    """What `solve` hands to the certificate.

    Attributes:
      values: ``(k,)`` Ritz values, descending, float64 on the host.
      vectors: the Ritz vectors, a tree with leading axis k.
      residuals: ``(k,)``, the estimates of their residual norms.
      norm: the largest Ritz value in magnitude, of all computed.
      num_products: the products spent.
      complete: whether a sweep has shown that no wanted pair is missing; ``None`` without one.
    """

    values: np.ndarray
    vectors: Tree
    residuals: np.ndarray
    norm: float
    num_products: int
    complete: bool | None = None


@functools.partial(jax.jit, donate_argnums=0)
def _rotate(
    state: krylov.Krylov, coefficients: jax.Array, kept: jax.Array, goes_on: jax.Array
) -> krylov.Krylov:
    """Replace the basis by ``kept`` combinations of its rows, followed by ``state.vector``.

    Where the run does not go on from that vector, it is zero. Columns of coefficients beyond
    ``kept`` are zero: one compiled program serves every restart.
    """
    rows = bases.combine(state.basis, coefficients)

    def leaf(b, new):
        # Rows beyond must be zero, or they would enter the next Gram-Schmidt pass.
        return jax.lax.dynamic_update_slice_in_dim(jnp.zeros_like(b), new, 0, 0)

    basis = jax.tree.map(leaf, state.basis, rows)
    vector = jax.tree.map(lambda x: jnp.where(goes_on, x, jnp.zeros_like(x)), state.vector)
    return state._replace(
        basis=bases.set_row(basis, kept, vector),
        vector=vector,
        alphas=jnp.zeros_like(state.alphas),
        betas=jnp.zeros_like(state.betas),
        breakdown=jnp.zeros_like(state.breakdown),
        step=kept,
    )


_combine = jax.jit(bases.combine)


class _Run:
    """The host's view of a run: the projected matrix and what is locked."""

    def __init__(self, op: Operator, state: krylov.Krylov, w: Tree, k: int):
        self.op, self.state, self.w = op, state, w
        self.capacity = state.alphas.shape[0]
        # What is kept is also what the rotation needs beside the basis: k + 0.15 m vectors.
        self.spare = max(2, int(0.15 * self.capacity))
        self.most_kept = min(self.capacity, k + self.spare)
        self.matrix = np.zeros((self.capacity, self.capacity))
        self.beta = 0.0
        self.filled = self.locked = self.swept = self.products = 0
        self.locked_values = np.zeros(0)
        self.locked_residuals = np.zeros(0)
        self.norm = 0.0

    def advance(self, steps: int) -> None:
        first = self.filled
        self.state = krylov.run(self.op, self.state, steps, self.w)
        self.w = None
        self.products += steps
        self.filled += steps
        self.swept += steps
        alphas, betas, scale = ritz.to_host((self.state.alphas, self.state.betas, self.state.scale))
        for i in range(first, self.filled):
            self.matrix[i, i] = alphas[i] * scale
            if i + 1 < self.capacity:
                self.matrix[i, i + 1] = self.matrix[i + 1, i] = betas[i] * scale
        self.beta = betas[self.filled - 1] * scale

    def solve(self) -> None:
        active = slice(self.locked, self.filled)
        self.values, self.coefficients = ritz.eigh(self.matrix[active, active])
        self.residuals = np.abs(self.beta * self.coefficients[-1])
        self.norm = np.maximum(self.norm, np.abs(self.values).max())  # NaN stays

    def candidates(self) -> tuple[np.ndarray, np.ndarray]:
        """All Ritz values, locked ones first, and the estimates of their residuals."""
        return (
            np.concatenate([self.locked_values, self.values]),
            np.concatenate([self.locked_residuals, self.residuals]),
        )

    def columns(self, index: np.ndarray) -> np.ndarray:
        """The coefficients of candidates over the rows of the basis, in columns."""
        out = np.zeros((self.capacity, len(index)))
        for column, i in enumerate(index):
            if i < self.locked:
                out[i, column] = 1.0
            else:
                out[self.locked : self.filled, column] = self.coefficients[:, i - self.locked]
        return out

    def _replace_basis(self, columns: np.ndarray, *, goes_on: bool) -> None:
        kept = columns.shape[1]
        padded = np.pad(columns, ((0, 0), (0, self.most_kept - kept)))
        padded = padded.astype(self.state.alphas.dtype)
        self.state = _rotate(self.state, padded, np.int32(kept), np.bool_(goes_on))
        self.matrix[:] = 0
        self.filled = kept

    def restart(self, keep: np.ndarray) -> None:
        """Keep the locked pairs, these active pairs, and the residual vector."""
        locked = np.arange(self.locked)
        columns = self.columns(np.concatenate([locked, keep + self.locked]))
        self._replace_basis(columns, goes_on=True)
        i = np.arange(self.locked, self.filled)
        self.matrix[i, i] = self.values[keep]
        arrow = self.beta * self.coefficients[-1, keep]
        if self.filled < self.capacity:
            self.matrix[self.filled, i] = self.matrix[i, self.filled] = arrow

    def lock(self, index: np.ndarray) -> None:
        """Lock these candidates alone and go on from a random vector orthogonal to them."""
        values, residuals = self.candidates()
        self._replace_basis(self.columns(index), goes_on=False)
        self.locked_values, self.locked_residuals = values[index], residuals[index]
        self.locked, self.swept = len(index), 0
        self.state = krylov.inject(self.state, np.int32(self.filled))


def solve(
    op: Operator,
    k: int,
    which: str,
    state: krylov.Krylov,
    w: Tree,
    tol: float,
    budget: int,
    verify: bool,
    given: bool = False,
) -> Solution:
    """The ``k`` wanted Ritz pairs within a budget of products.

    Args:
      op: the operator.
      k: the number of pairs.
      which: one of `ritz.WHICH`.
      state: a fresh Krylov state; its capacity is the memory bound.
      w: the product of the operator with the start vector.
      tol: the tolerance on the residual relative to the value.
      budget: products that may be spent.
      verify: whether to sweep for missed eigenvalues.
      given: whether the start was: by a symmetry it may be blind to any value, a random one is not.

    Returns:
      A `Solution`.
    """
    run = _Run(op, state, w, k)
    scalar = state.alphas.dtype
    capacity, size = run.capacity, op.size
    interval = 1 if op.host_driven else krylov.CHECK_EVERY
    sweeps, complete = 0, None
    while True:
        room = min(capacity, size) - run.filled
        steps = min(interval, room, max(budget - run.products, 1))
        run.advance(steps)
        run.solve()
        if not np.isfinite(run.norm):
            return _not_finite(run, k)
        values, residuals = run.candidates()
        order = np.argsort(values, stable=True)
        index = order[ritz.wanted(values[order], k, which)]
        small = ritz.rounding(run.norm, scalar)
        good = residuals[index] <= np.maximum(tol * np.abs(values[index]), small)
        if run.filled >= size:
            complete = True
            break
        if run.products >= budget and len(index) == k:
            break
        if len(index) == k and good.all():
            if not verify or not (given or _needs_sweep(k, which)) or sweeps > k:
                break
            if run.locked == 0 or _improves(values, residuals, index, run.locked, small):
                run.lock(index)
                sweeps += 1
                continue
            if _swept(run, values[index], k, which, tol, small, size):
                complete = True
                break
        if run.filled == capacity:
            keep = _keep(run, k, which)
            run.restart(keep)
    index = ritz.descending(values, index)
    vectors = _combine(run.state.basis, run.columns(index).astype(scalar))
    return Solution(values[index], vectors, residuals[index], run.norm, run.products, complete)


def _not_finite(run: _Run, k: int) -> Solution:
    """NaN in the place of every pair, after a product that was not finite."""
    nothing = np.full(k, np.nan)
    columns = np.full((run.capacity, k), np.nan, run.state.alphas.dtype)
    vectors = _combine(run.state.basis, columns)
    return Solution(nothing, vectors, nothing, np.nan, run.products)


def _needs_sweep(k: int, which: str) -> bool:
    """A single wanted value at an end is right whatever its multiplicity."""
    return k >= (3 if which == "BE" else 2)


def _keep(run: _Run, k: int, which: str) -> np.ndarray:
    """The active Ritz pairs to keep at a restart: the wanted ones and a few beyond."""
    active = len(run.values)
    count = run.spare if run.locked else k + run.spare
    count = max(1, min(count, active - 1, (active + k) // 2))
    return np.sort(ritz.wanted(run.values, count, which))


def _improves(values, residuals, index, locked: int, small: float) -> bool:
    """Whether a wanted pair of the active block is better than the locked one it displaces."""
    fresh = index[index >= locked]
    if not len(fresh):
        return False
    displaced = np.setdiff1d(np.arange(locked), index)
    # Equal within their residuals they are copies of one eigenvalue, and nothing was missed.
    margin = np.maximum(residuals[fresh].max(), residuals[displaced].max()) + small
    apart = np.abs(values[fresh][:, None] - values[displaced][None, :])
    return bool((apart.max(axis=1) > margin).any())


def _swept(run: _Run, wanted, k: int, which: str, tol: float, small: float, size: int) -> bool:
    """Whether a missed eigenvalue beyond the wanted ones would have shown by now."""
    low, high = run.values[0], run.values[-1]
    spread = high - low
    ends = []
    if which in ("LA", "BE"):
        top = wanted[: (k + 1) // 2] if which == "BE" else wanted
        ends.append((top.min() - high, run.residuals[-1], high))
    if which == "SA" or (which == "BE" and k >= 4):
        bottom = wanted[(k + 1) // 2 :] if which == "BE" else wanted
        ends.append((low - bottom.max(), run.residuals[0], low))
    if which == "LM":
        edge = np.abs(wanted).min()
        ends.append((edge - high, run.residuals[-1], high))
        ends.append((edge + low, run.residuals[0], low))
    return all(
        residual <= max(tol * abs(value), small) or _would_show(gap, spread, run.swept, size)
        for gap, residual, value in ends
    )


def _would_show(gap: float, spread: float, steps: int, size: int) -> bool:
    r"""Whether ``steps`` Lanczos steps from a random vector separate an eigenvalue by ``gap``.

    The component along it, at least :math:`1/(100\sqrt n)`, grows by the Chebyshev polynomial
    :math:`T_s(1 + 2\,\mathrm{gap}/\mathrm{spread})` relative to the rest (Saad 1980).
    """
    if gap <= 0 or steps < 2:
        return False
    growth = math.acosh(1 + 2 * gap / spread) if spread > 0 else math.inf
    return (steps - 1) * growth >= math.log(2 * _MISS * math.sqrt(size))
