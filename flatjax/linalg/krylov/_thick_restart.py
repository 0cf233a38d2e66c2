"""Thick-restart Lanczos, driven from the host, and the search for what it has missed.

The basis holds, from row 0 on, the frozen rows, then the active ones: Ritz vectors kept at the last
restart (their projected matrix is diagonal with an arrow) followed by Lanczos vectors. The
projected matrix is solved in float64. The first run is active alone, until the wanted pairs have
converged and, by what a random start vector weighs, none was skipped (`skipped`). Its rows are then
frozen, and a sweep from a random vector orthogonal to all of them looks for what was missed
(`Search`); what it finds is frozen too, and another sweep follows.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _loops as loops
from flatjax._trees import Tree
from flatjax.linalg.krylov import _certificates as certificates
from flatjax.linalg.krylov import _ritz as ritz
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.krylov._search import Search, least_steps, skipped, thresholds
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
# Chebyshev's bound is for the complement of the wanted pairs; in that of all rows it is less.
_OF_CHEBYSHEV = 0.6


class _Pairs(NamedTuple):
    """Ritz pairs.

    Attributes:
      values: their values.
      residuals: the estimates of their residual norms.
      columns: their coefficients over the rows of the basis.
      swept: which of them a sweep has found.
    """

    values: np.ndarray
    residuals: np.ndarray
    columns: np.ndarray
    swept: np.ndarray

    def at(self, index: np.ndarray) -> "_Pairs":
        return _Pairs(*(a[..., index] for a in self))

    def and_then(self, others: "_Pairs") -> "_Pairs":
        return _Pairs(*(np.concatenate(both, axis=-1) for both in zip(self, others, strict=True)))


class _Run:
    """The host's view of a run: the projected matrix, and the pairs of the frozen rows."""

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
        none = np.zeros(0)
        self.frozen_pairs = _Pairs(none, none, np.zeros((self.capacity, 0)), np.zeros(0, bool))
        self.search: Search | None = None
        # The start vector over the rows. What a restart drops of it is lost, and is little.
        self.start = np.eye(self.capacity)[0]

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

    def solve(self) -> _Pairs:
        """All pairs, the frozen ones first."""
        values, inner = ritz.eigh(self.active)
        self.norm = np.maximum(self.norm, np.abs(values).max())  # NaN stays
        columns = np.zeros((self.capacity, len(values)))
        columns[self.frozen : self.filled] = inner
        swept = np.full(len(values), self.search is not None)
        active = _Pairs(values, np.abs(self.beta * inner[-1]), columns, swept)
        self.pairs = self.frozen_pairs.and_then(active)
        return self.pairs

    def departure(self, index: np.ndarray) -> float:
        """What a product makes of these pairs of the first run, less what the run says of it."""
        values, _, columns, _ = self.pairs.at(index)
        scale = float(self.state.scale)
        weights = certificates.mixture(len(index))
        self.products += 1
        found = certificates.departure(
            self.op,
            self.state.basis,
            columns @ weights,
            columns @ (weights * values) / scale,
            self.beta * (columns[self.filled - 1] @ weights) / scale,
            self.state.vector,
            scale,
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
        self.start = np.eye(self.capacity, self.filled)[:, first:] @ (columns.T @ self.start)

    def restart(self, keep: np.ndarray) -> None:
        """Keep the frozen rows, these active pairs, and the residual vector."""
        kept = self.pairs.at(keep)
        if self.search is not None:
            inner = kept.columns[self.frozen : self.filled]
            self.search.restarted(self.active, self.beta, inner)
        # Written in one slice, which must end inside of the buffer: with rows before, if need be.
        first = min(self.frozen, self.capacity - self.most_kept)
        same = np.eye(self.capacity)[:, first : self.frozen]
        arrow = self.beta * kept.columns[self.filled - 1]
        self._rotate(np.concatenate([same, kept.columns], axis=1), first, goes_on=True)
        i = np.arange(self.frozen, self.filled)
        self.matrix[i, i] = kept.values
        if self.filled < self.capacity:
            self.matrix[self.filled, i] = self.matrix[i, self.filled] = arrow

    def sweep(self, search: Search, index: np.ndarray | None) -> None:
        """Freeze all rows, or these pairs alone, and go on from a random vector."""
        self.frozen_pairs = self.pairs
        if index is not None:
            self._rotate(self.pairs.columns[:, index], 0, goes_on=False)
            alone = np.eye(self.capacity, len(index))
            self.frozen_pairs = self.pairs.at(index)._replace(columns=alone)
        self.frozen, self.search = self.filled, search
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
    """The ``k`` wanted Ritz pairs and their certificate.

    From a fresh state, whose capacity is the memory bound, and its first product ``w``. The
    ``budget`` of products has one for the certificate. A start that was ``given`` may by a symmetry
    be blind to any value, which a random one is not.
    """
    run, size = _Run(op, state, w, k), op.size
    first = krylov.CHECK_EVERY if run.on_device else k + 1  # there every number is a program
    pace, limit, alone = _Pace(first, run.on_device), budget - 1, 0
    held, sweeps, noise, complete = np.zeros(0, int), 0, None, None
    while True:
        room = min(run.capacity, size) - run.filled
        steps = min(pace.steps, room, max(limit - run.products, 1))
        run.advance(steps)
        values, residuals, columns, _ = run.solve()
        if not np.isfinite(run.norm):
            return _not_finite(run, k)
        small = ritz.rounding(run.norm, state.alphas.dtype)
        bound = np.maximum(tol * np.abs(values), small)
        index = ritz.best(values, k, which)
        if run.filled >= size:
            complete = True
            break
        enough, lacking = len(index) == k, False
        done = enough and bool((residuals[index] <= bound[index]).all())
        if run.search is None:
            left = _log_ratio(residuals[index], bound[index]) if enough else math.inf
            if done and verify and not given:
                weights = size * np.square(run.start @ columns)
                single = residuals <= np.maximum(bound / 10, small)
                lacking = skipped(values, np.where(single, 0, weights), bound, k, which)
            begins = done and not lacking
        else:
            left = run.search.left(run.active, run.beta, values[run.frozen :], small)
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
            complete = False if lacking else None
            break
        if begins:
            ends = thresholds(values[index], which, bound[index], given)
            predicted = _OF_CHEBYSHEV * least_steps(*ends, np.delete(values, index), size)
            alone = run.products if run.search is None else alone
            # A sweep takes at most as many products as the first run, or 8 for each pair, and is
            # not begun where it would take more; what it finds costs one each.
            most = max(alone, 8 * (k + 1))
            last = min(budget - k, run.products + most)
            nothing = not verify or np.isinf(ends).all() or predicted > most
            if nothing or sweeps > k or run.products + 1 >= last:
                break
            if run.filled + 1 < size:
                noise = run.departure(index) if noise is None else noise
                keep = None
                if run.filled + max(predicted, 4) + 2 > run.capacity:
                    count = max(k, min(run.most_kept, run.capacity // 2))
                    keep = ritz.best(values, min(count, len(values)), which)
                held = index if keep is None else np.flatnonzero(np.isin(keep, index))
                run.sweep(Search(*ends, size), keep)
                pace = _Pace(first if run.on_device else 2, run.on_device)
                limit, sweeps = last, sweeps + 1
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
    (values, residuals, columns, swept), dtype = run.pairs.at(index), run.state.alphas.dtype
    residuals, vectors = (
        np.hypot(residuals, noise),
        ritz.combine(run.state.basis, columns.astype(dtype)),
    )
    for i in np.flatnonzero(swept):
        # It is coupled to the first run's rows by what that run has left of its residuals.
        vector = ritz.row(vectors, np.int32(i))
        residuals[i] = certificates.residual(run.op, np.asarray(values[i], dtype), vector)
        run.products += 1
    return ritz.RitzPairs(values, vectors, residuals, run.norm, noise, run.products, complete)


def _not_finite(run: _Run, k: int) -> ritz.RitzPairs:
    """NaN in the place of every pair, after a product that was not finite."""
    nothing = np.full(k, np.nan)
    columns = np.full((run.capacity, k), np.nan, run.state.alphas.dtype)
    vectors = ritz.combine(run.state.basis, columns)
    return ritz.RitzPairs(nothing, vectors, nothing, np.nan, np.nan, run.products)


def _keep(run: _Run, k: int, which: str) -> np.ndarray:
    """The active Ritz pairs to keep at a restart: the wanted ones and a few beyond."""
    values = run.pairs.values[run.frozen :]
    active = len(values)
    count = min(run.spare, active // 2) if run.frozen else min(k + run.spare, (active + k) // 2)
    return run.frozen + np.sort(ritz.wanted(values, max(1, min(count, active - 1)), which))


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
