"""Traces of functions of an operator, and its Frobenius norm."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _checks as checks
from flatjax import _trees as trees
from flatjax import _watching as watching
from flatjax._trees import Tree
from flatjax.linalg.krylov import _relations as relations
from flatjax.linalg.krylov._certificates import underflow
from flatjax.linalg.probing import _complement as complement
from flatjax.linalg.probing import _exact as exact
from flatjax.linalg.probing._estimate import (
    DEFAULT_RTOL,
    Estimate,
    cast,
    from_samples,
    rooted,
    so_far,
    student,
)
from flatjax.linalg.probing._gauss import quadratures
from flatjax.linalg.probing._probe_products import sample
from flatjax.linalg.probing._quadrature import evaluated, products
from flatjax.linalg.vectors import _arguments as arguments
from flatjax.linalg.vectors import _flat as flat
from flatjax.operators._base import as_operator


def trace_of_function(
    op: Any,
    f: Callable[[jax.Array], jax.Array],
    *,
    key: jax.Array,
    num_probes: int = 8,
    num_steps: int = 30,
    deflation_steps: int | None = None,
    reorthogonalize: str = "full",
    rtol: float | None = None,
    progress: bool = False,
    callback: watching.Callback | None = None,
    max_seconds: float | None = None,
    on_interrupt: str = "raise",
    structure: Tree = None,
) -> Estimate:
    r"""The trace $\mathrm{tr} f(A) = \sum_i f(\lambda_i)$ by deflated Lanczos quadrature.

    The pairs that converge in a first run are exact; Gauss quadratures of random probes give the
    rest. Beside the spread of the probes the standard error counts the quadrature: by how much the
    value changes between three quarters of the steps and all of them.

    Costs ``deflation_steps + num_probes * num_steps`` products and the memory of the longest run.

    Args:
      op: a flatjax operator, or a traceable callable ``v -> A v``, symmetric.
      f: a function of an array of eigenvalues, elementwise and smooth on the spectrum.
      key: a PRNG key.
      num_probes: the probes, at least 2.
      num_steps: Lanczos steps per probe.
      deflation_steps: steps of the first run; default ``2 * num_steps``, 0 for none.
      reorthogonalize: ``"full"``, or ``"none"`` for runs of probes that hold three vectors and no
        basis, by default without a first run: see [`spectral_density`][].
      rtol: the standard error that counts as converged, relative to the value; default 5 %.
      progress: whether to show a bar on standard error, as in [`spectral_density`][].
      callback: ``callback(step, values, residual_norms)``, as in [`spectral_density`][].
      max_seconds: stop after so many seconds.
      on_interrupt: ``"return"`` or ``"raise"``, as in [`spectral_density`][]; a stop waits for four
        steps of two probes, and `Estimate.stopped` has the reason.
      structure: for a callable, a tree of arrays or ``jax.ShapeDtypeStruct`` like its vectors.

    Returns:
      An [`Estimate`][] of scalars; not finite, and not converged, where ``f`` is not finite on the
      spectrum.

    Raises:
      TypeError: if ``op`` or ``f`` is not callable or ``key`` is no key, and inside ``jit``.
      ValueError: on numbers out of range, or a callable without structure.

    Example:
      >>> import jax, jax.numpy as jnp, flatjax
      >>> d = jnp.linspace(1.0, 2.0, 50)
      >>> found = flatjax.trace_of_function(
      ...     lambda v: d * v, jnp.exp, key=jax.random.key(0), structure=d
      ... )
      >>> abs(float(found.value) / float(jnp.exp(d).sum()) - 1) < 0.01
      True

    References:
      Ubaru, Chen and Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", SIAM J.
      Matrix Anal. Appl. 2017.
    """
    op = as_operator(op, structure)
    if not callable(f):
        raise TypeError(f"f must be a function of eigenvalues, got {type(f).__name__}.")
    if num_probes < 2:
        raise ValueError("num_probes must be at least 2: one probe has no standard error.")
    if rtol is not None:
        checks.check_tolerance(rtol, "rtol")
    watch = watching.watch(
        "trace_of_function", progress, callback, max_seconds, on_interrupt, traced=(op, key)
    )  # fmt: skip
    with watch:
        found = quadratures(
            "trace_of_function", op, key, num_probes, num_steps, deflation_steps, 1e-3, watch, 2,
            reorthogonalize,
        )  # fmt: skip
    scalar = trees.dtype(op.structure)
    noise = _noise(found, op.size, scalar)
    at = functools.partial(evaluated, f, dtype=scalar, noise=noise)
    values, spreads = at(found.exact)
    known, uncertainty = values.sum(), spreads.sum()
    rest = op.size - found.exact.shape[0]
    if rest == 0:  # every eigenvalue is known
        value = exact.estimate(known, found.num_products, scalar, uncertainty)
        return watching.marked(value, watch)
    values, spreads = at(found.nodes)
    samples = rest * products(found.weights, values).sum(axis=1)
    uncertainty = uncertainty + rest * products(found.weights, spreads).sum(axis=1).mean()
    nodes, weights = found.coarser()
    coarse = rest * products(weights, at(nodes)[0]).sum(axis=1).mean()
    size = abs(known) + abs(samples).mean()
    value = from_samples(samples, known, size, found.num_products, rtol, scalar)
    with np.errstate(invalid="ignore"):  # infinite, both of them
        missed = abs(samples.mean() - coarse)
    value = _widened(value, missed + uncertainty, student(len(samples) - 1), rtol)
    return watching.marked(value, watch)


def _noise(found, dimension, dtype):
    """By how much rounding of the products moves an eigenvalue."""
    size = max(np.abs(found.exact).max(initial=0), np.abs(found.nodes).max(initial=0))
    # Of so small products underflow has left nothing that is known.
    lost = 0 < size < underflow(dimension, dtype)
    return np.inf if lost else 8 * float(jnp.finfo(dtype).eps) * size


def _widened(value: Estimate, quadrature: Any, t: float, rtol: float | None) -> Estimate:
    """An estimate with the error of the quadrature beside that of the probes.

    The interval keeps its skewness, which for powers above the first is large.
    """
    middle = value.value
    quadrature = cast(quadrature, middle.dtype)
    error = jnp.hypot(value.standard_error, quadrature)
    low, high = (jnp.hypot(end - middle, t * quadrature) for end in value.interval)
    small = error <= (DEFAULT_RTOL if rtol is None else rtol) * jnp.abs(middle)
    ends = jnp.stack([middle - low, middle + high])
    small = small & jnp.isfinite(error) & jnp.isfinite(middle)
    return value._replace(standard_error=error, interval=ends, converged=small)


def logdet(
    op: Any,
    *,
    key: jax.Array,
    num_probes: int = 8,
    num_steps: int = 30,
    deflation_steps: int | None = None,
    reorthogonalize: str = "full",
    rtol: float | None = None,
    progress: bool = False,
    callback: watching.Callback | None = None,
    max_seconds: float | None = None,
    on_interrupt: str = "raise",
    structure: Tree = None,
) -> Estimate:
    r"""The log-determinant of a positive definite operator, $\mathrm{tr} \log A$.

    Add a damping first where eigenvalues vanish: ``flatjax.damped(op, 1e-3)``. The logarithm is
    steep near zero, so that the quadrature needs steps in proportion to the root of the condition
    number; its part of the error is in the standard error, see [`trace_of_function`][].

    Args:
      op: a flatjax operator, or a traceable callable ``v -> A v``, positive definite.
      key: a PRNG key.
      num_probes: the probes, at least 2.
      num_steps: Lanczos steps per probe.
      deflation_steps: steps of the first run; default ``2 * num_steps``, 0 for none.
      reorthogonalize: ``"full"``, or ``"none"`` for runs of probes that hold three vectors and no
        basis, by default without a first run: see [`spectral_density`][].
      rtol: the standard error that counts as converged, relative to the value; default 5 %.
      progress: whether to show a bar on standard error, as in [`spectral_density`][].
      callback: ``callback(step, values, residual_norms)``, as in [`spectral_density`][].
      max_seconds: stop after so many seconds.
      on_interrupt: ``"return"`` or ``"raise"``, as in [`spectral_density`][]; a stop waits for four
        steps of two probes, and `Estimate.stopped` has the reason.
      structure: for a callable, a tree of arrays or ``jax.ShapeDtypeStruct`` like its vectors.

    Returns:
      An [`Estimate`][] of scalars; NaN, and not converged, for an operator with a negative
      eigenvalue.

    Raises:
      TypeError: if ``op`` is not callable or ``key`` is no key, and inside ``jit``.
      ValueError: on numbers out of range, or a callable without structure.

    Example:
      >>> import jax, jax.numpy as jnp, flatjax
      >>> d = jnp.linspace(1.0, 2.0, 50)
      >>> found = flatjax.logdet(lambda v: d * v, key=jax.random.key(0), structure=d)
      >>> abs(float(found.value) - float(jnp.log(d).sum())) < 0.2
      True
    """
    return trace_of_function(
        op,
        jnp.log,
        key=key,
        num_probes=num_probes,
        num_steps=num_steps,
        deflation_steps=deflation_steps,
        reorthogonalize=reorthogonalize,
        rtol=rtol,
        progress=progress,
        callback=callback,
        max_seconds=max_seconds,
        on_interrupt=on_interrupt,
        structure=structure,
    )


def frobenius_norm(
    op: Any,
    *,
    key: jax.Array,
    num_products: int = 40,
    rtol: float | None = None,
    progress: bool = False,
    callback: watching.Callback | None = None,
    max_seconds: float | None = None,
    on_interrupt: str = "raise",
    structure: Tree = None,
) -> Estimate:
    r"""The Frobenius norm, $\sqrt{\mathrm{tr} A^2}$, from products with deflated probes.

    Half of the products are a Lanczos run, on whose span $\|A Q\|_F$ is known; the others are
    probes of the complement, where $E \|A z\|^2$ is the rest of the square. The norm is the root
    of an unbiased estimate, its error by the delta method.

    Costs ``num_products`` products and half as many vectors of memory. Where the dimension is at
    most ``num_products``, all unit vectors are multiplied instead, and the norm is exact.

    Args:
      op: a flatjax operator, or a traceable callable ``v -> A v``, symmetric.
      key: a PRNG key.
      num_products: the products, at least 6.
      rtol: the standard error that counts as converged, relative to the value; default 5 %.
      progress: whether to show a bar on standard error, as in [`trace`][].
      callback: ``callback(step, value, standard_error)``, the products so far and two NumPy
        numbers: during the Lanczos run the norm that it knows and infinity. ``True`` stops.
      max_seconds: stop after so many seconds.
      on_interrupt: ``"return"`` or ``"raise"``, as in [`trace`][]; a stop waits for two probes, and
        `Estimate.stopped` has the reason.
      structure: for a callable, a tree of arrays or ``jax.ShapeDtypeStruct`` like its vectors.

    Returns:
      An [`Estimate`][] of scalars.

    Raises:
      TypeError: if ``op`` is not callable or ``key`` is no key, and inside ``jit``.
      ValueError: on numbers out of range, or a callable without structure.

    Example:
      >>> import jax, jax.numpy as jnp, flatjax
      >>> d = jnp.array([4.0, 3.0, 0.0, 0.0])
      >>> found = flatjax.frobenius_norm(lambda v: d * v, key=jax.random.key(0), structure=d)
      >>> round(float(found.value), 3)
      5.0

    References:
      Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1990 (of $A^2$);
      Gambhir, Stathopoulos and Orginos, "Deflation as a method of variance reduction", 2017.
    """
    op = as_operator(op, structure)
    key = checks.check_key(key)
    checks.check_count("num_products", num_products)
    if rtol is not None:
        checks.check_tolerance(rtol, "rtol")
    arguments.check_outside_jit("frobenius_norm", op, key)
    scalar = trees.dtype(op.structure)
    if op.size > num_products:
        checks.check_count("num_products", num_products, 6)
    watch = watching.watch(
        "frobenius_norm", progress, callback, max_seconds, on_interrupt, traced=(op, key),
        label="standard error",
    )  # fmt: skip
    with watch:
        if (dense := exact.matrix(op, num_products, watch)) is not None:
            norm, each = exact.norm(dense), exact.noise(dense, scalar)
            # Its derivative, and what the squares of the errors add.
            error = np.hypot(each, (op.size * each) ** 2 / (2 * norm)) if each > 0 else 0.0
            return exact.estimate(norm, op.size, scalar, error=error, rtol=rtol)
        op = flat.packed(op)
        rest = num_products - num_products // 2
        run, spent = relations.of_run(op, key, num_products // 2, watch, rest)
        count, unit = num_products - spent, run.unit
        known, unit = float(run.within(unit).squares), float(unit)

        def report(rows):
            value, error = so_far(np.concatenate(rows, dtype=np.float64), known)
            norm, n = np.sqrt(max(value, 0.0)), sum(map(len, rows))
            with np.errstate(divide="ignore", invalid="ignore"):
                error = error / (2 * norm)
            watch.report(spent + n, unit * norm, unit * error, left=count - n, ready=n > 1)

        # What a stop has left to do, nobody watches.
        count, seen = (count, watch) if watch.stopped is None else (2, watching.SILENT)
        squares = functools.partial(complement.squares, run)
        samples = sample(op, key, 1, count, squares, watch=seen, report=report)
    size = abs(known) + abs(samples).mean()
    square = from_samples(samples, known, size, spent + len(samples), None, scalar)
    return watching.marked(rooted(square, unit, rtol, op.size), watch)
