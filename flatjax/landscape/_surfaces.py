"""The loss over a plane of parameter space."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _collectives as collectives
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax import _watching as watching
from flatjax._trees import Tree
from flatjax.landscape import _points as points_at


@reading.readable
class Surface(NamedTuple):
    r"""The loss over a plane.

    Attributes:
      positions: $s$, along the first direction, shape ``(m,)``.
      other_positions: $t$, along the second one, shape ``(k,)``.
      losses: the mean loss at $\theta + s_i d_1 + t_j d_2$, shape ``(m, k)``, or a tree of metrics
        of this shape; not finite where the loss is not.
      stopped: why it was stopped early, ``"callback"``, ``"max_seconds"`` or ``"interrupt"``, with
        NaN at the points to come; ``None`` otherwise.
    """

    positions: jax.Array
    other_positions: jax.Array
    losses: Tree
    stopped: str | None = None


def loss_surface(
    loss_fn: Callable[..., Any],
    params: Tree,
    batch: Any,
    *args: Any,
    first: Tree,
    second: Tree,
    positions: Any,
    other_positions: Any = None,
    args_fn: Callable[[Tree], Any] | None = None,
    weights: Any = None,
    axis_name: collectives.AxisName = None,
    progress: bool = False,
    callback: watching.Callback | None = None,
    max_seconds: float | None = None,
    on_interrupt: str = "raise",
) -> Surface:
    r"""The mean loss $L(\theta + s\, d_1 + t\, d_2)$ at every $s$ and $t$.

    Right directions are [`random_directions`][], two eigenvectors, the two of a [`Plane`][] through
    three networks, or those of [`principal_directions`][] with the trajectory drawn into the
    picture by [`project`][].

    Cost: ``m * k`` forward passes, one after the other, and the memory of one. One compiled program
    serves all points and calls. Where params and data lie whole on the devices of a mesh, as
    [`flatjax.parallel.replicate`][] puts them, each device takes points of its own.

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, the loss or a tree of metrics, as for
        [`loss_along`][].
      params: a pytree of floating arrays, the point at $s = t = 0$.
      batch: what the loss is evaluated on.
      *args: model state, anything else the loss takes.
      first: a pytree like ``params``, of any length.
      second: another one.
      positions: the values of $s$, shape ``(m,)``.
      other_positions: those of $t$, shape ``(k,)``; ``None`` for the same.
      args_fn: makes the further arguments anew at every point, as for [`loss_along`][].
      weights: per-example weights or a padding mask, shape ``(n,)``.
      axis_name: inside ``shard_map`` or ``pmap``, the mesh axis over which the batch is split.
      progress: whether to show a bar on standard error (by rich, if it is installed; lines where
        that is no terminal): points and time left.
      callback: ``callback(step, losses, None)`` after every few points, of slow ones after each:
        the number of points so far, and the losses there in the order of ``losses`` row by row, a
        NumPy array ``(step,)`` or a tree of these. If it returns ``True``, it stops.
      max_seconds: stop after so many seconds.
      on_interrupt: ``"return"``: the first Ctrl-C stops after the points in progress, the second
        raises; ``"raise"``: the first raises. After a stop, of whatever kind, the losses that are
        missing are NaN, and `Surface.stopped` has the reason.

    Returns:
      A [`Surface`][].

    Raises:
      TypeError: if a direction has another tree structure than the params.
      ValueError: for other shapes, positions that are not one-dimensional, or data that do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> loss = lambda w, _: w[0] ** 2 + 3 * w[1] ** 2
      >>> first, second = jnp.eye(2)
      >>> surface = flatjax.loss_surface(
      ...     loss,
      ...     jnp.zeros(2),
      ...     None,
      ...     first=first,
      ...     second=second,
      ...     positions=[0, 1, 2],
      ...     other_positions=[0, 1],
      ... )
      >>> surface.losses.tolist()
      [[0.0, 3.0], [1.0, 4.0], [4.0, 7.0]]

    References:
      Li, Xu, Taylor, Studer and Goldstein, "Visualizing the loss landscape of neural nets", NeurIPS
      2018, arXiv:1712.09913.
    """
    structure = trees.structure_of(params)
    trees.check(first, structure, "first")
    trees.check(second, structure, "second")
    s = points_at.coordinates("positions", positions, params)
    t = s
    if other_positions is not None:
        t = points_at.coordinates("other_positions", other_positions, params)
    points = points_at.points_of(
        loss_fn, params, batch, args, args_fn=args_fn, weights=weights, axis_name=axis_name
    )
    rows = s.repeat(len(t)), (jnp if isinstance(t, jax.Array) else np).tile(t, len(s))
    watch = watching.watch(
        "loss_surface", progress, callback, max_seconds, on_interrupt, unit="points",
        traced=(points, first, second, rows),
    )  # fmt: skip
    with watch:
        shape = len(s), len(t)
        losses = points_at.values(points, _moved, (first, second), rows, shape, watch)
    surface = Surface(points_at.on_device(s), points_at.on_device(t), losses)
    return watching.marked(surface, watch)


def _moved(params, directions, row):
    for direction, t in zip(directions, row, strict=True):
        params = trees.axpy(t, direction, params)
    return params
