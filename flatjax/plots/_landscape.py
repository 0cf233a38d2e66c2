"""Plots of the loss surface: lines, curves, planes, trajectories and radii."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from flatjax.landscape._lines import Barrier, Line
from flatjax.landscape._planes import Plane, Projection
from flatjax.landscape._surfaces import Surface
from flatjax.landscape._volume import LogVolume
from flatjax.paths._path_loss import PathLoss
from flatjax.plots._axes import BLUE, CYCLE, ORANGE, axes, check_kind

Choice = Callable[[Any], Any] | None


def _chosen(losses: Any, choose: Choice) -> np.ndarray:
    """One array of a tree of metrics."""
    leaves = jax.tree.leaves(losses if choose is None else choose(losses))
    if len(leaves) != 1:
        raise ValueError(
            "the losses are a tree of metrics: say which is drawn, for instance with "
            'choose=lambda metrics: metrics["loss"].'
        )
    return np.asarray(leaves[0], float)


def plot_line(
    line: Line | Barrier | PathLoss,
    *,
    choose: Choice = None,
    accuracy: Choice = None,
    by_length: bool = False,
    ax: Any = None,
    label: str | None = None,
    color: str = BLUE,
) -> Any:
    """The loss along a line or a curve, with the barrier above the chord of its ends.

    Args:
      line: from [`loss_along`][], [`barrier`][] or [`loss_on_curve`][]. Of the last two the chord
        is drawn, dashed, and the barrier as an upright bar at its place.
      choose: of a tree of metrics, the one that is the loss.
      accuracy: of a tree of metrics, the one that is drawn dotted against an axis on the right, of
        which axes have one however many lines are drawn.
      by_length: draw a curve over its length, as it is seen by a traveller, and not over t.
      ax: matplotlib axes; default the current ones.
      label: for the legend.
      color: of the lines.

    Returns:
      The axes.

    Raises:
      ImportError: without matplotlib.
      TypeError: if it is another kind of result.
      ValueError: if the losses are several and none is chosen.

    Example:
      >>> import jax.numpy as jnp, matplotlib
      >>> matplotlib.use("Agg")
      >>> import flatjax
      >>> from flatjax import plots
      >>> well = lambda w, _: (w**2 - 1) ** 2
      >>> found = flatjax.barrier(well, jnp.array(-1.0), jnp.array(1.0), None)
      >>> plots.plot_line(found).get_ylabel()
      'loss'
    """
    check_kind("plot_line", line, Line, Barrier, PathLoss)
    ax = axes(ax)
    drawn = line.line if isinstance(line, Barrier) else line
    t = np.asarray(drawn.positions, float)
    x = np.asarray(line.lengths, float) if by_length and isinstance(line, PathLoss) else t
    loss = _chosen(drawn.losses, choose)
    ax.plot(x, loss, color=color, label=label)
    if not isinstance(line, Line):
        share = (t - t[0]) / (t[-1] - t[0])
        chord = (1 - share) * loss[0] + share * loss[-1]
        ax.plot(x, chord, "--", color=color, linewidth=1, alpha=0.6)
        if np.isfinite(loss).all():
            top = np.argmax(loss - chord)
            ax.vlines(x[top], chord[top], loss[top], color=color, linewidth=3, alpha=0.4)
    ax.set_xlabel("length" if x is not t else "t")
    ax.set_ylabel("loss")
    if accuracy is not None:
        right = _right_axis(ax)
        right.plot(x, _chosen(drawn.losses, accuracy), ":", color=color)
        right.set_ylabel("accuracy")
    if label is not None:
        ax.legend()
    return ax


def _right_axis(ax: Any) -> Any:
    """The axis on the right that an earlier line has made, or a new one."""
    for other in ax.get_shared_x_axes().get_siblings(ax):
        # Others that share the horizontal axis lie elsewhere in the figure.
        if other is not ax and other.get_position().bounds == ax.get_position().bounds:
            return other
    return ax.twinx()


def _log_levels(z: np.ndarray, levels: int | Sequence[float]) -> tuple[np.ndarray, bool]:
    """Levels of contours, and whether they are logarithmic: where all of them are positive."""
    finite = z[np.isfinite(z)]
    if not finite.size:
        raise ValueError("the surface has no finite loss.")
    if not isinstance(levels, int):
        heights = np.asarray(levels, float)
        if heights.ndim != 1 or len(heights) < 2 or not (np.diff(heights) > 0).all():
            raise ValueError("levels must be a count, or two losses and more that rise.")
        return heights, bool(heights[0] > 0 and heights[-1] > 3 * heights[0])
    low, high = float(finite.min()), float(finite.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    if low > 0 and high > 3 * low:
        return np.geomspace(low, high, levels), True
    return np.linspace(low, high, levels), False


def plot_surface(
    surface: Surface,
    *,
    path: Any = None,
    minima: Any = None,
    labels: Any = None,
    choose: Choice = None,
    quantity: str = "loss",
    levels: int | Sequence[float] = 16,
    bar: bool = True,
    ax: Any = None,
) -> Any:
    """The loss over a plane as contours, logarithmic where it is positive.

    Both axes have one scale. What is not finite is left white. Surfaces that are compared need the
    same levels: give all of them the same heights.

    Args:
      surface: from [`loss_surface`][].
      path: coordinates of a trajectory or a curve in the plane, shape ``(T, 2)``, as [`project`][]
        and [`principal_directions`][] give them; drawn as a line from its open to its full end.
      minima: points, drawn as stars: their coordinates, shape ``(k, 2)``, or the [`Plane`][] of the
        surface, for the three points that it was laid through.
      labels: their names.
      choose: of a tree of metrics, the one that is drawn.
      quantity: what it is called beside the colours.
      levels: how many contours, or the losses at which they are drawn, rising; what lies above the
        last or below the first has the colour next to it.
      bar: whether a bar beside the axes tells the losses of the colours.
      ax: matplotlib axes; default the current ones.

    Returns:
      The axes.

    Raises:
      ImportError: without matplotlib.
      TypeError: if it is another kind of result.
      ValueError: if the losses are several and none is chosen, no loss is finite, or the levels do
        not rise.

    Example:
      >>> import jax.numpy as jnp, matplotlib
      >>> matplotlib.use("Agg")
      >>> from flatjax import plots
      >>> from flatjax.landscape import Surface
      >>> t = jnp.linspace(-1, 1, 5)
      >>> bowl = Surface(t, t, 1 + t[:, None] ** 2 + 3 * t[None] ** 2)
      >>> plots.plot_surface(bowl, minima=[[0, 0]]).get_xlabel()
      'first direction'
    """
    check_kind("plot_surface", surface, Surface)
    ax = axes(ax)
    z = np.ma.masked_invalid(_chosen(surface.losses, choose).T)
    heights, logarithmic = _log_levels(z.compressed(), levels)
    x, y = np.asarray(surface.positions, float), np.asarray(surface.other_positions, float)
    from matplotlib.colors import LogNorm
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import MaxNLocator

    norm = LogNorm(heights[0], heights[-1]) if logarithmic else None
    # Beyond the last level lies the largest loss itself, by rounding.
    filled = ax.contourf(x, y, z, heights, norm=norm, cmap="viridis", extend="both")
    ax.contour(x, y, z, heights, colors="white", linewidths=0.4, alpha=0.6)
    if bar:
        # Within the axes, so of their height, which equal scales make unlike that of the figure.
        beside = ax.inset_axes((1.04, 0, 0.05, 1))
        legend = ax.figure.colorbar(filled, cax=beside, label=quantity, format="%.3g")
        legend.minorticks_off()
        legend.set_ticks(heights[:: max(1, len(heights) // 6)])
    if path is not None:
        points = np.asarray(path, float)
        ax.plot(*points.T, "-", color=ORANGE, linewidth=1.5, marker=".", markersize=3)
        ax.plot(*points[0], "o", color=ORANGE, markerfacecolor="white", markersize=6)
        ax.plot(*points[-1], "o", color=ORANGE, markersize=6)
    if minima is not None:
        points = minima.coordinates if isinstance(minima, Plane) else minima
        points = np.asarray(points, float).reshape(-1, 2)
        ax.plot(*points.T, "*", color="white", markeredgecolor="black", markersize=13, zorder=4)
        for point, name in zip(points, labels or [], strict=False):
            drawn = ax.annotate(name, point, (7, 7), textcoords="offset points", color="white")
            drawn.set(
                zorder=4, path_effects=[withStroke(linewidth=2, foreground="black", alpha=0.5)]
            )
    ax.set_aspect("equal")
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.set_xlabel("first direction")
    ax.set_ylabel("second direction")
    return ax


def plot_surface_3d(surface: Surface, *, choose: Choice = None, ax: Any = None) -> Any:
    """The loss over a plane as a surface in space, its logarithm where it is positive.

    Args:
      surface: from [`loss_surface`][].
      choose: of a tree of metrics, the one that is drawn.
      ax: matplotlib axes with ``projection="3d"``; default new ones in the current figure.

    Returns:
      The axes.

    Raises:
      ImportError: without matplotlib.
      TypeError: if it is another kind of result, or if the axes are flat.
      ValueError: if the losses are several and none is chosen, or no loss is finite.

    Example:
      >>> import jax.numpy as jnp, matplotlib.figure
      >>> from flatjax import plots
      >>> from flatjax.landscape import Surface
      >>> t = jnp.linspace(-1, 1, 5)
      >>> bowl = Surface(t, t, 1 + t[:, None] ** 2 + 3 * t[None] ** 2)
      >>> space = matplotlib.figure.Figure().add_subplot(projection="3d")
      >>> plots.plot_surface_3d(bowl, ax=space).get_zlabel()
      'log10 loss'
    """
    check_kind("plot_surface_3d", surface, Surface)
    ax = axes(ax, "3d")
    z = _chosen(surface.losses, choose).T
    logarithmic = _log_levels(z, 2)[1]
    heights = np.log10(np.where(z > 0, z, np.nan)) if logarithmic else z
    heights = np.where(np.isfinite(heights), heights, np.nan)
    x, y = np.meshgrid(np.asarray(surface.positions), np.asarray(surface.other_positions))
    low, high = np.nanmin(heights), np.nanmax(heights)
    ax.plot_surface(
        x, y, heights, cmap="viridis", vmin=low, vmax=high, rcount=100, ccount=100, linewidth=0,
        antialiased=False,
    )  # fmt: skip
    ax.set_xlabel("first direction")
    ax.set_ylabel("second direction")
    ax.set_zlabel("log10 loss" if logarithmic else "loss")
    return ax


def plot_projection(projection: Projection, *, explained: Any = None, ax: Any = None) -> Any:
    """A trajectory in a plane, coloured by how far off the plane it runs.

    Args:
      projection: of the checkpoints in their order, from [`project`][].
      explained: the shares of [`principal_directions`][], written to the axes.
      ax: matplotlib axes; default the current ones.

    Returns:
      The axes.

    Raises:
      ImportError: without matplotlib.
      TypeError: if it is another kind of result.

    Example:
      >>> import jax.numpy as jnp, matplotlib
      >>> matplotlib.use("Agg")
      >>> import flatjax
      >>> from flatjax import plots
      >>> path = [jnp.array([4.0, 1.0, 0.0]), jnp.array([4.0, -1.0, 0.0]), jnp.zeros(3)]
      >>> found = flatjax.principal_directions(path)
      >>> ax = plots.plot_projection(flatjax.project(path, found), explained=found.explained)
      >>> ax.get_xlabel()
      'first direction (94 %)'
    """
    check_kind("plot_projection", projection, Projection)
    ax = axes(ax)
    points = np.asarray(projection.coordinates, float)[:, :2]
    ax.plot(*points.T, "-", color="black", linewidth=0.8, alpha=0.5)
    ax.plot(*points[0], "o", color="black", markerfacecolor="none", markersize=10)
    off = np.asarray(projection.distance, float)
    drawn = ax.scatter(*points.T, c=off, cmap="viridis", s=18, zorder=3)
    ax.figure.colorbar(drawn, ax=ax, label="distance off the plane")
    names = ["first direction", "second direction"]
    if explained is not None:
        shares = np.asarray(explained, float)
        names = [f"{name} ({100 * s:.0f} %)" for name, s in zip(names, shares, strict=False)]
    ax.set_xlabel(names[0])
    ax.set_ylabel(names[1])
    return ax


def plot_radii(volumes: Mapping[Any, LogVolume] | LogVolume, *, ax: Any = None) -> Any:
    """The radii below a threshold: of each network, the share of directions with a smaller one.

    Args:
      volumes: from [`log_volume`][], by name if they are several.
      ax: matplotlib axes; default the current ones.

    Returns:
      The axes.

    Raises:
      ImportError: without matplotlib.

    Example:
      >>> import jax, jax.numpy as jnp, matplotlib.figure
      >>> import flatjax
      >>> from flatjax import plots
      >>> found = flatjax.log_volume(
      ...     lambda w, _: jnp.sum(w**2),
      ...     jnp.zeros(3),
      ...     None,
      ...     key=jax.random.key(0),
      ...     threshold=1.0,
      ...     num_directions=4,
      ... )
      >>> ax = matplotlib.figure.Figure().add_subplot()
      >>> plots.plot_radii({"ball": found}, ax=ax).get_xlabel()
      'radius'
    """
    ax = axes(ax)
    named = {"": volumes} if isinstance(volumes, LogVolume) else dict(volumes)
    for i, (name, volume) in enumerate(named.items()):
        radii = np.sort(np.asarray(volume.radii, float))
        share = np.arange(1, len(radii) + 1) / len(radii)
        text = f"log V >= {float(volume.lower_bound):.4g}"
        ax.step(radii, share, where="post", color=CYCLE[i % len(CYCLE)],
                label=f"{name}: {text}" if name else text)  # fmt: skip
    ax.set_xscale("log")
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("radius")
    ax.set_ylabel("share of directions")
    ax.legend()
    return ax
