"""The loss along straight lines through parameter space, and the barrier between two points."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax import _watching as watching
from flatjax._trees import Tree
from flatjax.landscape import _points as points_at


@reading.readable
class Line(NamedTuple):
    r"""The loss along a line.

    Attributes:
      positions: $t$, shape ``(m,)``, in units of the direction's length; from 0 to 1 between two
        points.
      losses: the mean loss at every position, shape ``(m,)``, or a tree of metrics of this shape;
        not finite where the loss is not.
      stopped: why it was stopped early, ``"callback"``, ``"max_seconds"`` or ``"interrupt"``, with
        NaN at the points to come; ``None`` otherwise.
    """

    positions: jax.Array
    losses: Tree
    stopped: str | None = None


@reading.readable
class Barrier(NamedTuple):
    r"""How far the loss rises above the chord between two points.

    Where the loss function returns a tree of metrics, so are the fields other than the line.

    Attributes:
      value: $\max_t L(t) - ((1 - t) L(0) + t L(1))$ over the positions, the ends among them: never
        negative. Not finite where a loss is not.
      position: the $t$ at which it is found.
      line: the losses on the straight line, a [`Line`][].
      ends: the losses at both ends, shape ``(2,)``.
    """

    value: Tree
    position: Tree
    line: Line
    ends: Tree

    __float__ = reading.as_float


def loss_along(
    loss_fn: Callable[..., Any],
    params: Tree,
    batch: Any,
    *args: Any,
    direction: Tree,
    positions: Any,
    args_fn: Callable[[Tree], Any] | None = None,
    weights: Any = None,
    axis_name: collectives.AxisName = None,
    progress: bool = False,
    callback: watching.Callback | None = None,
    max_seconds: float | None = None,
    on_interrupt: str = "raise",
) -> Line:
    r"""The mean loss $L(\theta + t\, d)$ at every $t$ of ``positions``.

    Cost: one forward pass per position, and the memory of one. One compiled program serves all
    positions, directions, params and batches of the same shapes. Where params and data lie whole on
    the devices of a mesh, as [`flatjax.parallel.replicate`][] puts them, each device takes
    positions of its own; a batch that is split is shared by all of them at every position. So is a
    function that captures arrays of the mesh: give it those as ``*args``.

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, the mean loss (a scalar), the per-example
        losses, shape ``(n,)``, whose mean is taken, or a [`Mean`][]; or a tree of such metrics
        (flags, such as hits, count as 0 and 1).
      params: a pytree of floating arrays, the point at $t = 0$. The points are formed in at least
        float32, and the loss is called with these, whatever the params' dtype.
      batch: what the loss is evaluated on.
      *args: model state, anything else the loss takes.
      direction: a pytree like ``params``. Its length is the caller's: an eigenvector of norm one
        makes $t$ a distance, a filter-normalised direction makes it a fraction of the weights.
      positions: the values of $t$, shape ``(m,)``.
      args_fn: ``args_fn(params)``, traceable, the tuple of further arguments (or the only one) made
        anew at every point, in place of ``*args``: batch statistics, which belong to one point
        only; see [`reestimate_batch_statistics`][].
      weights: per-example weights or a padding mask, shape ``(n,)``; the loss must then be that of
        each example.
      axis_name: inside ``shard_map`` or ``pmap``, the mesh axis over which the batch is split; a
        batch that is split over an Auto mesh outside of them needs none.
      progress: whether to show a bar on standard error (by rich, if it is installed; lines where
        that is no terminal): points and time left.
      callback: ``callback(step, losses, None)`` after every few points, of slow ones after each:
        the number of points so far, and the losses at the first ``step`` positions, a NumPy array
        ``(step,)`` or a tree of these. If it returns ``True``, it stops.
      max_seconds: stop after so many seconds.
      on_interrupt: ``"return"``: the first Ctrl-C stops after the points in progress, the second
        raises; ``"raise"``: the first raises. After a stop, of whatever kind, the losses that are
        missing are NaN, and `Line.stopped` has the reason.

    Returns:
      A [`Line`][].

    Raises:
      TypeError: if the direction has another tree structure than the params.
      ValueError: if a leaf has another shape, ``positions`` is not one-dimensional, a metric is
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
    positions = points_at.coordinates("positions", positions, params)
    points = points_at.points_of(
        loss_fn, params, batch, args, args_fn=args_fn, weights=weights, axis_name=axis_name
    )
    watch = watching.watch(
        "loss_along", progress, callback, max_seconds, on_interrupt, unit="points",
        traced=(points, direction, positions),
    )  # fmt: skip
    with watch:
        losses = points_at.values(points, _moved, direction, positions, watch=watch)
    return watching.marked(Line(points_at.on_device(positions), losses), watch)


def _moved(params, direction, t):
    return trees.axpy(t, direction, params)


def barrier(
    loss_fn: Callable[..., Any],
    a: Tree,
    b: Tree,
    batch: Any,
    *args: Any,
    num_points: int = 25,
    args_fn: Callable[[Tree], Any] | None = None,
    weights: Any = None,
    axis_name: collectives.AxisName = None,
) -> Barrier:
    r"""The loss barrier on the straight line between two points.

    $$\max_{t} \; L((1 - t)\, a + t\, b) - \big((1 - t) L(a) + t L(b)\big)$$

    over ``num_points`` equidistant $t$ in [0, 1] (Frankle et al. 2020; Entezari et al. 2022): the
    rise above the *chord* of the end losses, zero where the loss is convex between them. Papers
    that take the rise above the larger end, or above the mean of both, find it in ``line``. Of a
    metric such as accuracy, where more is better, pass what is missing, the error.

    Cost: ``num_points`` forward passes, as [`loss_along`][].

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, the loss or a tree of metrics, as for
        [`loss_along`][].
      a: a pytree of floating arrays, the point at $t = 0$.
      b: the point at $t = 1$, a pytree like ``a``.
      batch: what the loss is evaluated on.
      *args: model state, anything else the loss takes.
      num_points: positions, both ends among them; at least 3.
      args_fn: makes the further arguments anew at every point, as for [`loss_along`][].
      weights: per-example weights or a padding mask, shape ``(n,)``.
      axis_name: inside ``shard_map`` or ``pmap``, the mesh axis over which the batch is split.

    Returns:
      A [`Barrier`][].

    Raises:
      TypeError: if ``b`` has another tree structure than ``a``.
      ValueError: for other shapes, fewer than 3 points, or data that do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> loss = lambda w, _: (w**2 - 1) ** 2  # two minima, at -1 and 1
      >>> found = flatjax.barrier(loss, jnp.array(-1.0), jnp.array(1.0), None)
      >>> float(found.value), float(found.position)
      (1.0, 0.5)

    References:
      Frankle, Dziugaite, Roy and Carbin, "Linear mode connectivity and the lottery ticket
      hypothesis", ICML 2020, arXiv:1912.05671; Entezari, Sedghi, Saukh and Neyshabur, "The role of
      permutation invariance in linear mode connectivity", ICLR 2022, arXiv:2110.06296.
    """
    checks.check_count("num_points", num_points, 3)
    trees.check(b, trees.structure_of(a), "b")
    points = points_at.points_of(
        loss_fn, a, batch, args, args_fn=args_fn, weights=weights, axis_name=axis_name
    )
    positions = np.linspace(0, 1, num_points, dtype=trees.dtype(a))
    line = Line(points_at.on_device(positions), points_at.values(points, _between, b, positions))
    value, position, ends = above_chord(line.positions, line.losses)
    return Barrier(value, position, line, ends)


def _between(a, b, t):
    # Exactly a and b at the ends.
    def leaf(x, y):
        s = t.astype(x.dtype)
        return (1 - s) * x + s * y.astype(x.dtype)

    return jax.tree.map(leaf, a, b)


@jax.jit
def above_chord(positions: jax.Array, losses: Tree) -> tuple[Tree, Tree, Tree]:
    """Of each metric its largest rise above the chord, where that is, and its two ends.

    Args:
      positions: ascending, shape ``(m,)``.
      losses: a tree of arrays of this shape.

    Returns:
      Three trees like ``losses``; where a rise is no number, the first is NaN.
    """
    share = (positions - positions[0]) / (positions[-1] - positions[0])

    def rise(a):
        return a - ((1 - share) * a[0] + share * a[-1])

    rises = jax.tree.map(rise, losses)
    return (
        jax.tree.map(jnp.max, rises),
        jax.tree.map(lambda a: positions[jnp.argmax(a)], rises),
        jax.tree.map(lambda a: jnp.stack([a[0], a[-1]]), losses),
    )
