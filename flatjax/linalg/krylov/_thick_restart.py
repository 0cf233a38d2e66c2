"""Thick-restart Lanczos, driven from the host, and the search for what it has missed.

The basis holds, from row 0 on, the frozen rows, then the active ones: Ritz vectors kept at the last
restart (their projected matrix is diagonal with an arrow) followed by Lanczos vectors. The
projected matrix is solved in float64. The first run is active alone, until the wanted pairs have
converged. Its rows are then frozen, and a sweep from a random vector orthogonal to all of them
looks for what was missed (`Search`); what it finds is frozen too, and another sweep follows.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _loops as loops
from flatjax._trees import Tree
from flatjax.linalg.krylov import _certificates as certificates
from flatjax.linalg.krylov import _ritz as ritz
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.krylov._search import Search, least_steps, thresholds
from flatjax.linalg.vectors import _basis as bases
from flatjax.operators._base import Operator


@functools.partial(jax.jit, donate_argnums=0)
def _rotate(
    state: krylov.Krylov,
    coefficients: jax.Array,
    first: jax.Array,
    filled: jax.Array,
    goes_on: jax.Array,
) -> krylov.Krylov:
    """Replace the rows from ``first`` on by combinations of all, followed by ``state.vector``.

    Where the run does not go on from that vector, it is zero. The vector is put at row ``filled``;
    columns of coefficients that reach beyond are zero: one compiled program serves every restart.
    """
    rows = bases.combine(state.basis, coefficients)

    def leaf(b, new):
        # Rows beyond must be zero, or they would enter the next Gram-Schmidt pass.
        before = jnp.arange(b.shape[0], dtype=first.dtype) < first
        before = before.reshape(-1, *(1,) * (b.ndim - 1))
        b = jnp.where(before, b, jnp.zeros_like(b))
        return jax.lax.dynamic_update_slice_in_dim(b, new, first, 0)

    basis = jax.tree.map(leaf, state.basis, rows)
    vector = jax.tree.map(lambda x: jnp.where(goes_on, x, jnp.zeros_like(x)), state.vector)
    return state._replace(
        basis=bases.set_row(basis, filled, vector),
        vector=vector,
        alphas=jnp.zeros_like(state.alphas),
        betas=jnp.zeros_like(state.betas),
        breakdown=jnp.zeros_like(state.breakdown),
        step=filled,
    )


# Taken for the rate before there is one: two powers of ten per step.
_FASTEST = 2 * math.log(10)

_combine = jax.jit(bases.combine)
_row = jax.jit(bases.row)


class _Run:
    """The host's view of a run: the projected matrix and what is frozen."""

    def __init__(self, op: Operator, state: krylov.Krylov, w: Tree, k: int):
        self.op, self.state, self.w = op, state, w
        self.product = loops.product(op)
        self.on_device = loops.on_device() and not op.host_driven
        self.capacity = state.alphas.shape[0]
        # What is kept is also what the rotation needs beside the basis: k + 0.15 m vectors.
        self.spare = max(2, int(0.15 * self.capacity))
        self.most_kept = min(self.capacity, k + self.spare)
        self.matrix = np.zeros((self.capacity, self.capacity))
        self.beta, self.norm = 0.0, 0.0
        self.filled = self.frozen = self.products = 0
        self.frozen_values = np.zeros(0)
        self.frozen_residuals = np.zeros(0)
        self.frozen_coefficients = np.zeros((0, 0))
        self.frozen_swept = np.zeros(0, bool)
        self.search: Search | None = None

    @property
    def active(self) -> np.ndarray:
        """The projected matrix of the active rows."""
        return self.matrix[self.frozen : self.filled, self.frozen : self.filled]

    def advance(self, steps: int) -> None:
        first = self.filled
        # Without the first product `run` checks its structure: as long as a short product.
        w = self.w if self.w is not None or self.on_device else self.product(self.state.vector)
        self.state = krylov.run(self.op, self.state, steps, w)
        self.w = None
        self.products += steps
        self.filled += steps
        alphas, betas, scale = ritz.to_host((self.state.alphas, self.state.betas, self.state.scale))
        for i in range(first, self.filled):
            self.matrix[i, i] = alphas[i] * scale
            if i + 1 < self.capacity:
                self.matrix[i, i + 1] = self.matrix[i + 1, i] = betas[i] * scale
        self.beta = betas[self.filled - 1] * scale

    def solve(self) -> None:
        self.values, self.coefficients = ritz.eigh(self.active)
        self.residuals = np.abs(self.beta * self.coefficients[-1])
        self.norm = np.maximum(self.norm, np.abs(self.values).max())  # NaN stays

    def candidates(self) -> tuple[np.ndarray, np.ndarray]:
        """All Ritz values, frozen ones first, and the estimates of their residuals."""
        return (
            np.concatenate([self.frozen_values, self.values]),
            np.concatenate([self.frozen_residuals, self.residuals]),
        )

    @property
    def swept(self) -> np.ndarray:
        """Which candidates a sweep has found."""
        active = np.full(len(self.values), self.search is not None)
        return np.concatenate([self.frozen_swept, active])

    def columns(self, index: np.ndarray) -> np.ndarray:
        """The coefficients of candidates over the rows of the basis, in columns."""
        out = np.zeros((self.capacity, len(index)))
        for column, i in enumerate(index):
            if i < self.frozen:
                out[: self.frozen, column] = self.frozen_coefficients[:, i]
            else:
                out[self.frozen : self.filled, column] = self.coefficients[:, i - self.frozen]
        return out

    def departure(self, index: np.ndarray) -> float:
        """What a product makes of these pairs of the first run, less what the run says of it."""
        dtype, scale = self.state.alphas.dtype, float(self.state.scale)
        columns, weights = self.columns(index), certificates.mixture(len(index))
        coupling = self.beta * (self.coefficients[-1, index] @ weights)
        self.products += 1
        found = certificates.departure(
            self.op,
            self.state.basis,
            np.asarray(columns @ weights, dtype),
            np.asarray(columns @ (weights * self.values[index]) / scale, dtype),
            np.asarray(coupling / scale, dtype),
            self.state.vector,
            self.state.scale,
        )
        return float(found)

    def _rotate(self, columns: np.ndarray, first: int, *, goes_on: bool) -> None:
        """Put these combinations of rows into the rows from ``first`` on."""
        self.filled = first + columns.shape[1]
        padded = np.pad(columns, ((0, 0), (0, self.most_kept - columns.shape[1])))
        self.state = _rotate(
            self.state,
            padded.astype(self.state.alphas.dtype),
            np.int32(first),
            np.int32(self.filled),
            np.bool_(goes_on),
        )
        self.matrix[:] = 0

    def restart(self, keep: np.ndarray) -> None:
        """Keep the frozen rows, these active pairs, and the residual vector."""
        if self.search is not None:
            self.search.restarted(self.active, self.beta, self.coefficients[:, keep])
        # Written in one slice, which must end inside of the buffer: with rows before, if need be.
        first = min(self.frozen, self.capacity - self.most_kept)
        same = np.eye(self.capacity)[:, first : self.frozen]
        arrow = self.beta * self.coefficients[-1, keep]
        columns = np.concatenate([same, self.columns(keep + self.frozen)], axis=1)
        self._rotate(columns, first, goes_on=True)
        i = np.arange(self.frozen, self.filled)
        self.matrix[i, i] = self.values[keep]
        if self.filled < self.capacity:
            self.matrix[self.filled, i] = self.matrix[i, self.filled] = arrow

    def sweep(self, search: Search, index: np.ndarray | None) -> None:
        """Freeze all rows, or these candidates alone, and go on from a random vector."""
        (values, residuals), swept = self.candidates(), self.swept
        if index is None:
            whole = np.zeros((self.filled, self.filled))
            whole[: self.frozen, : self.frozen] = self.frozen_coefficients
            whole[self.frozen :, self.frozen :] = self.coefficients
        else:
            self._rotate(self.columns(index), 0, goes_on=False)
            values, residuals, swept = values[index], residuals[index], swept[index]
            whole = np.eye(len(index))
        self.frozen, self.frozen_coefficients = self.filled, whole
        self.frozen_values, self.frozen_residuals = values, residuals
        self.frozen_swept, self.search = swept, search
        # The next vector of the run may stand where the random one is to be, and is projected out
        # of it: nothing that was missed has a part in either.
        self.state = krylov.inject(self.state, np.int32(self.filled))


class _Pace:
    """How many steps to take before the next look at the projected problem.

    A look costs what a short product does. Half of the steps that the last rate says are left end
    before the last one, so that no step is taken in vain.

    Attributes:
      steps: the steps to take.
    """

    def __init__(self, steps: int, fixed: bool):
        self.steps, self._fixed = steps, fixed
        self._last: float | None = None

    def look(self, left: float, taken: int) -> None:
        """Take in how far it still is, a logarithm, after ``taken`` more steps."""
        if self._fixed:
            return
        rate = _FASTEST
        if self._last is not None and math.isfinite(self._last - left):
            rate = max((self._last - left) / taken, _FASTEST / 20)
        self._last = left
        half = int(left / rate / 2) if math.isfinite(left) else 1
        self.steps = max(1, min(krylov.CHECK_EVERY, half))


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
) -> ritz.RitzPairs:
    """The ``k`` wanted Ritz pairs within a budget of products.

    Args:
      op: the operator.
      k: the number of pairs.
      which: one of `ritz.WHICH`.
      state: a fresh Krylov state; its capacity is the memory bound.
      w: the product of the operator with the start vector.
      tol: the tolerance on the residual relative to the value.
      budget: products that may be spent, one of them for the certificate.
      verify: whether to search for missed eigenvalues.
      given: whether the start was: by a symmetry it may be blind to any value, a random one is not.

    Returns:
      The pairs and their certificate.
    """
    run, size = _Run(op, state, w, k), op.size
    dtype = state.alphas.dtype
    fixed = run.on_device  # every number of steps is a program of its own there
    first = krylov.CHECK_EVERY if fixed else k + 1
    pace, limit, alone = _Pace(first, fixed), budget - 1, 0
    held, sweeps, noise, complete = np.zeros(0, int), 0, None, None
    while True:
        room = min(run.capacity, size) - run.filled
        steps = min(pace.steps, room, max(limit - run.products, 1))
        run.advance(steps)
        run.solve()
        if not np.isfinite(run.norm):
            return _not_finite(run, k)
        values, residuals = run.candidates()
        small = ritz.rounding(run.norm, dtype)
        bound = np.maximum(tol * np.abs(values), small)
        index = ritz.best(values, k, which)
        if run.filled >= size:
            complete = True
            break
        enough = len(index) == k
        done = enough and bool((residuals[index] <= bound[index]).all())
        if run.search is None:
            left = _log_ratio(residuals[index], bound[index]) if enough else math.inf
            begins = done
        else:
            left = run.search.left(run.active, run.beta, run.values, small)
            begins = done and _improves(values, residuals, index, held, run.frozen, small)
            if not begins and (left <= 0 or (run.products >= limit and left < math.inf)):
                # Nothing stands beyond what is held: what has not converged is not wanted.
                complete = True if left <= 0 else None
                settled = np.flatnonzero(
                    (residuals <= bound) | (np.arange(len(values)) < run.frozen)
                )
                index = settled[ritz.best(values[settled], k, which)]
                break
        if run.products >= limit and enough:
            break
        if begins:
            ends = thresholds(values[index], which, bound[index], given)
            # A sweep takes at most as many products as the first run, or 8 for each pair; what it
            # finds costs one each.
            alone = run.products if run.search is None else alone
            last = min(budget - k, run.products + max(alone, 8 * (k + 1)))
            nothing = not verify or np.isinf(ends).all()
            if nothing or sweeps > k or run.products + 1 >= last:
                break
            if run.filled + 1 < size:
                noise = run.departure(index) if noise is None else noise
                keep = _compressed(run, index, ends, k, which)
                held = index if keep is None else np.flatnonzero(np.isin(keep, index))
                run.sweep(Search(*ends, size), keep)
                limit, sweeps, pace = last, sweeps + 1, _Pace(2 if not fixed else first, fixed)
                continue
        pace.look(left, steps)
        if run.filled == run.capacity:
            run.restart(_keep(run, k, which))
    noise = run.departure(index) if noise is None else noise
    return _certified(run, ritz.descending(values, index), noise, complete)


def _log_ratio(residuals: np.ndarray, bound: np.ndarray) -> float:
    """How far the worst residual is from its bound."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.nan_to_num(np.log(residuals / bound), nan=-np.inf).max())


def _certified(run: _Run, index: np.ndarray, noise: float, complete: bool | None) -> ritz.RitzPairs:
    """The pairs with their residuals; those that a sweep has found cost a product each."""
    (values, residuals), dtype = run.candidates(), run.state.alphas.dtype
    values, residuals = values[index], np.hypot(residuals[index], noise)
    vectors = _combine(run.state.basis, run.columns(index).astype(dtype))
    for i in np.flatnonzero(run.swept[index]):
        # It is coupled to the first run's rows by what that run has left of its residuals.
        vector = _row(vectors, np.int32(i))
        residuals[i] = certificates.residual(run.op, np.asarray(values[i], dtype), vector)
        run.products += 1
    return ritz.RitzPairs(values, vectors, residuals, run.norm, noise, run.products, complete)


def _not_finite(run: _Run, k: int) -> ritz.RitzPairs:
    """NaN in the place of every pair, after a product that was not finite."""
    nothing = np.full(k, np.nan)
    columns = np.full((run.capacity, k), np.nan, run.state.alphas.dtype)
    vectors = _combine(run.state.basis, columns)
    return ritz.RitzPairs(nothing, vectors, nothing, np.nan, np.nan, run.products)


def _keep(run: _Run, k: int, which: str) -> np.ndarray:
    """The active Ritz pairs to keep at a restart: the wanted ones and a few beyond."""
    active = len(run.values)
    count = min(run.spare, active // 2) if run.frozen else min(k + run.spare, (active + k) // 2)
    return np.sort(ritz.wanted(run.values, max(1, min(count, active - 1)), which))


def _compressed(
    run: _Run, index: np.ndarray, ends: tuple[float, float], k: int, which: str
) -> np.ndarray | None:
    """The candidates to freeze alone, where a sweep needs the room that the others take."""
    values, _ = run.candidates()
    # Chebyshev's bound is for the complement of the wanted pairs; in that of all rows it is less.
    needed = 0.6 * least_steps(*ends, np.delete(values, index), run.op.size)
    if run.filled + max(needed, 4) + 2 <= run.capacity:
        return None
    count = max(k, min(run.most_kept, run.capacity // 2))
    return ritz.best(values, min(count, len(values)), which)


def _improves(values, residuals, index, held, frozen: int, small: float) -> bool:
    """Whether a wanted pair of the active rows is better than the held one it displaces."""
    fresh = index[index >= frozen]
    displaced = np.setdiff1d(held, index)
    if not len(fresh) or not len(displaced):
        return False
    # Equal within their residuals they are copies of one eigenvalue, and nothing was missed.
    margin = np.maximum(residuals[fresh].max(), residuals[displaced].max()) + small
    apart = np.abs(values[fresh][:, None] - values[displaced][None, :])
    return bool((apart.max(axis=1) > margin).any())
