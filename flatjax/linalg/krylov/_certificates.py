"""True residuals and the noise floor of computed eigenpairs."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _probes as probes
from flatjax.operators._base import Operator


class Certificate(NamedTuple):
    r"""What is known about computed eigenpairs.

    Attributes:
      residual_norms: ``(k,)``, :math:`\|A v_i - \lambda_i v_i\|`, from one product each.
      noise_floor: the size below which an eigenvalue is noise of the products.
      num_products: the products spent, k + 1.
    """

    residual_norms: jax.Array
    noise_floor: jax.Array
    num_products: int


@jax.jit
def _check(carry, vectors, values, i, w, probe, probe_product):
    y = bases.row(vectors, i)
    # A symmetric matrix has no gap; the noise e(y) of a product shows in it as probe . e(y), whose
    # mean square over standard normal probes is |e(y)|^2.
    gap = trees.vdot(probe, w) - trees.vdot(y, probe_product)
    residual = trees.norm(trees.axpy(-values[i], y, w))
    return carry[0].at[i].set(residual), carry[1].at[i].set(jnp.abs(gap))


@functools.partial(jax.jit, static_argnums=4)
def _floor(residuals, gaps, norm, estimates, lost):
    rounding = 8 * jnp.finfo(residuals.dtype).eps * norm
    largest = jnp.where(gaps.max() > 0, gaps.max(), 1)
    spread = largest * jnp.sqrt(jnp.mean(jnp.square(gaps / largest)))
    floor = jnp.maximum(rounding, 2 * spread)
    # Of so small products underflow has left nothing that is known.
    floor = jnp.where((norm > 0) & (norm < lost), jnp.nan, floor)
    if estimates is None:
        return floor
    return jnp.maximum(floor, jnp.max(jnp.where(residuals > 1.5 * estimates, residuals, 0)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _zeros(k, dtype):
    return jnp.zeros(k, dtype), jnp.zeros(k, dtype)


_row = jax.jit(bases.row)


def certify(
    op: Operator,
    values: jax.Array,
    vectors: Tree,
    norm: jax.Array,
    key: jax.Array,
    estimates: jax.Array | None = None,
) -> Certificate:
    r"""Residuals of eigenpairs and the noise floor, at one product a pair and one more.

    The noise of a product is measured by the symmetry gap :math:`|u^\top A v - v^\top A u|` between
    each eigenvector and one random vector. It is at least 8 units of rounding, and at least every
    residual that the Lanczos relation does not account for: products that were exact would have it.
    NaN where the operator is so small that its products underflow.

    Args:
      op: the operator.
      values: ``(k,)``.
      vectors: unit vectors with leading axis k.
      norm: the largest eigenvalue of the operator in magnitude, as far as known.
      key: a PRNG key for the random vector.
      estimates: ``(k,)``, the residual norms by the Lanczos relation, if there is one.

    Returns:
      A `Certificate`.
    """
    k = values.shape[0]
    product = loops.product(op)
    probe = probes.probe(key, op.structure, "normal")
    probe_product = product(probe)

    def one(i, carry):
        index = jnp.asarray(i, jnp.int32)
        w = product(_row(vectors, index))
        return _check(carry, vectors, values, index, w, probe, probe_product)

    carry = bases.vary_like(_zeros(k, values.dtype), probe_product, vectors, values)
    if op.host_driven:
        with loops.device(False):
            residuals, gaps = loops.fori(k, one, carry)
    else:
        residuals, gaps = loops.fori(k, one, carry, like=probe_product)
    floor = _floor(residuals, gaps, norm, estimates, underflow(op.size, values.dtype))
    return Certificate(residuals, floor, k + 1)


def underflow(size: int, dtype: Any) -> float:
    """The norm of an operator below which underflow may have taken a part of its products.

    Every term of a product, of which a dense matrix has ``size`` an entry, is lost below the least
    normal number. All terms together must be far less than a tolerance.
    """
    info = jnp.finfo(dtype)
    return float(size) ** 1.5 * float(info.tiny) / float(info.eps) ** 0.5


class Eigenpairs(NamedTuple):
    r"""Eigenpairs and what is known about them.

    Attributes:
      values: ``(k,)``, descending; finite, or NaN throughout (not converged, not resolved) where a
        product was not finite.
      vectors: unit vectors, a tree with leading axis k.
      residual_norms: ``(k,)``, :math:`\|A v - \lambda v\|`, computed from one more product each:
        an eigenvalue of A lies within this distance of the value.
      converged: ``(k,)`` booleans: the residual is at most ``tol`` times the value's magnitude, or
        below the noise floor.
      resolved: ``(k,)`` booleans: the value's magnitude is above the noise floor. Print the others
        as "< floor": their sign means nothing.
      num_products: the number of products spent, those of the certificate included.
      noise_floor: the noise of a product, :math:`\epsilon_{mv}|\lambda|_{max}`, measured from the
        symmetry gap :math:`|u^\top A v - v^\top A u|` and from residuals larger than the Lanczos
        relation has them; at least 8 units of rounding.
      complete: whether these are the wanted pairs, none of them skipped: ``True`` where a look for
        others found none, ``False`` where a wanted pair is known to be missing (none counts as
        converged then), ``None`` where nobody looked to the end: traced, without ``verify``, of a
        single pair, in blocks, or when the products were spent before.
    """

    values: jax.Array
    vectors: Tree
    residual_norms: jax.Array
    converged: jax.Array
    resolved: jax.Array
    num_products: int
    noise_floor: jax.Array
    complete: bool | None = None
