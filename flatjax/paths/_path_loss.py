"""The loss along a curve, by its parameter and by its length."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _collectives as collectives
from flatjax import _loops as loops
from flatjax import _reading as reading
from flatjax._trees import Tree
from flatjax.landscape import _points as points_at
from flatjax.landscape._lines import above_chord
from flatjax.paths._curves import Curve
from flatjax.paths._fitting import check_curve


@reading.readable
class PathLoss(NamedTuple):
    """The loss along a curve.

    Where the loss function returns a tree of metrics, so are the fields from ``losses`` on.

    Attributes:
      positions: t, shape ``(m,)``.
      lengths: the length of the curve from its beginning to every position, shape ``(m,)``.
      losses: the mean loss at every position, shape ``(m,)``; not finite where the loss is not.
      maximum: the largest of them, the ends included.
      mean: the mean over t, by the trapezoidal rule.
      mean_by_length: the mean over the length, likewise: t runs fast where control points are far
        apart, and its mean counts these stretches too little.
      barrier: the largest rise above the chord of the losses at the first and the last position.
    """

    positions: jax.Array
    lengths: jax.Array
    losses: Tree
    maximum: Tree
    mean: Tree
    mean_by_length: Tree
    barrier: Tree


def loss_on_curve(
    loss_fn: Callable[..., Any],
    curve: Curve,
    batch: Any,
    *args: Any,
    positions: Any,
    args_fn: Callable[[Tree], Any] | None = None,
    weights: Any = None,
    axis_name: collectives.AxisName = None,
) -> PathLoss:
    r"""The mean loss $L(\phi(t))$ at every $t$ of ``positions``, and what it is on the whole.

    Of a network with batch norm pass ``args_fn``: the statistics of one point of a curve are those
    of no other (Garipov et al. 2018, appendix).

    Cost: one forward pass per position, as [`loss_along`][], on all devices of a mesh.

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, the loss or a tree of metrics, as for
        [`loss_along`][].
      curve: a curve, as from [`bezier`][] or [`chain`][].
      batch: what the loss is evaluated on.
      *args: model state, anything else the loss takes.
      positions: ascending values of t in [0, 1], shape ``(m,)``, at least two.
      args_fn: makes the further arguments anew at every point, as for [`loss_along`][].
      weights: per-example weights or a padding mask, shape ``(n,)``.
      axis_name: inside ``shard_map`` or ``pmap``, the mesh axis over which the batch is split.

    Returns:
      A [`PathLoss`][].

    Raises:
      TypeError: for a ``curve`` that is none, or a simplex.
      ValueError: for positions that are not ascending or leave [0, 1], or data that do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> corner = flatjax.chain([jnp.zeros(2), jnp.array([3.0, 0.0]), jnp.array([3.0, 1.0])])
      >>> first = lambda w, _: w[0]
      >>> found = flatjax.loss_on_curve(first, corner, None, positions=[0.0, 0.5, 1.0])
      >>> found.lengths.tolist(), found.losses.tolist()
      ([0.0, 3.0, 4.0], [0.0, 3.0, 3.0])
      >>> float(found.mean), float(found.mean_by_length), float(found.barrier)
      (2.25, 1.875, 1.5)
    """
    check_curve(curve)
    like = jax.tree.map(lambda a: a[0], curve.controls)
    points = points_at.points_of(
        loss_fn, like, batch, args, args_fn=args_fn, weights=weights, axis_name=axis_name
    )
    t = points_at.coordinates("positions", positions, like)
    concrete = not loops.is_traced(t)
    if len(t) < 2 or (concrete and not (np.diff(t) > 0).all()):
        raise ValueError("positions must be ascending, at least two of them.")
    if concrete and not (t[0] >= 0 and t[-1] <= 1):
        raise ValueError(f"positions must lie in [0, 1], from {t[0]} to {t[-1]} they do not.")
    lengths = curve.lengths(points_at.on_device(t))
    losses = points_at.values(points, _on_curve, curve, t)
    return _summary(points_at.on_device(t), lengths, losses)


def _on_curve(like, curve, t):
    del like
    return curve(t)


@jax.jit
def _summary(t, lengths, losses):
    def mean(x):
        return lambda a: jnp.trapezoid(a, x) / (x[-1] - x[0])

    return PathLoss(
        t,
        lengths,
        losses,
        maximum=jax.tree.map(jnp.max, losses),
        mean=jax.tree.map(mean(t), losses),
        mean_by_length=jax.tree.map(mean(lengths), losses),
        barrier=above_chord(t, losses)[0],
    )
