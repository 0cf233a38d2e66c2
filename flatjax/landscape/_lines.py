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
from flatjax.losses import Mean
from flatjax.operators import _terms as terms
from flatjax.operators._arguments import check_arguments, num_examples
from flatjax.operators._callables import follow
from flatjax.operators._weights import with_copies


class Line(NamedTuple):
    r"""The loss along a line.

    Attributes:
      positions: $t$, shape ``(m,)``, in units of the direction's length.
      losses: the mean loss at $\theta + t\, d$, shape ``(m,)``; NaN and infinity where it is.
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
      ValueError: if a leaf has another shape, ``positions`` is not one-dimensional, or weights are
        given with a scalar loss or in another number than there are examples.

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
    weights = check_arguments(params, batch, weights, axis_name, None, args=args).weights
    wide = trees.cast(params, trees.structure_of(params))
    fn = follow(loss_fn, "loss_fn", wide, batch, args, axis_name=axis_name)
    batch = with_copies(batch, weights)
    at = functools.partial(_loss_at, fn, axis_name, params, direction, batch, args, weights)
    losses = loops.map_chunks(at, positions, 1) if positions.size else positions
    return Line(positions, losses)


@functools.partial(jax.jit, static_argnums=1)
def _loss_at(loss_fn, axis_name, params, direction, batch, args, weights, position):
    # In at least float32, and so the model gets it: small steps of bfloat16 weights round away.
    moved = jax.tree.map(
        lambda p, d: (p.astype(position.dtype) + position[0] * d.astype(position.dtype)).astype(
            trees.compute_dtype(p.dtype)
        ),
        params,
        direction,
    )
    out = loss_fn(collectives.varying(moved, axis_name), batch, *args)
    if weights is not None and jnp.ndim(out.total if isinstance(out, Mean) else out) == 0:
        raise ValueError(
            "weights need a loss_fn that returns the losses of the examples, shape (n,), and it "
            "returned their mean."
        )
    if not isinstance(out, Mean):
        out = jnp.asarray(out).astype(position.dtype)
        out = out.reshape(out.shape[0], -1).mean(1) if out.ndim else out
    losses, counts = terms.as_terms(out, weights, num_examples(batch))
    losses, counts = losses.astype(position.dtype), counts.astype(position.dtype)
    # An example of weight zero does not count, even where its loss is infinite.
    total = jnp.where(counts == 0, jnp.zeros_like(losses), counts * losses).sum()
    return collectives.weighted_mean(total, counts.sum(), axis_name)[None]
