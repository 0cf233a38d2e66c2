"""Gauss quadratures of the spectral measures of probes, from their Lanczos runs."""

import dataclasses
from typing import Any

import jax
import numpy as np

from flatjax import _checks as checks
from flatjax import _trees as trees
from flatjax._watching import SILENT, Watch
from flatjax.linalg.krylov import _extremes as extremes
from flatjax.linalg.krylov import _ritz as ritz
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.krylov import _three_terms as three_terms
from flatjax.linalg.krylov._ritz import masses
from flatjax.linalg.probing import _complement as complement
from flatjax.linalg.probing import _exact as exact
from flatjax.linalg.vectors import _arguments as arguments
from flatjax.linalg.vectors import _flat as flat
from flatjax.linalg.vectors import _probes as probes
from flatjax.linalg.vectors import _span as spans
from flatjax.operators._base import Operator

# The steps of a probe that has to be taken although its run has been stopped.
_LEAST = 4


@dataclasses.dataclass(frozen=True)
class Quadratures:
    """Gauss quadratures of the spectral measure of several probes.

    Attributes:
      exact: ``(e,)``, eigenvalues that have been taken out.
      nodes: ``(p, s)``.
      vectors: ``(p, s, s)``, the eigenvectors of the tridiagonal matrices, in columns.
      num_products: the products spent.
      dtype: that of the products.
      start: nodes and weights of the start vector of the deflation, if they are of use.
    """

    exact: np.ndarray
    nodes: np.ndarray
    vectors: np.ndarray
    num_products: int
    dtype: Any
    start: tuple | None = None

    @property
    def weights(self) -> np.ndarray:
        """``(p, s)``, of sum 1 in every row."""
        return masses(self.vectors, self.dtype)

    def coarser(self) -> tuple[np.ndarray, np.ndarray]:
        """Nodes and weights by the first three quarters of the steps of every probe."""
        fewer = max(1, 3 * self.nodes.shape[1] // 4)
        matrices = (self.vectors * self.nodes[:, None, :]) @ np.swapaxes(self.vectors, 1, 2)
        nodes, s = ritz.eigh(matrices[:, :fewer, :fewer])
        return nodes, masses(s, self.dtype)


def quadratures(
    what: str,
    op: Operator,
    key: jax.Array,
    num_probes: int,
    num_steps: int,
    deflation_steps: int | None,
    tol: float,
    watch: Watch = SILENT,
    least: int = 1,
    reorthogonalize: str = "full",
) -> Quadratures:
    """The quadratures behind a density or the trace of a function; see `spectral_density`.

    ``what`` asks for them, by its name. Stopped by its watch, which is told the largest Ritz value
    of the run in progress, it gives the finished probes, and at least so many, of fewer steps.
    Without ``reorthogonalize="full"`` the runs of probes hold no basis.
    """
    key = checks.check_key(key)
    arguments.check_outside_jit(what, op, key)
    checks.check_count("num_probes", num_probes)
    checks.check_count("num_steps", num_steps)
    checks.check_tolerance(tol)
    checks.check_choice("reorthogonalize", reorthogonalize, ("full", "none"))
    full = reorthogonalize == "full"
    depth = (2 * num_steps if full else 0) if deflation_steps is None else deflation_steps
    if depth:
        checks.check_count("deflation_steps", depth)
    scalar = trees.dtype(op.structure)
    dense = exact.matrix(op, depth + num_probes * num_steps, watch)
    if dense is not None and exact.noise(dense, scalar) == 0:
        values = exact.eigenvalues(dense)
        return Quadratures(values, np.zeros((1, 1)), np.zeros((1, 1, 1)), op.size, scalar)
    op = flat.packed(op)
    steps = min(num_steps, op.size)
    looked = 0 if dense is None else op.size  # for nothing: no eigenvalue is known exactly then
    known, vectors, spent, own, middle = np.zeros(0), None, looked, None, 0.0
    if depth and not looked:
        start_key, _ = jax.random.split(jax.random.fold_in(key, 0))
        state, taken = extremes.converged(
            op, start_key, 1, 0, tol, depth, depth, None, watch, num_probes * steps
        )
        spent += taken
        found = extremes.found(state, 1, 0, tol, op.size)
        known, vectors, own = found.exact_values, found.exact_vectors, found.start
        middle = found.middle
        del state
    deflated, runs = complement.Deflated(op, vectors, middle), []
    steps = min(steps, op.size - len(known))
    if watch.stopped is not None:
        steps = min(steps, _LEAST)
    for i in range(num_probes) if steps else ():
        if watch.stopped is not None and len(runs) >= least:
            break
        probe_key, restart_key = jax.random.split(jax.random.fold_in(key, i + 1))
        y = spans.project(vectors, probes.probe(probe_key, op.structure))
        unit, length = trees.normalized(y)

        def report(state, done, before=spent, number=i, steps=steps):
            values, residuals, _ = extremes.ritz_values(state)
            watch.report(
                before + done,
                values[-1:],
                residuals[-1:],
                left=(num_probes - number) * steps - done,
                ready=number >= least or done >= min(steps, _LEAST),
            )

        # In buffers that few programs serve. What a stop has left to do, nobody watches.
        rows = max(krylov.FIRST, steps)
        run = krylov.start(unit, rows, restart_key) if full else three_terms.start(unit, rows)
        del y, unit
        seen = SILENT if watch.stopped is not None else watch
        advance = krylov.run if full else three_terms.run
        run, taken = krylov.watched(deflated, run, steps, seen, report, advance=advance)
        spent += taken
        if taken < steps and len(runs) >= least:
            break
        steps = taken  # a longer run begins like a shorter one
        runs.append((run.alphas, run.betas, run.scale, length))
    nodes, s, _ = solved([(*run, steps) for run in runs])
    return Quadratures(known, nodes, s, spent, scalar, own)


def solved(runs: list) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes, eigenvectors and start norms of all runs, in float64 on the host.

    Args:
      runs: of ``(alphas, betas, scale, length, steps)``; none where nothing is left beside the
        exact atoms, which gives one node without weight.

    Returns:
      Arrays ``(p, s)``, ``(p, s, s)`` and ``(p,)``.
    """
    if not runs:
        return np.zeros((1, 1)), np.zeros((1, 1, 1)), np.zeros(1)
    nodes, vectors, lengths = [], [], []
    for alphas, betas, unit, length, steps in jax.device_get(runs):
        a, b = (np.asarray(x, np.float64)[:steps] for x in (alphas, betas))
        values, s = ritz.eigh(ritz.tridiagonal(a, b))
        nodes.append(values * float(unit))
        vectors.append(s)
        lengths.append(float(length))
    return np.stack(nodes), np.stack(vectors), np.asarray(lengths)
