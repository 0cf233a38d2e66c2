"""The trace of an operator, with a standard error."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _checks as checks
from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax import _watching as watching
from flatjax._trees import Tree
from flatjax._watching import SILENT, Watch
from flatjax.linalg.krylov._depth import deflate
from flatjax.linalg.probing import _exact as exact
from flatjax.linalg.probing import _leave_one_out as leave_one_out
from flatjax.linalg.probing import _probe_products as probe_products
from flatjax.linalg.probing._estimate import (
    Estimate,
    from_samples,
    from_spread,
    quiet,
    resolved,
    so_far,
)
from flatjax.linalg.probing._probe_products import quadratic_forms
from flatjax.linalg.probing._range import (
    probe_coefficients,
    probe_gram,
    random_range,
    rayleigh_quotient,
)
from flatjax.linalg.vectors import _arguments as arguments
from flatjax.linalg.vectors import _flat as flat
from flatjax.operators._base import Operator, as_operator

METHODS = ("hutchinson", "hutch++", "xtrace", "xnystrace", "deflated")
# The fewest products of each: two probes at least must differ for there to be a standard error.
LEAST = {"hutchinson": 2, "hutch++": 6, "xtrace": 4, "xnystrace": 2, "deflated": 4}
ADAPTIVE = ("hutchinson", "deflated")  # those that can stop between two probes
_NUM, _MAX = 40, 1000  # the default number of products, and the most of them under a goal
# Every pair of probes enters two samples of a leave-one-out estimator, so their spread gives a
# variance too small, and the more so the more probes there are. Measured on spectra flat, with
# outliers, and of power laws: XTrace by 1.0 to 1.6 with 20 probes and 1.3 to 1.9 with 40,
# XNysTrace by 1.1 to 2.4 with 20 to 60.
_SHARED = {
    "xtrace": lambda count: 1.5 * (count / 20) ** 0.25,
    "xnystrace": lambda count: 2.0,
}
# A negative eigenvalue of the small matrix is rounding up to so many units.
_INDEFINITE = 1e4


def trace(
    op: Any,
    *,
    key: jax.Array,
    method: str = "hutchinson",
    num_products: int | None = None,
    rtol: float | None = None,
    max_products: int | None = None,
    probe_block: int = 1,
    progress: bool = False,
    callback: watching.Callback | None = None,
    max_seconds: float | None = None,
    on_interrupt: str = "raise",
    structure: Tree = None,
) -> Estimate:
    r"""The trace of a symmetric operator, with a standard error and a 95 % interval.

    Spends ``num_products``, or products until the standard error is at most ``rtol`` times the
    magnitude of the value (from 8 probes half of that, from fewer than 8 none is believed),
    ``max_products`` at the most.

    Where the dimension is at most ``num_products`` (16 under ``rtol``) the trace is summed up from
    the products with all unit vectors, whatever the method: exact, at as many products as
    dimensions.

    Methods, by the error after N products ($\|\cdot\|_F$ is the Frobenius norm):

    - ``"hutchinson"``: $\sqrt{2/N}\,\|A\|_F$. The right one for a flat spectrum, and the
      least memory. Unbiased.
    - ``"deflated"``: the trace on a Krylov space of up to N/2 vectors, exactly, and Hutchinson on
      what it leaves, which is what counts where a few eigenvalues dominate. It notices a flat
      spectrum and stops deflating. Unbiased; memory of the Krylov space.
    - ``"hutch++"``: the trace on the range of N/3 products, Hutchinson on what that leaves: about
      $1/N$ in place of $1/\sqrt N$. Unbiased; memory of N/3 vectors.
    - ``"xtrace"``: N/2 probes, each measured on what the products of all others leave; at most as
      large an error as Hutch++. Memory of N/2 vectors.
    - ``"xnystrace"``: the same with a Nyström approximation from N probes, for positive
      semi-definite operators only (GGN, Fisher, gradient covariance). Memory of 2N vectors.

    Args:
      op: a flatjax operator, or a traceable callable ``v -> A v``, symmetric.
      key: a PRNG key.
      method: one of the above.
      num_products: the number of products; default 40. Not together with ``rtol``.
      rtol: the standard error to reach, relative to the value; for ``"hutchinson"`` and
        ``"deflated"``. Traced, ``max_products`` are spent, and it decides ``converged`` only.
      max_products: the most products under ``rtol``; default 1000.
      probe_block: probes multiplied at once, for Hutchinson probes: faster, for as many times the
        memory of one product.
      progress: whether to show a bar on standard error (by rich, if it is installed; lines where
        that is no terminal): products, relative standard error, time left.
      callback: ``callback(step, value, standard_error)`` after every few products, of slow ones
        after each: the products so far and two NumPy numbers. If it returns ``True``, the estimate
        stops. For ``"hutchinson"`` and ``"deflated"`` (while this deflates, the two are the trace
        on the span and infinity), as are ``max_seconds`` and ``on_interrupt``: the other methods
        have no estimate before the end.
      max_seconds: stop after so many seconds.
      on_interrupt: ``"return"``: the first Ctrl-C stops after the product in progress, the second
        raises; ``"raise"``: the first raises. A stop, of whatever kind, comes after two probes at
        the earliest (interrupted before, it raises) and gives their estimate, with the reason in
        `Estimate.stopped`.
      structure: for a callable, a tree of arrays or ``jax.ShapeDtypeStruct`` like its vectors.

    Returns:
      An [`Estimate`][], a scalar.

    Raises:
      TypeError: if ``op`` is not callable or ``key`` is no key, and inside ``jit`` for all methods
        but ``"hutchinson"`` and of what is to be watched (``progress`` and the three after it).
      ValueError: on arguments out of range or that exclude each other, too few products for the
        method, a stop of one that cannot, a callable without structure, or an indefinite operator
        with ``"xnystrace"``.

    Example:
      >>> import jax, jax.numpy as jnp, flatjax
      >>> d = jnp.arange(100.0)
      >>> t = flatjax.trace(lambda v: d * v, key=jax.random.key(0), structure=d)
      >>> float(t.value), t.num_products
      (4950.0, 40)

    References:
      Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1990; Meyer, Musco,
      Musco and Woodruff, "Hutch++: optimal stochastic trace estimation", 2021; Gambhir,
      Stathopoulos and Orginos, "Deflation as a method of variance reduction", 2017; Epperly, Tropp
      and Webber, "XTrace: making the most of every sample in stochastic trace estimation", 2024.
    """
    op = as_operator(op, structure)
    key = checks.check_key(key)
    checks.check_choice("method", method, METHODS)
    checks.check_count("probe_block", probe_block)
    most = _most(method, num_products, rtol, max_products)
    if method != "hutchinson":
        arguments.check_outside_jit(f"trace(method={method!r})", op, key)
    # Under a goal it may stop after so many.
    budget = most if rtol is None else min(most, probe_products.LEAST)
    if op.size > budget and most < LEAST[method]:
        raise ValueError(
            f"{'num' if rtol is None else 'max'}_products={most} is too small: method={method!r} "
            f"needs at least {LEAST[method]}."
        )
    watch = watching.watch(
        "trace", progress, callback, max_seconds, on_interrupt, traced=(op, key),
        label="standard error",
    )  # fmt: skip
    if method not in ADAPTIVE and not (callback is max_seconds is None and on_interrupt == "raise"):
        raise ValueError(
            f"method={method!r} cannot stop between two probes: leave out callback=, max_seconds= "
            "and on_interrupt=, or take one of " + ", ".join(map(repr, ADAPTIVE)) + "."
        )
    with watch, quiet():
        if (dense := exact.matrix(op, budget, watch)) is not None:
            scalar = trees.dtype(op.structure)
            error = op.size**0.5 * exact.noise(dense, scalar)
            return exact.estimate(dense.trace(), op.size, scalar, error=error, rtol=rtol)
        op = flat.packed(op)
        if method == "hutchinson":
            found = _probed(op, key, most, rtol, probe_block, watch=watch)
        elif method == "deflated":
            found = _deflated(op, key, most, rtol, probe_block, watch)
        elif method == "hutch++":
            found = _hutchpp(op, key, most, probe_block, watch)
        else:
            found = (_xtrace if method == "xtrace" else _xnystrace)(op, key, most, watch)
        return watching.marked(resolved(found, found.value, op.size), watch)


def _most(method, num_products, rtol, max_products):
    """The products to spend: an exact number, or the ceiling of a goal."""
    if rtol is None:
        if max_products is not None:
            raise ValueError("max_products is the ceiling of rtol=: give num_products instead.")
        most = _NUM if num_products is None else num_products
        checks.check_count("num_products", most)
        return most
    checks.check_tolerance(rtol, "rtol")
    if num_products is not None:
        raise ValueError(
            "give either num_products (an exact number) or rtol (a goal, with max_products)."
        )
    if method not in ADAPTIVE:
        raise ValueError(
            f"method={method!r} cannot stop between two probes: give num_products in place of "
            "rtol, or take one of " + ", ".join(map(repr, ADAPTIVE)) + "."
        )
    most = _MAX if max_products is None else max_products
    checks.check_count("max_products", most)
    return most


class _Known(NamedTuple):
    """What is known of an operator on the span of orthonormal vectors.

    Attributes:
      basis: the vectors, orthonormal or zero.
      rank: how many of them are not zero.
      trace: the trace on their span.
      absolute: the magnitude of the terms of that trace.
      num_products: the products spent.
    """

    basis: Tree = None
    rank: int = 0
    trace: float = 0.0
    absolute: float = 0.0
    num_products: int = 0


def _deflated(op, key, most, rtol, block, watch):
    # Two products at least are left for probes even where every one of the run's steps was a
    # breakdown that the host noticed late.
    depth = max(1, (most - 2) // 2)
    found = deflate(op, jax.random.fold_in(key, 0), depth, most, watch)
    known = _Known(found.basis, found.rank, found.trace, found.absolute, found.num_products)
    return _probed(op, key, most, rtol, block, known, watch)


def _hutchpp(op, key, num_products, block, watch):
    count = min(num_products // 3, op.size)
    # A few signs can be linearly dependent on the support of a low-rank operator; normals are not.
    span = random_range(op, jax.random.fold_in(key, 0), count, "normal", watch=watch)
    diagonal = rayleigh_quotient(op, span.basis, watch).diagonal()
    rank = int((abs(span.triangle.diagonal()) > 0).sum())
    known = _Known(span.basis, rank, diagonal.sum(), abs(diagonal).sum(), 2 * count)
    return _probed(op, key, num_products, None, block, known, watch)


def _probed(
    op: Operator,
    key: jax.Array,
    most: int,
    rtol: float | None,
    block: int,
    known: _Known = _Known(),  # noqa: B008
    watch: Watch = SILENT,
) -> Estimate:
    """Hutchinson's estimate on the complement of what is known, plus what is."""
    scalar, budget = trees.dtype(op.structure), most - known.num_products
    key = jax.random.fold_in(key, 1)

    def drawn(forms, norms):
        if known.basis is None:
            return forms
        return probe_products.less_norms(forms, norms, op.size - known.rank)

    def draw(first, count, before=()):
        def report(rows):
            forms, norms = (
                np.concatenate(a, dtype=np.float64) for a in zip(*before, *rows, strict=True)
            )
            value, error = so_far(drawn(forms, norms), known.trace)
            n, spent = len(forms), known.num_products + len(forms)
            left: Any = most - spent
            if rtol is not None and value:  # the error falls as the root of the probes
                left = min(float(left), max(0.0, n * ((error / (rtol * value)) ** 2 - 1)))
            watch.report(spent, value, error, left=left, ready=n > 1)

        # What a stop has left to do, nobody watches.
        seen = SILENT if watch.stopped is not None else watch
        return quadratic_forms(
            op, key, first, count, basis=known.basis, block=block, watch=seen, report=report
        )

    def estimate(forms, norms):
        samples = drawn(forms, norms)
        size = known.absolute + abs(forms).mean()
        spent = known.num_products + forms.shape[0]
        return from_samples(samples, known.trace, size, spent, rtol, scalar)

    traced = loops.is_traced(op, key, jnp.zeros(()))
    if watch.stopped is not None:
        return estimate(*draw(0, 2))
    if rtol is None or traced:
        return estimate(*draw(0, budget))
    # A stopping rule needs some samples to look at.
    samples = draw(0, min(max(probe_products.EARLY, block), budget))
    result = estimate(*samples)
    while (done := len(samples[0])) < budget and not _settled(result, done, rtol):
        if watch.stopped is not None:
            break
        more = draw(done, min(max(probe_products.CHECK_EVERY, block), budget - done), [samples])
        samples = [np.concatenate(pair) for pair in zip(samples, more, strict=True)]
        result = estimate(*samples)
    return result


def _settled(found: Estimate, count: int, rtol: float) -> bool:
    """Whether so many samples are believed to have reached the goal."""
    error, value = float(found.standard_error), abs(float(found.value))
    sure = count >= probe_products.LEAST or 2 * error <= rtol * value
    return sure and bool(found.converged)


def _xtrace(op, key, num_products, watch):
    scalar = trees.dtype(op.structure)
    count = min(num_products // 2, op.size)
    key = jax.random.fold_in(key, 0)
    span = random_range(op, key, count, "sphere", watch=watch)
    projected = rayleigh_quotient(op, span.basis, watch)
    overlaps = probe_coefficients(span.basis, key, op.structure, "sphere")
    unit = _unit(span.triangle)
    triangle, eps = span.triangle / unit, float(jnp.finfo(scalar).eps)
    samples = leave_one_out.xtrace(triangle, projected / unit, overlaps, op.size, eps)
    size = abs(projected.diagonal() / unit).sum()
    return _leave_one_out("xtrace", samples, size, unit, 2 * count, scalar)


def _xnystrace(op, key, num_products, watch):
    scalar = trees.dtype(op.structure)
    eps = float(jnp.finfo(scalar).eps)
    count = min(num_products, op.size)
    key = jax.random.fold_in(key, 0)
    # In float64 on the host the small matrices stand a condition number up to rounding of the
    # products.
    span = random_range(op, key, count, "sphere", shift=64 * eps, watch=watch)
    overlaps = probe_coefficients(span.basis, key, op.structure, "sphere")
    gram = probe_gram(key, op.structure, count, "sphere")
    unit = _unit(span.triangle)
    nu = span.shift / unit
    samples, least = leave_one_out.xnystrace(span.triangle / unit, overlaps, gram, op.size, nu, eps)
    if least < -_INDEFINITE * eps:
        raise ValueError(
            'method="xnystrace" is for positive semi-definite operators, and this one has a '
            'negative eigenvalue; use method="xtrace".'
        )
    size = abs(samples).mean() + nu * op.size
    return _leave_one_out("xnystrace", samples, size, unit, count, scalar)


def _unit(triangle):
    """A power of two near the size of the products, in which squares stay in range."""
    largest = abs(triangle).max()
    return 2.0 ** np.floor(np.log2(largest)) if 0 < largest < np.inf else 1.0


def _leave_one_out(method, samples, size, unit, spent, scalar):
    count = samples.shape[0]
    mean = samples.mean()
    error = _SHARED[method](count) * ((samples - mean) ** 2).sum() / (count * (count - 1))
    return from_spread(unit * mean, unit * error**0.5, count - 1, unit * size, spent, None, scalar)
