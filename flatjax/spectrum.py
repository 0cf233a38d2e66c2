"""One Lanczos run that feeds everything: eigenpairs, trace, norm, density, layers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import loops, trees
from flatjax.linalg import arguments, complement, krylov, lanczos_state, probes
from flatjax.linalg import basis as bases
from flatjax.linalg.density import run_probe, solved
from flatjax.linalg.eigen import Eigenpairs
from flatjax.linalg.estimate import DEFAULT_TOL, Estimate, from_samples
from flatjax.linalg.quadrature import SpectralDensity, density_from_quadrature
from flatjax.operators.base import Operator, as_operator
from flatjax.operators.selection import group_names

Tree = Any


class LayerSpectrum(NamedTuple):
    """The share of one group of params in the spectrum of the whole.

    Attributes:
      size: the number of params of the group.
      trace: the trace of its diagonal block.
      density: the local density ``tr(P f(A) P) / size`` for the projector P on the group: how much
        of the eigenvectors lies in the group. Not the spectrum of the diagonal block. Quadrature
        weights may be negative by chance.
    """

    size: int
    trace: Estimate
    density: SpectralDensity


class SpectrumState(NamedTuple):
    """What a spectrum is built on, all arrays: pass it as ``resume=`` to go on from there.

    Attributes:
      run: the Lanczos run.
      num_products: the products spent on it.
    """

    run: krylov.Krylov
    num_products: jax.Array


class Spectrum(NamedTuple):
    """The spectrum of an operator; made by [`spectrum`][].

    Attributes:
      top: the largest eigenpairs, values descending.
      bottom: the smallest eigenpairs, values descending.
      trace: the trace.
      frobenius_norm: the root of the sum of the squared eigenvalues.
      density: the spectral density; the converged eigenvalues are exact atoms.
      diagonal: the estimated diagonal, a pytree, or ``None``.
      layers: by group of params, or ``None``.
      num_products: all products spent.
      noise_floor: the size below which an eigenvalue is noise of the products.
      size: the dimension.
      state: the Lanczos run, for ``resume=``.
    """

    top: Eigenpairs
    bottom: Eigenpairs
    trace: Estimate
    frobenius_norm: Estimate
    density: SpectralDensity
    diagonal: Tree | None
    layers: dict[Any, LayerSpectrum] | None
    num_products: int
    noise_floor: jax.Array
    size: int
    state: SpectrumState

    def trace_of_function(self, f: Callable[[jax.Array], jax.Array]) -> Estimate:
        """``tr f(A)`` by the quadrature of the density, no product more.

        Args:
          f: a function of arrays of eigenvalues, such as ``jnp.log`` for the log-determinant of a
            positive definite operator.

        Returns:
          The estimate; its error bar is over the probes.
        """
        d = self.density
        at_atoms, at_nodes = (np.asarray(f(a), np.float64) for a in (d.atoms, d.nodes))
        known = (d.weights * at_atoms)[: d.num_exact].sum()
        samples = (d.node_weights * at_nodes).sum(axis=1)
        terms = np.abs(samples).mean() + abs(known)
        samples, known, terms = (self.size * a for a in (samples, known, terms))
        dtype = self.trace.value.dtype
        return from_samples(samples, known, terms, self.num_products, None, dtype)


def spectrum(
    op: Any,
    *,
    key: jax.Array,
    k: int = 10,
    num_bottom: int = 2,
    tol: float = 1e-3,
    num_steps: int | None = None,
    max_steps: int = 160,
    num_probes: int = 4,
    probe_steps: int = 30,
    trace_tol: float | None = 1e-2,
    max_trace_products: int = 200,
    diagonal: bool = False,
    layers: str | Callable[[str], Any] | None = None,
    scale: str = "linear",
    num_points: int = 1024,
    resume: SpectrumState | None = None,
    structure: Tree = None,
) -> Spectrum:
    r"""Everything about a spectrum, from one Lanczos run and a few probes.

    1. A Lanczos run with full reorthogonalisation, until the ``k`` largest and ``num_bottom``
       smallest pairs have converged. It leaves an orthonormal basis Q on which the operator is
       known: $A Q = Q T + \beta_m q_{m+1} e_m^\top$.
    2. Probes. Each starts a short Lanczos run with the converged pairs projected out: a Gauss
       quadrature of the density between these exact atoms. Its first product serves the trace and
       the Frobenius norm as well, deflated by the whole of Q at no product more, so that their
       error comes only from what Q does not know.
    3. One more product a probe until the trace has reached ``trace_tol``.

    Costs some 100 to 300 products, two programs that contain the model or fewer, memory for the
    vectors of the run (up to twice its steps) and of a probe, and two reads of them a step. One
    start vector sees one copy of a multiple eigenvalue; further copies are in the density and in
    the trace, and `eigsh` finds them one by one. Driven from the host: not for use inside ``jit``.

    Args:
      op: a flatjax operator, or a traceable callable ``v -> A v``, symmetric.
      key: a PRNG key.
      k: how many of the largest pairs.
      num_bottom: how many of the smallest pairs.
      tol: the residual norm relative to the value's magnitude at which a pair has converged.
      num_steps: exactly so many Lanczos steps in all; default: until converged.
      max_steps: the most Lanczos steps without ``num_steps``.
      num_probes: the probes that carry the density; at least 2.
      probe_steps: the Lanczos steps of each of them.
      trace_tol: the relative standard error of the trace to reach; ``None``: spend nothing on it.
      max_trace_products: the most products of step 3.
      diagonal: whether to estimate the diagonal from the same products.
      layers: ``"layer"``, ``"leaf"`` or a function from a leaf's path to the name of its group, as
        in `blocks`: the trace and the local density of every group, from the same products.
      scale: the axis of the densities, ``"linear"`` or ``"log"``.
      num_points: the points of their grid.
      resume: the ``state`` of an earlier spectrum of the same operator. Its Lanczos steps are taken
        over, its probes are drawn again.
      structure: for a callable, a tree of arrays or ``jax.ShapeDtypeStruct`` like its vectors.

    Returns:
      A `Spectrum`.

    Raises:
      TypeError: if ``op`` is not callable, or inside ``jit``.
      ValueError: for numbers out of range, or the missing structure of a callable.

    Example:
      >>> import jax, jax.numpy as jnp, flatjax
      >>> d = jnp.concatenate([jnp.array([9.0, 5.0]), jnp.linspace(-0.1, 1.0, 98)])
      >>> result = flatjax.spectrum(
      ...     lambda v: d * v, key=jax.random.key(0), k=2, num_bottom=1, structure=d
      ... )
      >>> [round(float(x), 2) for x in result.top.values]
      [9.0, 5.0]
      >>> abs(float(result.trace.value - d.sum())) < 1.0
      True

    References:
      Gambhir, Stathopoulos and Orginos, "Deflation as a method of variance reduction for estimating
      the trace of a matrix inverse", SIAM J. Sci. Comput. 2017; Ubaru, Chen and Saad, "Fast
      estimation of tr(f(A)) via stochastic Lanczos quadrature", SIAM J. Matrix Anal. Appl. 2017.
    """
    op = as_operator(op, structure)
    _check(op, k, num_bottom, tol, num_steps, max_steps, num_probes, probe_steps, trace_tol)
    groups = None if layers is None else tuple(group_names(op.structure, layers))
    start_key, probe_key = (jax.random.fold_in(key, i) for i in range(2))
    state, spent = lanczos_state.converged(
        op, start_key, k, num_bottom, tol, num_steps, max_steps, resume
    )
    ritz = lanczos_state.Ritz(state, k, num_bottom, tol, op.size)
    keep = SpectrumState(state, jnp.asarray(spent, jnp.int32))
    collected = _Collected(op, state, ritz, probe_key, groups, diagonal)
    for i in range(num_probes):
        spent += collected.density_probe(i, probe_steps)
    if trace_tol is not None:
        spent += collected.trace_probes(num_probes, trace_tol, max_trace_products)
    floor, noise = collected.noise()
    top, bottom = ritz.pairs(floor, noise, tol, spent)
    return Spectrum(
        top=top,
        bottom=bottom,
        trace=collected.trace(spent, trace_tol),
        frobenius_norm=collected.frobenius_norm(spent),
        density=collected.density(scale, num_points),
        diagonal=collected.diagonal(),
        layers=collected.layers(spent, trace_tol, scale, num_points),
        num_products=spent,
        noise_floor=top.noise_floor,
        size=op.size,
        state=keep,
    )


def _check(op, k, num_bottom, tol, num_steps, max_steps, num_probes, probe_steps, trace_tol):
    counts = {"k": k, "max_steps": max_steps, "num_probes": num_probes, "probe_steps": probe_steps}
    for name, value in counts.items():
        arguments.check_count(name, value)
    if num_bottom:
        arguments.check_count("num_bottom", num_bottom)
    arguments.check_tolerance(tol)
    if trace_tol is not None:
        arguments.check_tolerance(trace_tol)
    if k + num_bottom > op.size:
        raise ValueError(
            f"k={k} and num_bottom={num_bottom} exceed the dimension {op.size}: lower them."
        )
    steps = max_steps if num_steps is None else num_steps
    arguments.check_count("num_steps", steps)
    if steps < min(k + num_bottom, op.size):
        raise ValueError(
            f"{k} + {num_bottom} pairs need at least as many Lanczos steps, got {steps}: raise "
            "num_steps or max_steps."
        )
    if num_probes < 2:
        raise ValueError("num_probes must be at least 2: one probe has no standard error.")


class _Collected:
    """What the probes have said so far."""

    def __init__(self, op: Operator, state, ritz, key, groups, diagonal):
        self.op, self.ritz, self.key, self.groups = op, ritz, key, groups
        self.run, sums = _known(state)
        self.known_trace, self.known_square = (float(a) for a in jax.device_get(sums))
        self.product = loops.product(op)
        self.deflated = complement.Deflated(op, ritz.deflating(state))
        self.relation = ritz.relation
        self.numbers: list = []
        self.quadratures: list = []
        self.blocks: list = []
        self.sum_diagonal = trees.zeros(op.structure) if diagonal else None

    def _first(self, i):
        """The probe, its product, and what every probe gives."""
        z = probes.probe(jax.random.fold_in(self.key, i), self.op.structure)
        y = complement.project(self.deflated.vectors, z)
        image = self.product(y)
        numbers, rest = _numbers(self.run, y, image, self.ritz.vectors, self.relation)
        self.numbers.append(numbers)
        if self.groups is not None or self.sum_diagonal is not None:
            rest = complement.rest(self.run, rest)
        if self.sum_diagonal is not None:
            self.sum_diagonal = _add_product(self.sum_diagonal, z, rest)
        return z, y, image, rest

    def density_probe(self, i: int, steps: int) -> int:
        """A probe with a quadrature; returns the products spent."""
        z, y, image, rest = self._first(i)
        basis, spent = jax.tree.map(lambda a: a[None], z), 1
        if (room := self.op.size - self.ritz.num_deflated) > 0:
            steps = min(steps, room)
            length, (unit, first) = lanczos_state.normalized((y, image))
            first = complement.project(self.deflated.vectors, first)
            key = jax.random.fold_in(self.key, i)
            start, spent = run_probe(self.deflated, unit, steps, key, first)
            basis = start.basis
            self.quadratures.append((start.alphas, start.betas, start.scale, length, steps))
        if self.groups is not None:
            self.blocks.append(complement.block_moments(basis, z, rest, self.groups))
        return spent

    def trace_probes(self, start: int, tol: float, most: int) -> int:
        """More products, one a probe, until the trace is known to ``tol``; returns their number."""
        spent = 0
        while spent < most:
            if len(self.numbers) >= 8 and bool(self.trace(0, tol).converged):
                break
            for _ in range(min(4, most - spent)):
                z, _, _, rest = self._first(start + spent)
                if self.groups is not None:
                    one = jax.tree.map(lambda a: a[None], z)
                    self.blocks.append(complement.block_moments(one, z, rest, self.groups))
                spent += 1
        return spent

    def _fetched(self):
        """Traces, squares and gaps of all probes, in float64 on the host."""
        rows = jax.device_get(self.numbers)
        return (np.stack([np.asarray(row[j], np.float64) for row in rows]) for j in range(3))

    def trace(self, spent, tol):
        """The trace, deflated by the whole run."""
        traces, _, _ = self._fetched()
        return self._estimate(traces, self.known_trace, spent, tol)

    def _estimate(self, samples, exact, spent, tol):
        exact = float(exact)
        size = abs(exact) + np.abs(samples).mean()
        return from_samples(samples, exact, size, spent, tol, self.run.alphas.dtype)

    def frobenius_norm(self, spent):
        """The Frobenius norm by the delta method from the estimate of its square."""
        _, squares, _ = self._fetched()
        square = self._estimate(squares, self.known_square, spent, None)
        dtype = square.value.dtype
        value = np.sqrt(max(float(square.value), 0))
        error = float(square.standard_error) / (2 * value) if value else 0.0
        ends = np.sqrt(np.maximum(np.asarray(square.interval, np.float64), 0))
        return Estimate(
            value=jnp.asarray(value, dtype),
            standard_error=jnp.asarray(error, dtype),
            interval=jnp.asarray(ends, dtype),
            num_products=spent,
            converged=jnp.asarray(error <= DEFAULT_TOL * value),
        )

    def noise(self):
        """The noise floor, and the noise of the product with every Ritz vector."""
        _, _, gaps = self._fetched()
        rounding = 8 * float(jnp.finfo(self.run.alphas.dtype).eps) * self.ritz.norm
        noise = np.sqrt(np.square(gaps).mean(axis=0))
        return max(2 * float(np.sqrt(np.square(gaps).mean())), rounding), noise

    def density(self, scale, num_points):
        """The density of the whole."""
        n, count = self.op.size, self.ritz.num_deflated
        nodes, s, _ = solved(self.quadratures)
        weights = np.square(s[:, 0]) * ((n - count) / n)
        return self._density(np.full(count, 1 / n), nodes, weights, scale, num_points)

    def _density(self, exact_weights, nodes, weights, scale, num_points):
        return density_from_quadrature(
            self.ritz.deflated_values,
            exact_weights,
            nodes,
            weights,
            scale=scale,
            num_points=num_points,
        )

    def diagonal(self):
        """The diagonal: what the run knows, and the mean over the probes of the rest."""
        if self.sum_diagonal is None:
            return None
        return _diagonal(self.run, self.sum_diagonal, jnp.float32(1 / len(self.numbers)))

    def layers(self, spent, tol, scale, num_points):
        """Trace and local density of every group."""
        if self.groups is None:
            return None
        known = jax.device_get(complement.block_known(self.run, self.groups))
        shares = jax.device_get(self.ritz.shares(self.groups))
        found = jax.device_get(self.blocks)
        sizes: dict = {}
        for name, leaf in zip(self.groups, jax.tree.leaves(self.op.structure), strict=True):
            sizes[name] = sizes.get(name, 0) + leaf.size
        nodes, s, lengths = solved(self.quadratures)
        out = {}
        for name, size in sizes.items():
            samples = np.asarray([quad[name] for quad, _ in found], np.float64)
            trace = self._estimate(samples, known[name], spent, tol)
            steps = s.shape[-1]
            inner = [np.asarray(rows[name], np.float64)[:steps] for _, rows in found[: len(s)]]
            products = np.einsum("pj,pjk->pk", np.stack(inner), s)
            weights = lengths[:, None] * s[:, 0] * products / size
            exact = np.asarray(shares[name], np.float64) / size
            density = self._density(exact, nodes, weights, scale, num_points)
            out[name] = LayerSpectrum(size, trace, density)
        return out


@jax.jit
def _known(state):
    run = complement.known(state)
    return run, (run.trace, run.squares)


@jax.jit
def _numbers(run, y, image, vectors, relation):
    """The moments of a probe, and ``v . A y - y . A v`` for every Ritz vector v.

    The products ``A v`` are those of the Lanczos relation, a multiple of v and one of the residual.
    """
    found = complement.moments(run, y, image)
    values, last = relation
    known = values * bases.coefficients(vectors, y)[0] + last * trees.vdot(run.residual, y)
    gaps = bases.coefficients(vectors, image)[0] - known
    return (found.trace, found.square, gaps), found.image


@jax.jit
def _add_product(total, z, rest):
    return jax.tree.map(lambda t, a, b: t + a * b, total, z, rest)


@jax.jit
def _diagonal(run, total, factor):
    return trees.axpy(factor, total, complement.known_diagonal(run))
