"""The Hessian of a mean loss, by forward-over-reverse products."""

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
    check_function,
    sliced,
    sliced_weights,
)


@operator
class Hessian(DataOperator):
    """The Hessian of a mean loss; made by [`hessian`][]."""

    params: Any
    batch: Any
    args: tuple
    weights: chex.Array | None
    loss_fn: Any = static()
    n: Any = static()
    axis_name: Any = static(default=None)
    precision: Any = static(default="highest")

    @property
    def weight(self):
        dtype = trees.dtype(self.params)
        return jnp.asarray(self.n or 1, dtype) if self.weights is None else self.weights.sum()

    @property
    def rule(self):
        return _apply

    @property
    def examples(self):
        return self.n

    @property
    def per_example(self):
        loss = jax.eval_shape(self.loss_fn, self.params, self.batch, *self.args)
        return loss.ndim > 0

    def part(self, start, size, keep):
        return dataclasses.replace(
            self,
            batch=sliced(self.batch, start, size),
            weights=sliced_weights(self.weights, start, size, keep),
            n=size,
        )

    def loss_sum(self, params):
        """The weighted sum of the losses: the mean times the total weight."""
        loss = at_least_float32(self.loss_fn(params, self.batch, *self.args))
        if loss.ndim == 0:
            return loss * self.weight.astype(loss.dtype)
        return (
            loss.sum() if self.weights is None else (loss * self.weights.astype(loss.dtype)).sum()
        )

    @property
    def way(self):
        return derivatives.way_taken(_method, self)

    def linear(self):
        params = collectives.varying(self.params, self.axis_name)
        return derivatives.hessian_map(self.loss_sum, params)[1], ()

    def linearize(self):
        try:
            return super().linearize()
        except Exception:
            # Central differences leave no residuals to keep.
            if self.method == derivatives.CENTRAL_DIFFERENCE:
                return self
            raise

    def local_sum(self, v, offset=None):
        del offset
        return self._product(v)[1]

    def _product(self, v):
        params = collectives.varying(self.params, self.axis_name)
        return derivatives.hessian_product(self.loss_sum, params, v, like=self)


def _method(op):
    return op._product(op.params)[0]


def _apply(linear, aux, v, axis_name, offset):
    del aux, axis_name, offset
    return linear(v)


def hessian(
    loss_fn: Callable[..., chex.Array],
    params: Any,
    batch: Any,
    *args: Any,
    weights: Any = None,
    axis_name: collectives.AxisName = None,
    precision: str | None = "highest",
    chunk_size: int | None = None,
) -> Hessian | Chunked:
    r"""The Hessian of the mean loss over a batch.

    $$H = \frac{1}{W} \sum_i w_i \nabla^2 \ell_i(\theta), \qquad W = \sum_i w_i,$$

    with $w_i = 1$ unless ``weights`` are given, and the sums over all devices with ``axis_name``.
    Products are forward-over-reverse (Pearlmutter 1994, Neural Computation 6(1)): they cost about
    2.7 gradients, 2.0 after ``linearize()``, which keeps the residuals of one gradient in memory.
    Where the gradient has no forward-mode rule they fall back to reverse-over-reverse, and from
    there to central differences of gradients (error about $\epsilon^{2/3}$, 2e-5 in float32);
    the operator's ``method`` and ``relative_noise`` say so.

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, the mean loss (a scalar) or the per-example
        losses, shape ``(n,)``.
      params: a pytree of floating arrays.
      batch: a pytree whose leaves share a leading axis of ``n`` examples; ``None`` for a loss
        without data.
      *args: model state, dropout keys, anything else the loss takes; leaves of the operator.
      weights: per-example weights or a padding mask, shape ``(n,)``; needs per-example losses.
      axis_name: the mesh axis over which the batch is split, inside ``shard_map`` or ``pmap``.
      precision: matmul precision of the products; ``None`` leaves the caller's default.
      chunk_size: examples of the batch a pass, to bound the memory; see [`chunked`][].

    Returns:
      An operator on pytrees like ``params``.

    Raises:
      TypeError: if ``params`` holds anything but real floating arrays.
      ValueError: for an empty batch, unequal leading axes, a loss of another shape, or weights
        beside a scalar loss.

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
    checked = check_arguments(params, batch, weights, axis_name, precision)
    check_loss(loss_fn, params, batch, args, checked, scalar_allowed=True)
    op = Hessian(params, batch, args, checked.weights, loss_fn, checked.n, axis_name, precision)
    return chunked(op, chunk_size)


def check_loss(loss_fn, params, batch, args, checked, *, scalar_allowed: bool) -> None:
    """Raise unless ``loss_fn`` gives a scalar or one value an example, as the operator needs.

    Args:
      loss_fn: the loss.
      params: the params.
      batch: the batch.
      args: the further arguments.
      checked: the outcome of ``check_arguments``.
      scalar_allowed: whether a mean loss will do.

    Raises:
      TypeError: if ``loss_fn`` is no hashable function, or returns no real floating array.
      ValueError: for another shape, or weights beside a scalar loss.
    """
    check_function(loss_fn, "loss_fn")
    out = jax.eval_shape(loss_fn, params, batch, *args)
    if not hasattr(out, "shape") or not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(
            f"loss_fn must return one real floating array, got {out}: drop auxiliary outputs."
        )
    if out.shape == ():
        if not scalar_allowed:
            raise ValueError(
                "this operator needs per-example losses: loss_fn must return shape (n,), got a "
                "scalar. Do not take the mean over the batch."
            )
        if checked.weights is not None:
            raise ValueError(
                "weights need per-example losses: loss_fn must return shape (n,), got a scalar."
            )
    elif checked.n is None or out.shape != (checked.n,):
        raise ValueError(
            f"loss_fn must return a scalar or one value an example, shape ({checked.n},), got "
            f"{out.shape}."
        )
