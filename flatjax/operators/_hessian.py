"""The Hessian of a mean loss, by forward-over-reverse products."""

from collections.abc import Callable
from typing import Any

import jax

from flatjax import _collectives as collectives
from flatjax import losses
from flatjax.operators import _derivatives as derivatives
from flatjax.operators._arguments import as_arrays, check_arguments
from flatjax.operators._base import operator
from flatjax.operators._callables import follow
from flatjax.operators._chunks import Chunked, chunked
from flatjax.operators._terms import LossOperator, form_of
from flatjax.operators._weighting import size_of, with_copies


@operator
class HessianProduct:
    """The rule of a Hessian: its linear map is the product."""

    def __call__(self, linear, aux, v, axis_name):
        del aux, axis_name
        return linear(v)


@operator
class Hessian(LossOperator):
    """The Hessian of a mean loss; made by [`hessian`][]."""

    @property
    def rule(self):
        return HessianProduct()

    def traced_way(self):
        return self._product(self.params)[0]

    def linear(self):
        params = collectives.varying(self.params, self.axis_name)
        return derivatives.hessian_map(self.local_loss, params), ()

    def linearize(self):
        try:
            return super().linearize()
        except Exception:
            # Central differences leave no residuals to keep.
            if self.method == derivatives.CENTRAL_DIFFERENCE:
                return self
            raise

    def local_mean(self, v):
        return self._product(v)[1]

    def _product(self, v):
        params = collectives.varying(self.params, self.axis_name)
        return derivatives.hessian_product(self.local_loss, params, v, like=self)


def hessian(
    loss_fn: Callable[..., jax.Array | losses.Mean],
    params: Any,
    batch: Any,
    *args: Any,
    weights: Any = None,
    axis_name: collectives.AxisName = None,
    precision: str | None = "highest",
    chunk_size: int | None = None,
    check: bool = True,
) -> Hessian | Chunked:
    r"""The Hessian of the mean loss over a batch.

    $$H = \frac{1}{W} \sum_i w_i \nabla^2 \ell_i(\theta), \qquad W = \sum_i w_i,$$

    with $w_i = 1$ unless ``weights`` are given, and the sums over all devices with ``axis_name``.
    An example of weight zero does not count, whatever it holds. Products are forward-over-reverse
    (Pearlmutter 1994, Neural Computation 6(1)): they cost about 2.7 gradients, 2.0 after
    ``linearize()``, which keeps the residuals of one gradient in memory.
    Where the gradient has no forward-mode rule they fall back to reverse-over-reverse, and from
    there to central differences of gradients (error about $\epsilon^{2/3}$, 2e-5 in float32);
    the operator's ``method`` and ``relative_noise`` say so.

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, the mean loss (a scalar), the per-example
        losses, shape ``(n,)``, or a [`Mean`][] for another normaliser than the number of examples
        (tokens, a mask, class weights), as ``loss.mean(outputs, targets)`` of a library loss is. A
        sum cannot be told from a mean of one batch.
      params: a pytree of floating arrays.
      batch: a pytree whose leaves share a leading axis of ``n`` examples; ``None`` for a loss
        without data.
      *args: model state, dropout keys, anything else the loss takes; leaves of the operator.
      weights: per-example weights or a padding mask, shape ``(n,)``; needs per-example losses.
      axis_name: the mesh axis over which the batch is split, inside ``shard_map`` or ``pmap``.
      precision: matmul precision of the products; ``None`` leaves the caller's default.
      chunk_size: examples per pass: the temporary memory of a product is that of one chunk, its
        flops are those of the whole batch. The last chunk overlaps the one before it and counts
        only what is left; ``linearize()`` keeps nothing. ``None`` for one pass.
      check: with ``chunk_size`` and a scalar loss, whether to look once that it is a mean over the
        examples; ``False`` for a loss that draws numbers or has batch statistics on purpose.

    Returns:
      An operator on pytrees like ``params``.

    Raises:
      TypeError: if ``params`` holds anything but real floating arrays.
      ValueError: for an empty batch, unequal leading axes, a loss of another shape, weights beside
        a scalar loss, a scalar loss that is no mean over the examples of a chunk, or a batch that
        varies over a mesh axis which ``axis_name`` does not name.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> def loss_fn(w, x):
      ...     return 0.5 * (x @ w) ** 2
      >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> H = flatjax.hessian(loss_fn, jnp.zeros(2), x)  # x'x / 2
      >>> (H @ jnp.ones(2)).tolist()
      [0.5, 2.0]
    """
    params, batch, args = as_arrays((params, batch, args))
    checked = check_arguments(params, batch, weights, axis_name, precision, args=args)
    followed = follow(
        loss_fn, "loss_fn", params, batch, args, axis_name=axis_name, precision=precision
    )
    form = form_of(followed.out, checked, scalar_allowed=True)
    op = Hessian(
        params, with_copies(batch, checked.weights), args, checked.weights, followed, form,
        checked.n, axis_name, precision, size_of(checked.weights),
    )  # fmt: skip
    return chunked(op, chunk_size, check=check)
