"""The covariance of per-example gradients, as a product that never forms the gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flatjax import _collectives as collectives
from flatjax import _trees as trees
from flatjax import losses
from flatjax.operators import _derivatives as derivatives
from flatjax.operators import _weighting as weighting
from flatjax.operators._arguments import as_arrays, check_arguments
from flatjax.operators._base import operator, static
from flatjax.operators._callables import follow
from flatjax.operators._chunks import Chunked, chunked
from flatjax.operators._terms import LossOperator, form_of


@operator
class CovarianceProduct:
    """``J^T (s * (J v - mean))`` with J the Jacobian of the per-example losses, s their shares."""

    centered: bool = static()

    def __call__(self, linear, aux, v, axis_name):
        weights, scale = aux
        tangents = linear(v)
        factors, slopes = self._slopes(tangents, weights, scale)
        if self.centered:
            weights = weights.astype(slopes.dtype)
            summed = (weights * slopes).sum()
            slopes = slopes - collectives.weighted_mean(summed, weights.sum(), axis_name)
        return _back(linear, v, factors * slopes, tangents)

    def moments(self, linear, aux, v):
        """The product centred by these examples alone; the mean slope; the mean gradient."""
        weights, scale = aux
        tangents = linear(v)
        factors, slopes = self._slopes(tangents, weights, scale)
        weights = weights.astype(slopes.dtype)
        total = weights.sum()
        total = jnp.where(total == 0, jnp.ones_like(total), total)
        mean = (weights * slopes).sum() / total
        product = _back(linear, v, factors * (slopes - mean), tangents)
        return product, mean, _back(linear, v, weights / total, tangents)

    def _slopes(self, tangents, weights, scale):
        # In at least float32: in bfloat16 a sum of 300 weights is already wrong.
        slopes = weighting.where_rows(weights != 0, weighting.at_least_float32(tangents))
        return weighting.shares(weights, scale).astype(slopes.dtype), slopes


def _back(linear, v, cotangents, tangents):
    # Weights of one are the same on every device, and a cotangent is what the tangents are.
    axes = tuple(collectives.varying_axes(tangents))
    return linear.transpose(v, collectives.varying(cotangents.astype(tangents.dtype), axes))


@operator
class GradientCovariance(LossOperator):
    """The covariance of per-example gradients; made by [`gradient_covariance`][]."""

    centered: Any = static(default=True)

    @property
    def rule(self):
        return CovarianceProduct(self.centered)

    def linear(self):
        params = collectives.varying(self.params, self.axis_name)
        _, linear = derivatives.linear_map(lambda p: self.terms(p)[0], params)
        return linear, (self.example_weights, self.scale)

    def _facts(self):
        return {**super()._facts(), "centered": str(self.centered)}


def gradient_covariance(
    loss_fn: Callable[..., jax.Array | losses.Mean],
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
    and gives the uncentred second moment. For a loss that returns a [`Mean`][] of rows $g_i$ is the
    gradient of $\text{total}_i / \text{weight}_i$ and $w_i$ has the factor $\text{weight}_i$, so
    that $\bar g$ is the gradient of the mean loss however the data are cut. A product is
    $J^\top (I - \mathbf{1}\mathbf{1}^\top / n) J v / n$ with $J$ the Jacobian of the vector of
    losses: one forward-mode and one reverse-mode pass, about 1.7 gradients (1.4 after
    ``linearize()``), and never an ``n x P`` matrix. Centred over chunks or a stream, whose mean
    gradient is found anew in each product, it is about 2.3 gradients.

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, the per-example losses, shape ``(n,)``,
        or a [`Mean`][] of such rows.
      params: a pytree of floating arrays.
      batch: a pytree whose leaves share a leading axis of ``n`` examples.
      *args: model state, dropout keys, anything else the loss takes; leaves of the operator.
      centered: whether the mean gradient is subtracted (over all devices and batches).
      weights: per-example weights or a padding mask, shape ``(n,)``.
      axis_name: the mesh axis over which the batch is split, inside ``shard_map`` or ``pmap``.
      precision: matmul precision of the products; ``None`` leaves the caller's default.
      chunk_size: examples per pass, ``None`` for one pass over all; see [`hessian`][].

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
    checked = check_arguments(params, batch, weights, axis_name, precision, args=args)
    if checked.n is None:
        raise ValueError("gradient_covariance needs a batch of examples, got one without leaves.")
    followed = follow(
        loss_fn, "loss_fn", params, batch, args, axis_name=axis_name, precision=precision
    )
    form = form_of(followed.out, checked, scalar_allowed=False)
    batch = weighting.with_copies(batch, checked.weights)
    weights = checked.weights
    if weights is None:
        # A leaf, no constant: folded into the program, it is rounded otherwise at every use.
        weights = jnp.ones((checked.n,), trees.dtype(params))
    op = GradientCovariance(
        params, batch, args, weights, followed, form, checked.n, axis_name, precision,
        weighting.size_of(checked.weights), bool(centered),
    )  # fmt: skip
    return chunked(op, chunk_size)
