"""Lines and surfaces through a minimum, how convex they are, and the same network rescaled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import flatjax

Loss = Callable[..., Any]


def lines(
    losses_fn: Loss,
    params: Any,
    batch: Any,
    state: Any,
    positions: np.ndarray,
    count: int,
    seed: int,
) -> np.ndarray:
    """The loss along independent filter-normalised directions, (count, positions).

    The batch statistics stay those of the minimum.
    """
    directions = flatjax.random_directions(
        params, count, key=jax.random.key(seed), orthogonal=False
    )
    return np.stack(
        [
            along(losses_fn, params, batch, state, each, positions)
            for each in (jax.tree.map(lambda a, i=i: a[i], directions) for i in range(count))
        ]
    )


def along(
    losses_fn: Loss, params: Any, batch: Any, state: Any, direction: Any, positions: np.ndarray
) -> np.ndarray:
    """The loss along a direction, (positions,)."""
    line = flatjax.loss_along(
        losses_fn, params, batch, state, direction=direction, positions=positions
    )
    return np.asarray(line.losses)


def surface(
    losses_fn: Loss, params: Any, batch: Any, state: Any, positions: np.ndarray, seed: int
) -> np.ndarray:
    """The loss over the plane of two orthogonal filter-normalised directions."""
    first, second = (
        jax.tree.map(
            lambda a, i=i: a[i], flatjax.random_directions(params, 2, key=jax.random.key(seed))
        )
        for i in range(2)
    )
    found = flatjax.loss_surface(
        losses_fn, params, batch, state, first=first, second=second, positions=positions
    )
    return np.asarray(found.losses)


def concave_share(losses: np.ndarray) -> float:
    """The share of the inner points at which a surface bends down by a tenth of how it bends up.

    By the eigenvalues of its second differences: smallest below -0.1 |largest|. Li et al. map the
    ratio of those of the whole Hessian; where the surface is not convex, the loss is not.
    """
    z = np.asarray(losses, float)
    center = z[1:-1, 1:-1]
    xx = z[2:, 1:-1] - 2 * center + z[:-2, 1:-1]
    yy = z[1:-1, 2:] - 2 * center + z[1:-1, :-2]
    xy = (z[2:, 2:] - z[2:, :-2] - z[:-2, 2:] + z[:-2, :-2]) / 4
    mean, reach = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    return float((mean - reach < -0.1 * np.abs(mean + reach)).mean())


def rise(found: np.ndarray, positions: np.ndarray, radius: float) -> np.ndarray:
    """How far the loss rises at a distance, the mean over directions and both of their signs.

    Args:
      found: losses along lines, (..., directions, positions).
      positions: with the radius, its negative and zero among them.
      radius: the distance.

    Returns:
      Shape (...).
    """
    ends = [np.abs(positions - r).argmin() for r in (-radius, radius)]
    start = np.abs(positions).argmin()
    return found[..., ends].mean((-2, -1)) - found[..., start].mean(-1)


def rescaled(params: dict[str, Any], factor: float) -> dict[str, Any]:
    """The first layer times a factor, and the weights of the second over it.

    The same function if what lies between them is a ReLU, and nothing else.
    """
    first, second = sorted(name for name in params if "kernel" in params[name])[:2]
    return params | {
        first: jax.tree.map(lambda a: factor * a, params[first]),
        second: params[second] | {"kernel": params[second]["kernel"] / factor},
    }


def change(
    losses_fn: Loss,
    params: Any,
    batch: Any,
    state: Any,
    positions: np.ndarray,
    seed: int,
    *,
    own: bool,
    factor: float = 10.0,
) -> float:
    """The largest change of the loss along a line by `rescaled`, over the largest loss.

    With `own` each network has the direction that is normalised by its own filters, else both have
    that of the first. NaN where the network is not the same function afterwards.
    """
    points = params, rescaled(params, factor)
    before, after = (float(losses_fn(p, batch, state).mean()) for p in points)
    if not np.isclose(before, after, rtol=1e-2, atol=1e-5):
        return float("nan")
    key = jax.random.key(seed)
    directions = [flatjax.filter_normalized_direction(point, key=key) for point in points]
    first, second = (
        along(losses_fn, point, batch, state, direction, positions)
        for point, direction in zip(points, directions if own else directions[:1] * 2, strict=True)
    )
    return float(np.abs(second - first).max() / first.max())
