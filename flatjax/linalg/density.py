"""The spectral density by stochastic Lanczos quadrature, deflated by the pairs that converge."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import loops, trees
from flatjax.linalg import (
    arguments,
    complement,
    exact,
    krylov,
    lanczos_state,
    packing,
    probes,
    ritz,
)
from flatjax.linalg import basis as bases
from flatjax.linalg.quadrature import SpectralDensity, density_from_quadrature, masses
from flatjax.operators.base import Operator, as_operator

Tree = Any


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

    exact: Any
    nodes: Any
    vectors: Any
    num_products: int
    dtype: Any
    start: tuple | None = None

    @property
    def weights(self) -> Any:
        """``(p, s)``, of sum 1 in every row."""
        return masses(self.vectors, self.dtype)


def spectral_density(
    op: Any,
    *,
    key: jax.Array,
    num_probes: int = 4,
    num_steps: int = 40,
    deflation_steps: int | None = None,
    tol: float = 1e-3,
    scale: str = "linear",
    num_points: int = 1024,
    linear_width: float | None = None,
    sigma: float | None = None,
    structure: Tree = None,
) -> SpectralDensity:
    r"""The density of the eigenvalues, with its distribution function and error bands.

    A first Lanczos run finds the extreme pairs; those that converge become exact atoms of weight
    1/n. Each probe then starts a run in their complement, whose Gauss quadrature gives the mass in
    between; the first run's own start vector is one more such probe, at no product. Deflation and
    depth pay more than probes do: a few long runs beat many short ones. The
    smoothed density depends on a bandwidth, the distribution function does not. Every run
    reorthogonalises in full: no copies of an eigenvalue appear.

    Costs ``deflation_steps + num_probes * num_steps`` products (where the dimension is no more than
    that, one for every dimension, and all atoms are exact) and as many vectors of memory as the
    longest run has steps, twice while both are held. Traced, there is no deflation: the number of
    converged pairs is not known beforehand.

    Args:
      op: a flatjax operator, or a traceable callable ``v -> A v``, symmetric.
      key: a PRNG key.
      num_probes: the probes; their spread makes the band.
      num_steps: Lanczos steps a probe.
      deflation_steps: steps of the first run; default ``2 * num_steps``, 0 for none.
      tol: the relative residual at which a pair counts as converged; above 1 % it is 1 %.
      scale: ``"linear"``, or ``"log"`` for a grid that is logarithmic on both sides of zero.
      num_points: the size of the grid.
      linear_width: where the logarithmic grid becomes linear; default 1e-4 of the largest node.
      sigma: one width for all atoms; default: from the spacing of the nodes.
      structure: for a callable, a tree of arrays or ``jax.ShapeDtypeStruct`` like its vectors.

    Returns:
      A `SpectralDensity`; NumPy arrays when called eagerly.

    Raises:
      TypeError: if ``op`` is not callable or ``key`` is no key.
      ValueError: on numbers out of range, or a callable without structure.

    Example:
      >>> import jax, jax.numpy as jnp, flatjax
      >>> d = jnp.concatenate([jnp.array([9.0, 5.0]), jnp.linspace(-0.1, 1.0, 98)])
      >>> density = flatjax.spectral_density(lambda v: d * v, key=jax.random.key(0), structure=d)
      >>> round(float(density.weights.sum()), 3)
      1.0

    References:
      Lin, Saad and Yang, "Approximating spectral densities of large matrices", SIAM Review 2016;
      Ghorbani, Krishnan and Xiao, arXiv:1901.10159; Papyan, arXiv:1811.07062.
    """
    op = as_operator(op, structure)
    found = quadratures(op, key, num_probes, num_steps, deflation_steps, tol)
    xp = np if isinstance(found.nodes, np.ndarray) else jnp
    n, count = op.size, found.exact.shape[0]
    left = (n - count) / n
    rows: tuple = (found.nodes, found.weights * left)
    if xp is np:
        rows = lanczos_state.with_start(found.start, found.nodes, found.weights, left)
    return density_from_quadrature(
        found.exact,
        xp.full((count,), 1 / n, found.nodes.dtype),
        *rows,
        num_points=num_points,
        scale=scale,
        linear_width=linear_width,
        sigma=sigma,
    )


def quadratures(
    op: Operator,
    key: jax.Array,
    num_probes: int,
    num_steps: int,
    deflation_steps: int | None,
    tol: float,
) -> Quadratures:
    """The quadratures behind a density or the trace of a function; see `spectral_density`."""
    key = arguments.check_key(key)
    arguments.check_count("num_probes", num_probes)
    arguments.check_count("num_steps", num_steps)
    arguments.check_tolerance(tol)
    depth = 2 * num_steps if deflation_steps is None else deflation_steps
    if depth:
        arguments.check_count("deflation_steps", depth)
    scalar = trees.dtype(op.structure)
    dense = exact.matrix(op, depth + num_probes * num_steps)
    if dense is not None:
        values = exact.eigenvalues(dense)
        nothing = np.zeros if isinstance(dense, np.ndarray) else jnp.zeros
        empty = (nothing((1, 1), values.dtype), nothing((1, 1, 1), values.dtype))
        return Quadratures(values, *empty, op.size, scalar)
    op = packing.packed(op)
    steps = min(num_steps, op.size)
    image = arguments.first_product(op, trees.zeros(op.structure))
    if loops.is_traced(image):
        return _traced(op, key, num_probes, steps, image)
    known, vectors, spent, own = np.zeros(0), None, 0, None
    if depth:
        state, spent = lanczos_state.converged(
            op, jax.random.fold_in(key, 0), 1, 0, tol, depth, depth, None
        )
        pairs = lanczos_state.Ritz(state, 1, 0, tol, op.size)
        known, vectors, own = pairs.deflated_values, pairs.deflating(state), pairs.start
        del state
    deflated, runs = complement.Deflated(op, vectors), []
    steps = min(steps, op.size - len(known))
    for i in range(num_probes) if steps else ():
        probe_key, restart_key = jax.random.split(jax.random.fold_in(key, i + 1))
        y = complement.project(vectors, probes.probe(probe_key, op.structure))
        length, (unit,) = lanczos_state.normalized((y,))
        run, products = run_probe(deflated, unit, steps, restart_key)
        spent += products
        runs.append((run.alphas, run.betas, run.scale, length, steps))
    nodes, s, _ = solved(runs)
    return Quadratures(known, nodes, s, spent, scalar, own)


def run_probe(
    deflated: Operator, unit: Tree, steps: int, key: jax.Array, first: Tree = None
) -> tuple[krylov.Krylov, int]:
    """The Lanczos run of a probe, and its products; in buffers that few programs serve."""
    start = krylov.start(unit, max(lanczos_state.FIRST, steps), key)
    return krylov.run(deflated, start, steps, first)


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


def _traced(op, key, count, steps, image):
    scalar = trees.dtype(op.structure)

    def one(i):
        probe_key, restart_key = jax.random.split(jax.random.fold_in(key, i + 1))
        z = probes.probe(probe_key, op.structure)
        _, (unit,) = lanczos_state.normalized((z,))
        run, _ = krylov.run(op, krylov.start(unit, steps, restart_key), steps)
        return run.alphas * run.scale, run.betas * run.scale

    empty = (jnp.zeros((count, steps), scalar), jnp.zeros((count, steps), scalar))

    def body(i, out):
        return jax.tree.map(lambda a, x: a.at[i].set(x), out, one(i))

    empty = bases.vary_like(empty, image)
    alphas, betas = loops.fori(count, body, empty, like=image)
    nodes, s = jax.vmap(lambda a, b: ritz.eigh(ritz.tridiagonal(a, b)))(alphas, betas)
    return Quadratures(jnp.zeros(0, scalar), nodes, s, count * steps, scalar)
