"""The covariance of per-example gradients, as a product that never forms the gradients."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from flatjax import collectives, trees
from flatjax.operators import derivatives
from flatjax.operators.base import operator, static
from flatjax.operators.chunks import Chunked, chunked
from flatjax.operators.data import (
    DataOperator,
    as_arrays,
    at_least_float32,
    check_arguments,
    matmul_precision,
    sliced,
    sliced_weights,
    transpose,
)
from flatjax.operators.hessian import check_loss


@dataclasses.dataclass(frozen=True)
class CovarianceProduct:
    """``J^T (w * (J v - mean))`` with J the Jacobian of the vector of per-example losses."""

    centered: bool

    def __call__(self, linear, weights, v, axis_name, offset):
        tangents = linear(v)
        # In at least float32: in bfloat16 a sum of 300 weights is already wrong.
        slopes = at_least_float32(tangents)
        weights = weights.astype(slopes.dtype)
        if self.centered:
            if offset is None:
                summed = (weights * slopes).sum()
                offset = collectives.weighted_mean(summed, weights.sum(), axis_name)
            slopes = slopes - offset.astype(slopes.dtype)
        return transpose(linear, v, (weights * slopes).astype(tangents.dtype))

    def gradient_sum(self, linear, weights, v):
        """``J^T w``, the weighted sum of the per-example gradients; ``v`` has their structure."""
        return transpose(linear, v, weights.astype(jax.eval_shape(linear, v).dtype))


@operator
class GradientCovariance(DataOperator):
    """The covariance of per-example gradients; made by [`gradient_covariance`][]."""

    params: Any
    batch: Any
    args: tuple
    weights: chex.Array
    loss_fn: Any = static()
    centered: Any = static(default=True)
    axis_name: Any = static(default=None)
    precision: Any = static(default="highest")

    @property
    def weight(self):
        return self.weights.sum()

    @property
    def rule(self):
        return CovarianceProduct(self.centered)

    @property
    def examples(self):
        return self.weights.shape[0]

    def part(self, start, size, keep):
        return dataclasses.replace(
            self,
            batch=sliced(self.batch, start, size),
            weights=sliced_weights(self.weights, start, size, keep),
        )

    @property
    def way(self):
        return derivatives.way_taken(_method, self)

    def _linear_map(self):
        params = collectives.varying(self.params, self.axis_name)
        return derivatives.linear_map(lambda p: self.loss_fn(p, self.batch, *self.args), params)

    def linear(self):
        return self._linear_map()[2], self.weights

    def gradient_sum(self) -> Any:
        """The weighted sum of the per-example gradients over all devices, in at least float32."""
        with matmul_precision(self.precision):
            params = collectives.varying(self.params, self.axis_name)

            def weighted(p):
                losses: Any = at_least_float32(self.loss_fn(p, self.batch, *self.args))
                return (self.weights.astype(losses.dtype) * losses).sum()

            gradient = jax.grad(weighted)(params)
        return collectives.total(trees.cast(gradient, self.structure), self.axis_name)


def _method(op):
    return op._linear_map()[0]


def gradient_covariance(
    loss_fn: Callable[..., chex.Array],
    params: Any,
    batch: Any,
    *args: Any,
    centered: bool = True,
    weights: Any = None,
    axis_name: collectives.AxisName = None,
    precision: str | None = "highest",
    chunk_size: int | None = None,
) -> GradientCovariance | Chunked:
    r"""The covariance of the per-example gradients (the gradient noise of SGD).

    $$K = \frac{1}{W} \sum_i w_i (g_i - \bar g)(g_i - \bar g)^\top, \qquad
    \bar g = \frac{1}{W} \sum_i w_i g_i,$$

    with the biased normalisation $1/W$, $W = \sum_i w_i$; ``centered=False`` leaves out $\bar g$
    and gives the uncentred second moment. A product is
    $J^\top (I - \mathbf{1}\mathbf{1}^\top / n) J v / n$ with $J$ the Jacobian of the vector of
    losses: one forward-mode and one reverse-mode pass, about 1.7 gradients (1.4 after
    ``linearize()``), and never an ``n x P`` matrix.

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, the per-example losses, shape ``(n,)``.
      params: a pytree of floating arrays.
      batch: a pytree whose leaves share a leading axis of ``n`` examples.
      *args: model state, dropout keys, anything else the loss takes; leaves of the operator.
      centered: whether the mean gradient is subtracted (over all devices and batches).
      weights: per-example weights or a padding mask, shape ``(n,)``.
      axis_name: the mesh axis over which the batch is split, inside ``shard_map`` or ``pmap``.
      precision: matmul precision of the products; ``None`` leaves the caller's default.
      chunk_size: examples of the batch a pass, to bound the memory; see [`chunked`][].

    Returns:
      An operator on pytrees like ``params``.

    Raises:
      TypeError: if ``params`` holds anything but real floating arrays.
      ValueError: for an empty batch, unequal leading axes, or a scalar loss.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> def losses_fn(w, x):
      ...     return x @ w  # the gradient of example i is x_i
      >>> x = jnp.array([[1.0, 0.0], [3.0, 0.0]])
      >>> K = flatjax.gradient_covariance(losses_fn, jnp.zeros(2), x)
      >>> (K @ jnp.ones(2)).tolist()
      [1.0, 0.0]
    """
    params, batch, args = as_arrays((params, batch, args))
    checked = check_arguments(params, batch, weights, axis_name, precision)
    if checked.n is None:
        raise ValueError("gradient_covariance needs a batch of examples, got one without leaves.")
    check_loss(loss_fn, params, batch, args, checked, scalar_allowed=False)
    weights = checked.weights
    if weights is None:
        weights = jnp.ones((checked.n,), trees.dtype(params))
    op = GradientCovariance(
        params, batch, args, weights, loss_fn, bool(centered), axis_name, precision
    )
    return chunked(op, chunk_size)
