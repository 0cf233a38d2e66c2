"""Materialised per-example gradients."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from flatjax import _collectives as collectives
from flatjax import _convolutions as convolutions
from flatjax import _loops as loops
from flatjax.operators import _terms as terms
from flatjax.operators._arguments import as_arrays, check_arguments, matmul_precision
from flatjax.operators._callables import follow, for_examples


def per_example_gradients(
    loss_fn: Callable[..., jax.Array],
    params: Any,
    batch: Any,
    *args: Any,
    chunk_size: int | None = None,
    precision: str | None = "highest",
) -> Any:
    """The gradient of every example's loss, with a leading axis of ``n``.

    Costs one gradient in flops and ``n * P`` numbers. The matrix-free
    [`gradient_covariance`][] needs none of that memory; this serves Gram matrices and statistics
    of single gradients. Inside ``shard_map`` and ``pmap`` it gives those of the device's own
    examples.

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, the mean loss (a scalar), the per-example losses
        or a [`Mean`][] (the loss of example i is then ``total_i / weight_i``); it is called on
        batches of one example, so a model with batch statistics sees batches of one.
      params: a pytree of floating arrays.
      batch: a pytree whose leaves share a leading axis of ``n`` examples.
      *args: anything else the loss takes, shared by the examples.
      chunk_size: how many gradients to form at once; ``None`` for all. Bounds the temporary memory
        of the passes, not that of the result.
      precision: matmul precision of the passes; ``None`` leaves the caller's default.

    Returns:
      A pytree like ``params``, every leaf with a leading axis ``n``.

    Raises:
      TypeError: if ``params`` holds anything but real floating arrays, or ``loss_fn`` is no
        function of them.
      ValueError: for an empty batch, unequal leading axes, a loss of another shape or a
        ``chunk_size`` below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> x = jnp.array([[1.0, 0.0], [3.0, 1.0]])
      >>> flatjax.per_example_gradients(lambda w, x: (x @ w).mean(), jnp.zeros(2), x).tolist()
      [[1.0, 0.0], [3.0, 1.0]]
    """
    params, batch, args = as_arrays((params, batch, args))
    # Inside shard_map the examples vary over devices. Params that do not would have gradients that
    # JAX sums over the devices.
    axes = tuple(collectives.axes_of((batch, args)))
    checked = check_arguments(params, batch, None, axes, precision)
    if checked.n is None:
        raise ValueError("per_example_gradients needs a batch of examples, got one without leaves.")
    followed = follow(loss_fn, "loss_fn", params, batch, args, axis_name=axes, precision=precision)
    terms.form_of(followed.out, checked, scalar_allowed=True)
    params = collectives.varying(params, axes)
    followed = for_examples(followed, params, batch, args, 1, precision)
    gradients = functools.partial(_gradients, followed, params, args=args, precision=precision)
    return loops.map_chunks(gradients, batch, chunk_size)


@functools.partial(convolutions.compiled, static_argnames="precision")
def _gradients(loss_fn, params, batch, args, precision):
    def one(example):
        return terms.gradient_of_one(loss_fn, params, example, args)[0]

    with matmul_precision(precision):
        return jax.vmap(one)(batch)
