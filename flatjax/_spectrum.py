"""One Lanczos run that feeds everything: eigenpairs, trace, norm, density, layers."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _checks as checks
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax import _watching as watching
from flatjax._trees import Tree
from flatjax.linalg.krylov import _extremes as extremes
from flatjax.linalg.krylov import _saved as saved
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.krylov._certificates import Eigenpairs
from flatjax.linalg.probing import _accumulate as accumulate
from flatjax.linalg.probing import _exact as exact
from flatjax.linalg.probing import _missing as missing
from flatjax.linalg.probing._estimate import Estimate, from_spread, quiet
from flatjax.linalg.probing._layers import LayerSpectrum
from flatjax.linalg.probing._quadrature import SpectralDensity, evaluated, products, weighted
from flatjax.linalg.vectors import _arguments as arguments
from flatjax.linalg.vectors import _budget as budget
from flatjax.linalg.vectors import _flat as flat
from flatjax.operators._base import Operator, as_operator
from flatjax.operators._selection import group_names

# Lanczos steps of a probe, beside a deeper quadrature and alone. Of the first, 30 in place of 10
# (80 products of 220) took the distance of the density to the truth from .045 to .042, .031 to
# .031, .013 to .010 and .021 to .020 standard deviations on two MLPs, a transformer and a CNN.
BESIDE, ALONE = 10, 30


@reading.readable
class SpectrumState(NamedTuple):
    """What a spectrum is built on, all arrays: pass it as ``resume=`` to go on from there.

    Attributes:
      run: the Lanczos run.
      num_products: the products spent on it.
      noise_floor: the noise of a product, by which another operator is told.
    """

    run: krylov.Krylov
    num_products: jax.Array
    noise_floor: jax.Array


@reading.readable
class Spectrum(NamedTuple):
    """The spectrum of an operator; made by [`spectrum`][].

    Attributes:
      top: the largest eigenpairs, values descending.
      bottom: the smallest eigenpairs, values descending.
      trace: the trace.
      frobenius_norm: the root of the sum of the squared eigenvalues.
      density: the spectral density; the eigenvalues converged to 1 % or better are exact atoms.
      diagonal: the estimated diagonal, a pytree, or ``None``.
      layers: by group of params, or ``None``.
      num_products: all products spent.
      noise_floor: the size below which an eigenvalue is noise of the products.
      size: the dimension.
      state: the Lanczos run, for ``resume=``.
      complete: whether the lists at the top and at the bottom are those of the largest and the
        smallest pairs, none of them skipped: ``top.complete and bottom.complete``.
      stopped: why it was stopped early, ``"callback"``, ``"max_seconds"`` or ``"interrupt"``: then
        neither pairs nor estimates count as converged. ``None`` otherwise.
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
    complete: bool | None
    stopped: str | None = None

    @quiet()
    def trace_of_function(self, f: Callable[[jax.Array], jax.Array]) -> Estimate:
        """``tr f(A)`` by the quadrature of the density, no product more.

        Args:
          f: a function of arrays of eigenvalues, such as ``jnp.log`` for the log-determinant of a
            positive definite operator.

        Returns:
          The estimate; its error bar is over the probes. What all of their quadratures miss is
          not in it: for a function with a kink where the eigenvalues are dense, such as the root of
          their magnitude, several times as much.
        """
        dtype, host = self.trace.value.dtype, jax.device_get(self.density)
        d = jax.tree.map(lambda a: np.float64(a) if isinstance(a, np.ndarray) else a, host)
        rounding = 8 * float(jnp.finfo(dtype).eps) * np.abs(d.atoms).max()
        noise = max(float(self.noise_floor), rounding)
        (at_atoms, blur_atoms), (at_nodes, blur_nodes) = (
            evaluated(f, x, dtype, noise) for x in (d.atoms[: d.num_exact], d.nodes)
        )
        weights, node_weights, row_weights = (
            np.asarray(a, np.float64) for a in (d.weights, d.node_weights, d.row_weights)
        )
        mass = weights[: d.num_exact]
        samples = products(node_weights, at_nodes).sum(axis=1)
        blurs = products(node_weights, blur_nodes).sum(axis=1)
        known, blur = (mass * at_atoms).sum(), (mass * blur_atoms).sum()
        if not np.any(d.node_weights):  # every eigenvalue is known
            return exact.estimate(self.size * known, self.num_products, dtype, self.size * blur)
        mean, error, degrees = weighted(samples, row_weights)
        error = np.hypot(error, blur + blurs.mean())
        terms = np.abs(samples).mean() + abs(known)
        value, error, terms = (self.size * a for a in (known + mean, error, terms))
        return from_spread(value, error, degrees, terms, self.num_products, None, dtype)


def spectrum(
    op: Any,
    *,
    key: jax.Array,
    k: int = 10,
    num_bottom: int = 2,
    tol: float = 1e-3,
    num_steps: int | None = None,
    max_steps: int = 160,
    basis_bytes: int | None = None,
    num_probes: int = 4,
    probe_steps: int | None = None,
    trace_rtol: float | None = 1e-2,
    max_trace_products: int = 200,
    diagonal: bool = False,
    by: str | Callable[[str], Any] | None = None,
    scale: str = "linear",
    num_points: int = 1024,
    resume: SpectrumState | None = None,
    progress: bool = False,
    callback: watching.Callback | None = None,
    max_seconds: float | None = None,
    on_interrupt: str = "raise",
    structure: Tree = None,
) -> Spectrum:
    r"""Everything about a spectrum, from one Lanczos run and a few probes.

    1. A Lanczos run with full reorthogonalisation, until the ``k`` largest and ``num_bottom``
       smallest pairs have converged. It leaves an orthonormal basis Q on which the operator is
       known: $A Q = Q T + \beta_m q_{m+1} e_m^\top$.
    2. Probes. Each starts a short Lanczos run with the converged pairs projected out: a Gauss
       quadrature of the density between these exact atoms, as the first run is for its own start
       vector. Its first product serves the trace and the Frobenius norm as well, deflated by the
       whole of Q at no product more, so that their error comes only from what Q does not know.
    3. One more product per probe until the trace has reached ``trace_rtol``.

    Costs some 100 to 300 products, two programs that contain the model or fewer, memory for the
    vectors of the run (up to twice its steps; ``max_steps`` at once where that is at most 4 MB) and
    four beside it, two reads of them per step, and after the run memory for the pairs, for those
    that have converged (a multiple of 16), for a probe's run, and for four vectors a probe. Driven
    from the host: not for use inside ``jit``.

    Of more than 2^24 numbers, or within ``basis_bytes``, there are at most 15 rows more than steps,
    and beside them some 40 vectors by default: the larger of ``probe_steps + 4 num_probes + 4``
    (with ``diagonal`` or ``by`` 16) and ``2 k + num_bottom + 4 num_probes``, and two for every
    product that completes the lists. Converged pairs stay combinations of the run's vectors, all of
    which a probe's step reads. ``result._replace(state=None)`` lets the run go.

    One start vector sees one copy of a multiple eigenvalue, and may skip a single one along which
    it has little. The probes see what is missing: their extreme Ritz vectors are joined to Q, at no
    product more. Where that finds a pair, up to 64 products make the lists complete and converged,
    unless ``num_steps`` or ``basis_bytes`` is given; where they do not suffice, ``complete`` says
    so.

    Where the dimension is no more than the fewest products that the call would spend, some 70 by
    default, the operator is multiplied with every unit vector, and everything is exact.

    Args:
      op: a flatjax operator, or a traceable callable ``v -> A v``, symmetric.
      key: a PRNG key.
      k: how many of the largest pairs.
      num_bottom: how many of the smallest pairs.
      tol: the residual norm relative to the value's magnitude at which a pair has converged.
      num_steps: exactly so many Lanczos steps in all; default: until converged.
      max_steps: the most Lanczos steps without ``num_steps``.
      basis_bytes: the memory, of one device, for the vectors of the run and those beside it, in
        place of ``num_steps``: ``max_steps`` is what fits, and no product completes the lists. What
        has not converged says so. `Plan.basis_bytes` is what a product leaves.
      num_probes: the probes that carry the density; at least 2.
      probe_steps: the Lanczos steps of each of them. Default: 10 beside the first run's own
        quadrature; 30 where that has fewer nodes than this, or says nothing: with ``by``, after
        the Krylov space was exhausted, or of multiple eigenvalues.
      trace_rtol: the relative standard error of the trace to reach; ``None``: spend nothing on it.
      max_trace_products: the most products of step 3.
      diagonal: whether to estimate the diagonal from the same products.
      by: ``"layer"``, ``"leaf"`` or a function from a leaf's path to the name of its group, as
        in [`blocks`][]: the trace and the local density of every group, from the same products.
      scale: the axis of the densities, ``"linear"`` or ``"log"``.
      num_points: the points of their grid.
      resume: the ``state`` of an earlier spectrum of the same operator, or the mapping of its
        fields that a checkpoint gives back when it is loaded without types. Its Lanczos steps are
        taken over, for a product that shows that the operator is the same; its probes are drawn
        again. A run that goes on is an uninterrupted one up to rounding: its buffers may be of
        another size, and sums in another order.
      progress: whether to show a bar on standard error (by rich, if it is installed; lines where
        that is no terminal): products, worst relative residual, later the trace, time left.
      callback: ``callback(step, values, residual_norms)`` after every few products, of slow ones
        after each: the products so far, the Ritz values of the ``k`` largest and the ``num_bottom``
        smallest pairs, each descending, and the estimates of their residual norms, both NumPy, ``(k
        + num_bottom,)`` (fewer at first). If it returns ``True``, it stops.
      max_seconds: stop after so many seconds.
      on_interrupt: ``"return"``: the first Ctrl-C stops after the product in progress, the second
        raises; ``"raise"``: the first raises. A stop, of whatever kind, comes after as many
        products as there are pairs (interrupted before, it raises). In step 1 it leaves two probes
        of one product; in step 2 the probes that are finished. `Spectrum.stopped` has the reason,
        and with ``resume`` the Lanczos run goes on.
      structure: for a callable, a tree of arrays or ``jax.ShapeDtypeStruct`` like its vectors.

    Returns:
      A [`Spectrum`][].

    Raises:
      TypeError: if ``op`` is not callable, inside ``jit``, or if ``resume`` is no state of this
        operator.
      ValueError: for numbers out of range, the missing structure of a callable, or a ``resume`` of
        other shapes or dtypes, of more steps than asked for, or of another operator (other params,
        another batch), which its products show.

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
      >>> more = flatjax.spectrum(
      ...     lambda v: d * v, key=jax.random.key(0), k=4, structure=d, resume=result.state
      ... )
      >>> more.top.values.shape, int(more.state.num_products) >= int(result.state.num_products)
      ((4,), True)

    References:
      Gambhir, Stathopoulos and Orginos, "Deflation as a method of variance reduction for estimating
      the trace of a matrix inverse", SIAM J. Sci. Comput. 2017; Ubaru, Chen and Saad, "Fast
      estimation of tr(f(A)) via stochastic Lanczos quadrature", SIAM J. Matrix Anal. Appl. 2017.
    """
    op = as_operator(op, structure)
    key = checks.check_key(key)
    _check(op, k, num_bottom, tol, num_steps, max_steps, num_probes, probe_steps, trace_rtol)
    arguments.check_outside_jit("spectrum", op, key)
    start_key, probe_key = _keys(key)
    groups = None if by is None else tuple(group_names(op.structure, by))
    lean = op.size > krylov.LARGE or basis_bytes is not None
    if basis_bytes is not None:
        if num_steps is not None:
            raise ValueError("basis_bytes bounds the steps: leave num_steps out, or basis_bytes.")
        beside = budget.beside_spectrum(
            k, num_bottom, num_probes, probe_steps or ALONE, diagonal or groups is not None
        )
        fitting = budget.steps_within(basis_bytes, op.structure, k + num_bottom, beside)
        max_steps = min(max_steps, fitting)
    watch = watching.watch(
        "spectrum", progress, callback, max_seconds, on_interrupt, traced=(op, key)
    )  # fmt: skip
    with watch:
        dense = None
        if resume is None:
            least = max(k + num_bottom, ALONE) if num_steps is None else num_steps
            dense = exact.matrix(op, least + num_probes * (probe_steps or BESIDE), watch)
        known, looked, seen_noise = None, 0, 0.0
        if dense is not None and (each := exact.noise(dense, trees.dtype(op.structure))) > 0:
            # Of a product with a unit vector; a Krylov space of all dimensions shows none.
            known, dense, looked, seen_noise = dense, None, op.size, op.size**0.5 * each
        if dense is not None:
            op, num_steps, trace_rtol = exact.dense_operator(op, dense), op.size, None
        seen = watch if dense is None else watching.SILENT  # what is known need not be waited for
        packed = flat.packed(op)
        if resume is not None:
            resume = saved.restored(SpectrumState, resume, packed.structure)
        state, spent = extremes.converged(
            packed, start_key, k, num_bottom, tol, num_steps, max_steps, resume, seen
        )
        found = extremes.found(state, k, num_bottom, tol, op.size, form=not lean)
        steps_spent = op.size if dense is not None else spent
        given = accumulate.setting(packed, state, found, probe_key, groups, lean)
        if probe_steps is None:
            deep = groups is None and found.start is not None and len(found.start[0]) >= ALONE
            probe_steps = BESIDE if deep else ALONE
        sums, products = accumulate.probe(
            given, num_probes, probe_steps, trace_rtol, max_trace_products, diagonal, seen, spent
        )
        spent += products
        most = missing.MOST if num_steps is None and basis_bytes is None else 0
        pairs, complete, products = accumulate.completed(
            given, sums, probe_steps, tol, most, seen, spent
        )
        spent = looked + spent + products if dense is None else op.size
        floor, noise = accumulate.noise(given, sums)
        # It was measured for the run's own vectors; for others the largest stands.
        noise = np.maximum(noise if pairs is found else noise.max(), seen_noise)
        noise = np.maximum(noise, exact.residuals(known, packed, pairs))
        floor = max(floor, 2 * seen_noise)
        keep = SpectrumState(
            state, jnp.asarray(np.int32(steps_spent)), jnp.asarray(floor, state.scale.dtype)
        )
    layout = flat.layout(packed)
    top, bottom = extremes.certified(pairs, floor, noise, tol, spent, complete, layout)
    result = Spectrum(
        top=top,
        bottom=bottom,
        trace=accumulate.trace(given, sums, spent, trace_rtol),
        frobenius_norm=accumulate.frobenius_norm(given, sums, spent),
        density=accumulate.density(given, sums, scale, num_points),
        diagonal=accumulate.diagonal(given, sums),
        layers=accumulate.by_group(given, sums, spent, trace_rtol, scale, num_points),
        num_products=spent,
        noise_floor=top.noise_floor,
        size=op.size,
        state=keep,
        complete=_both((top.complete, bottom.complete)),
    )
    result = result if dense is None else _exact(result, op, dense, groups)
    return _marked(result, watch)


@jax.jit
def _keys(key):
    """One for the start vector and one for the probes; a single program to compile."""
    both = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(2))
    return tuple(jax.vmap(lambda key: jax.random.split(key)[0])(both))


def _marked(result: Spectrum, watch: watching.Watch) -> Spectrum:
    """The result, and its parts, said to have been stopped if they were."""
    marked = functools.partial(watching.marked, watch=watch)
    layers = result.layers
    if layers is not None:
        layers = {name: a._replace(trace=marked(a.trace)) for name, a in layers.items()}
    names = ("top", "bottom", "trace", "frobenius_norm", "density")
    parts = {name: marked(getattr(result, name)) for name in names}
    return marked(result._replace(layers=layers, **parts))


def _exact(found: Spectrum, op: Operator, dense: np.ndarray, groups: tuple | None) -> Spectrum:
    """The spectrum of a matrix whose entries are all known."""
    n, dtype, diagonal = op.size, found.trace.value.dtype, dense.diagonal()
    layers, start = found.layers, 0
    if groups is not None and layers is not None:
        traces = dict.fromkeys(layers, 0.0)
        for name, leaf in zip(groups, jax.tree.leaves(op.structure), strict=True):
            traces[name] += diagonal[start : start + leaf.size].sum()
            start += leaf.size
        layers = {
            name: layer._replace(trace=exact.estimate(traces[name], n, dtype))
            for name, layer in layers.items()
        }
    return found._replace(
        trace=exact.estimate(dense.trace(), n, dtype),
        frobenius_norm=exact.estimate(np.linalg.norm(dense), n, dtype),
        diagonal=None if found.diagonal is None else exact.vector(diagonal, op.structure),
        layers=layers,
    )


def _both(complete: tuple[bool | None, bool | None]) -> bool | None:
    """Whether both lists are complete; ``None`` where that is not known."""
    return None if None in complete and False not in complete else all(complete)


def _check(op, k, num_bottom, tol, num_steps, max_steps, num_probes, probe_steps, trace_rtol):
    counts = {"k": k, "max_steps": max_steps, "num_probes": num_probes}
    for name, value in counts.items():
        checks.check_count(name, value)
    if num_bottom:
        checks.check_count("num_bottom", num_bottom)
    if probe_steps is not None:
        checks.check_count("probe_steps", probe_steps)
    checks.check_tolerance(tol)
    if trace_rtol is not None:
        checks.check_tolerance(trace_rtol, "trace_rtol")
    if k + num_bottom > op.size:
        raise ValueError(
            f"k={k} and num_bottom={num_bottom} exceed the dimension {op.size}: lower them."
        )
    steps = max_steps if num_steps is None else num_steps
    checks.check_count("num_steps", steps)
    if steps < min(k + num_bottom, op.size):
        raise ValueError(
            f"{k} + {num_bottom} pairs need at least as many Lanczos steps, got {steps}: raise "
            "num_steps or max_steps."
        )
    if num_probes < 2:
        raise ValueError("num_probes must be at least 2: one probe has no standard error.")
