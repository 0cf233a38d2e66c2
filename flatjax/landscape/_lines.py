"""The loss along a straight line through parameter space."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatjax import _collectives as collectives
from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.measures import _objective as objective


class Line(NamedTuple):
    r"""The loss along a line.

    Attributes:
      positions: $t$, shape ``(m,)``, in units of the direction's length.
      losses: the mean loss at $\theta + t\, d$, shape ``(m,)``; not finite where the
        loss is not.
    """

    positions: jax.Array
    losses: jax.Array


def loss_along(
    loss_fn: Callable[..., jax.Array],
    params: Tree,
    batch: Any,
    *args: Any,
    direction: Tree,
    positions: Any,
    weights: Any = None,
    axis_name: collectives.AxisName = None,
) -> Line:
    r"""The mean loss $L(\theta + t\, d)$ at every $t$ of ``positions``.

    Cost: one forward pass per position, and the memory of one. One compiled program serves all
    directions, params and batches of the same shapes.

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, the mean loss (a scalar), the per-example
        losses, shape ``(n,)``, whose mean is taken, or a [`Mean`][].
      params: a pytree of floating arrays, the point at $t = 0$. The points are formed in at least
        float32, and the loss is called with these, whatever the params' dtype.
      batch: what the loss is evaluated on.
      *args: model state, anything else the loss takes.
      direction: a pytree like ``params``. Its length is the caller's: an eigenvector of norm one
        makes $t$ a distance, a filter-normalised direction makes it a fraction of the weights.
      positions: the values of $t$, shape ``(m,)``.
      weights: per-example weights or a padding mask, shape ``(n,)``; the loss must then be that of
        each example.
      axis_name: inside ``shard_map`` or ``pmap``, the mesh axis over which the batch is split; a
        batch that is split over an Auto mesh outside of them needs none.

    Returns:
      A [`Line`][].

    Raises:
      TypeError: if the direction has another tree structure than the params.
      ValueError: if a leaf has another shape, ``positions`` is not one-dimensional, the loss is
        neither a scalar nor one number per example, or weights are given with a scalar loss or in
        another number than there are examples.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> loss = lambda w, x: 0.5 * (x @ w) ** 2
      >>> w, x = jnp.zeros(2), jnp.eye(2)
      >>> line = flatjax.loss_along(loss, w, x, direction=jnp.ones(2), positions=[-2, 0, 2])
      >>> line.losses.tolist()
      [2.0, 0.0, 2.0]
    """
    trees.check(direction, trees.structure_of(params), "direction")
    positions = jnp.asarray(positions, trees.dtype(params))
    if positions.ndim != 1:
        raise ValueError(f"positions must have shape (m,), got {positions.shape}.")
    op = objective.mean_loss(
        loss_fn, params, batch, args, weights=weights, axis_name=axis_name, precision=None
    )
    at = functools.partial(_loss_at, op, direction)
    losses = loops.map_chunks(at, positions, 1) if positions.size else positions
    return Line(positions, losses)


@jax.jit
def _loss_at(op, direction, position):
    return objective.value(op, trees.axpy(position[0], direction, op.params))[None]
