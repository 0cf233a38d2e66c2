"""True residuals and the noise floor of computed eigenpairs."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatjax import loops, trees
from flatjax.linalg import basis as bases
from flatjax.linalg import probes
from flatjax.linalg.estimate import underflow
from flatjax.operators.base import Operator

Tree = Any


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
