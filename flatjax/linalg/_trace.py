"""The trace of an operator, with a standard error."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _checks as checks
from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.krylov._depth import deflate
from flatjax.linalg.probing import _exact as exact
from flatjax.linalg.probing import _leave_one_out as leave_one_out
from flatjax.linalg.probing import _probe_products as sampling
from flatjax.linalg.probing import _range as subspace
from flatjax.linalg.probing._estimate import Estimate, from_samples, from_spread, quiet, resolved
from flatjax.linalg.vectors import _arguments as arguments
from flatjax.linalg.vectors import _flat as packing
from flatjax.operators._base import Operator, as_operator

METHODS = ("hutchinson", "hutch++", "xtrace", "xnystrace", "deflated")
# The fewest products of each: two probes at least must differ for there to be a standard error.
LEAST = {"hutchinson": 2, "hutch++": 6, "xtrace": 4, "xnystrace": 2, "deflated": 4}
_DEFAULT = 40
_ADAPTIVE = 1000  # most products where a tolerance decides
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
    tol: float | None = None,
    probe_block: int = 1,
    structure: Tree = None,
) -> Estimate:
    r"""The trace of a symmetric operator, with a standard error and a 95 % interval.

    Where the dimension is at most ``num_products`` (16 where ``tol`` decides) the trace is summed
    up from the products with all unit vectors, whatever the method: exact, at as many products as
    dimensions.

    Methods, by the error after N products (:math:`\|\cdot\|_F` the Frobenius norm):

    - ``"hutchinson"``: :math:`\sqrt{2/N}\,\|A\|_F`. The right one for a flat spectrum, and the
      least memory. Unbiased.
    - ``"deflated"``: the trace on a Krylov space of up to N/2 vectors, exactly, and Hutchinson on
      what it leaves, which is what counts where a few eigenvalues dominate. It notices a flat
      spectrum and stops deflating. Unbiased; memory of the Krylov space.
    - ``"hutch++"``: the trace on the range of N/3 products, Hutchinson on what that leaves: about
      :math:`1/N` in place of :math:`1/\sqrt N`. Unbiased; memory of N/3 vectors.
    - ``"xtrace"``: N/2 probes, each measured on what the products of all others leave; at most as
      large an error as Hutch++. Memory of N/2 vectors.
    - ``"xnystrace"``: the same with a Nyström approximation from N probes, for positive
      semi-definite operators only (GGN, Fisher, gradient covariance). Memory of 2N vectors.

    Args:
      op: a flatjax operator, or a traceable callable ``v -> A v``, symmetric.
      key: a PRNG key.
      method: one of the above.
      num_products: the number of products; with ``tol``, the most. Default 40, with ``tol`` 1000.
      tol: for ``"hutchinson"`` and ``"deflated"`` called eagerly: stop where the standard error is
        at most ``tol`` times the magnitude of the value. Elsewhere it only decides ``converged``.
      probe_block: probes multiplied at once, for Hutchinson probes: faster, for as many times the
        memory of one product.
      structure: for a callable, a tree of arrays or ``jax.ShapeDtypeStruct`` like its vectors.

    Returns:
      An `Estimate`.

    Raises:
      TypeError: if ``op`` is not callable or ``key`` is no key.
      ValueError: on arguments out of range, too few products for the method, a callable without
        structure, or, eagerly, an indefinite operator with ``"xnystrace"``.

    Example:
      >>> import jax, jax.numpy as jnp, flatjax.linalg
      >>> d = jnp.arange(100.0)
      >>> t = flatjax.linalg.trace(lambda v: d * v, key=jax.random.key(0), structure=d)
      >>> float(t.value), int(t.num_products)
      (4950.0, 40)

    References:
      Hutchinson 1990; Meyer, Musco, Musco and Woodruff, "Hutch++", 2021; Epperly, Tropp and Webber,
      "XTrace: making the most of every sample in stochastic trace estimation", 2024.
    """
    op = as_operator(op, structure)
    key = checks.check_key(key)
    checks.check_choice("method", method, METHODS)
    checks.check_count("probe_block", probe_block)
    if tol is not None:
        checks.check_tolerance(tol)
    adaptive = tol is not None and method in ("hutchinson", "deflated")
    if num_products is None:
        num_products = _ADAPTIVE if adaptive else _DEFAULT
    checks.check_count("num_products", num_products)
    # With a tolerance it may stop after so many.
    budget = min(num_products, sampling.LEAST) if adaptive else num_products
    if (dense := exact.matrix(op, budget)) is not None:
        return exact.estimate(dense.trace(), op.size, trees.dtype(op.structure))
    if num_products < LEAST[method]:
        raise ValueError(
            f"num_products={num_products} is too small: method={method!r} needs at least "
            f"{LEAST[method]}."
        )
    run = {
        "hutchinson": _hutchinson,
        "hutch++": _hutchpp,
        "xtrace": _xtrace,
        "xnystrace": _xnystrace,
        "deflated": _deflated,
    }[method]
    with quiet():
        found = run(packing.packed(op), key, num_products, tol, probe_block)
    return resolved(found, found.value, op.size)


def _hutchinson(op, key, num_products, tol, block):
    return sampled(op, key, num_products, tol, block)


def _deflated(op, key, num_products, tol, block):
    # Two products at least are left for probes even where every one of the run's steps was a
    # breakdown that the host noticed late.
    depth = max(1, (num_products - 2) // 2)
    found = deflate(op, jax.random.fold_in(key, 0), depth, num_products)
    known, size = found.trace, found.absolute
    spent = found.num_products
    rank = found.rank
    return sampled(op, key, num_products - spent, tol, block, found.basis, rank, known, size, spent)


def _hutchpp(op, key, num_products, tol, block):
    count = min(num_products // 3, op.size)
    # A few signs can be linearly dependent on the support of a low-rank operator; normals are not.
    span = subspace.random_range(op, jax.random.fold_in(key, 0), count, "normal")
    projected = subspace.project(op, span.basis)
    diagonal = projected.diagonal()
    known, size = diagonal.sum(), abs(diagonal).sum()
    spent = 2 * count
    rank = (abs(span.triangle.diagonal()) > 0).sum()
    budget = num_products - spent
    return sampled(op, key, budget, tol, block, span.basis, rank, known, size, spent, False)


def sampled(
    op: Operator,
    key: jax.Array,
    budget: int,
    tol: float | None,
    block: int,
    basis: Tree = None,
    rank: Any = 0,
    known: Any = 0.0,
    size: Any = 0.0,
    spent: int = 0,
    adaptive: bool = True,
) -> Estimate:
    """Hutchinson's estimate on the complement of ``basis``, plus what is exact on its span.

    Args:
      op: the operator.
      key: the key of the probes.
      budget: products that may be spent on probes, at least 2.
      tol: the tolerance, or ``None``.
      block: probes at once.
      basis: orthonormal or zero vectors, or ``None``.
      rank: how many of them are not zero.
      known: the trace on their span.
      size: the magnitude of the terms of ``known``.
      spent: products spent on it.
      adaptive: whether ``tol`` stops early.

    Returns:
      An `Estimate`.
    """
    scalar = trees.dtype(op.structure)
    key = jax.random.fold_in(key, 1)

    def draw(first, count):
        return sampling.sample(
            op, key, first, count, sampling.quadratic_form, basis=basis, block=block
        )

    def estimate(forms, lengths):
        samples = forms if basis is None else sampling.less_length(forms, lengths, op.size - rank)
        scale = size + abs(forms).mean()
        return from_samples(samples, known, scale, spent + len(forms), tol, scalar)

    # A stopping rule needs some samples to look at; without one, all in one go.
    first = min(max(sampling.LEAST, block), budget) if adaptive and tol is not None else budget
    samples = draw(0, first)
    if loops.is_traced(samples):
        if first < budget:
            more = draw(first, budget - first)
            samples = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), samples, more)
        return estimate(*samples)
    result = estimate(*samples)
    while len(samples[0]) < budget and not bool(result.converged):
        step = min(max(sampling.CHECK_EVERY, block), budget - len(samples[0]))
        more = draw(len(samples[0]), step)
        samples = [np.concatenate(pair) for pair in zip(samples, more, strict=True)]
        result = estimate(*samples)
    return result


def _xtrace(op, key, num_products, tol, block):
    scalar = trees.dtype(op.structure)
    count = min(num_products // 2, op.size)
    key = jax.random.fold_in(key, 0)
    span = subspace.random_range(op, key, count, "sphere")
    projected = subspace.project(op, span.basis)
    overlaps = subspace.probe_coefficients(span.basis, key, op.structure, "sphere", span.triangle)
    eps = float(jnp.finfo(scalar).eps)
    unit = _unit(span.triangle)
    triangle = span.triangle / unit
    samples = leave_one_out.xtrace(triangle, projected / unit, overlaps, op.size, eps)
    size = abs(projected.diagonal() / unit).sum()
    return _leave_one_out("xtrace", samples, size, unit, 2 * count, tol, scalar)


def _xnystrace(op, key, num_products, tol, block):
    scalar = trees.dtype(op.structure)
    eps = float(jnp.finfo(scalar).eps)
    count = min(num_products, op.size)
    key = jax.random.fold_in(key, 0)
    # In float64 on the host the small matrices stand a condition number up to rounding of the
    # products; traced, in the working dtype, they do not.
    traced = loops.is_traced(arguments.first_product(op, trees.zeros(op.structure)))
    shift = 8 * eps**0.5 if traced else 64 * eps
    span = subspace.random_range(op, key, count, "sphere", shift=shift)
    overlaps = subspace.probe_coefficients(span.basis, key, op.structure, "sphere", span.triangle)
    gram = subspace.probe_gram(key, op.structure, count, "sphere", span.triangle)
    unit = _unit(span.triangle)
    nu = span.shift / unit
    samples, least = leave_one_out.xnystrace(span.triangle / unit, overlaps, gram, op.size, nu, eps)
    size = abs(samples).mean() + nu * op.size
    size = size / shift if traced else size
    result = _leave_one_out("xnystrace", samples, size, unit, count, tol, scalar)
    indefinite = least < -_INDEFINITE * eps
    if traced:
        error = jnp.where(indefinite, jnp.inf, result.standard_error)
        return result._replace(standard_error=error, converged=result.converged & ~indefinite)
    if indefinite:
        raise ValueError(
            'method="xnystrace" is for positive semi-definite operators, and this one has a '
            'negative eigenvalue; use method="xtrace".'
        )
    return result


def _unit(triangle):
    """A power of two near the size of the products, in which squares stay in range."""
    largest = abs(triangle).max()
    if isinstance(largest, jax.Array):
        return krylov.power_of_two(largest)
    return 2.0 ** np.floor(np.log2(largest)) if 0 < largest < np.inf else 1.0


def _leave_one_out(method, samples, size, unit, spent, tol, scalar):
    count = samples.shape[0]
    mean = samples.mean()
    error = _SHARED[method](count) * ((samples - mean) ** 2).sum() / (count * (count - 1))
    numbers = (unit * mean, unit * error**0.5, count - 1, unit * size)
    return from_spread(*numbers, spent, tol, scalar)
