"""Gauss quadratures of the spectral measures of probes, from their Lanczos runs."""

import dataclasses
from typing import Any

import jax
import numpy as np

from flatjax import _checks as checks
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.krylov import _extremes as extremes
from flatjax.linalg.krylov import _ritz as ritz
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.krylov._ritz import masses
from flatjax.linalg.probing import _complement as complement
from flatjax.linalg.probing import _exact as exact
from flatjax.linalg.vectors import _arguments as arguments
from flatjax.linalg.vectors import _flat as flat
from flatjax.linalg.vectors import _probes as probes
from flatjax.operators._base import Operator


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


def quadratures(
    what: str,
    op: Operator,
    key: jax.Array,
    num_probes: int,
    num_steps: int,
    deflation_steps: int | None,
    tol: float,
) -> Quadratures:
    """The quadratures behind a density or the trace of a function; see `spectral_density`.

    ``what`` asks for them, by its name.
    """
    key = checks.check_key(key)
    arguments.check_outside_jit(what, op, key)
    checks.check_count("num_probes", num_probes)
    checks.check_count("num_steps", num_steps)
    checks.check_tolerance(tol)
    depth = 2 * num_steps if deflation_steps is None else deflation_steps
    if depth:
        checks.check_count("deflation_steps", depth)
    scalar = trees.dtype(op.structure)
    dense = exact.matrix(op, depth + num_probes * num_steps)
    if dense is not None:
        values = exact.eigenvalues(dense)
        return Quadratures(values, np.zeros((1, 1)), np.zeros((1, 1, 1)), op.size, scalar)
    op = flat.packed(op)
    steps = min(num_steps, op.size)
    known, vectors, spent, own, middle = np.zeros(0), None, 0, None, 0.0
    if depth:
        start_key, _ = jax.random.split(jax.random.fold_in(key, 0))
        state, spent = extremes.converged(op, start_key, 1, 0, tol, depth, depth, None)
        found = extremes.found(state, 1, 0, tol, op.size)
        known, vectors, own = found.exact_values, found.exact_vectors, found.start
        middle = found.middle
        del state
    deflated, runs = complement.Deflated(op, vectors, middle), []
    steps = min(steps, op.size - len(known))
    for i in range(num_probes) if steps else ():
        probe_key, restart_key = jax.random.split(jax.random.fold_in(key, i + 1))
        y = complement.project(vectors, probes.probe(probe_key, op.structure))
        unit, length = trees.normalized(y)
        run, products = run_probe(deflated, unit, steps, restart_key)
        spent += products
        runs.append((run.alphas, run.betas, run.scale, length, steps))
    nodes, s, _ = solved(runs)
    return Quadratures(known, nodes, s, spent, scalar, own)


def run_probe(
    deflated: Operator, unit: Tree, steps: int, key: jax.Array, first: Tree = None
) -> tuple[krylov.Krylov, int]:
    """The Lanczos run of a probe, and its products; in buffers that few programs serve."""
    start = krylov.start(unit, max(krylov.FIRST, steps), key)
    return krylov.run(deflated, start, steps, first), steps


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
