"""Figures as PNG in one style: legible, told apart without colour, no text cut off.

    with figure(folder / "loss.png", 1, 2) as (left, right):
        left.plot(x, y, **style(0), label="SGD")

Colours are those of Okabe and Ito ("Color Universal Design", 2008), distinct for all common kinds
of colour blindness; every one comes with a marker and a line style of its own, for print in grey.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.lib.runs import distributed, rundir
from experiments.lib.runs.paths import as_path, write_bytes

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))

_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same text on every machine
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "legend.frameon": True,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "legend.fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}

PANEL = (4.2, 3.2)
"""Width and height of one panel in inches."""


@contextlib.contextmanager
def figure(
    path: str | os.PathLike[str],
    rows: int = 1,
    columns: int = 1,
    *,
    title: str | None = None,
    panel: tuple[float, float] = PANEL,
    dpi: int = 150,
    **subplots: Any,
) -> Iterator[Any]:
    """Yields axes to draw on and writes the figure at the end, at once or not at all.

    Into a folder that may not be written nothing is: a finished run is shown.

    Args:
      path: the PNG file.
      rows: rows of panels.
      columns: columns of panels.
      title: a title over all panels.
      panel: width and height of one panel in inches.
      dpi: pixels an inch.
      **subplots: more for `Figure.subplots`, such as `sharey`.

    Yields:
      One axes, or an array of them as `plt.subplots` gives it.
    """
    import matplotlib
    from matplotlib.figure import Figure

    # A Figure of its own, not pyplot: no window system, no global state, safe in any thread.
    with matplotlib.rc_context(_STYLE):
        fig = Figure(figsize=(panel[0] * columns, panel[1] * rows), layout="constrained")
        yield fig.subplots(rows, columns, **subplots)
        for axes in fig.axes:
            _thin_out(axes)
        if title:
            fig.suptitle(title, x=0.01, ha="left", fontweight="bold")
        path = as_path(path)
        if not distributed.is_first() or not rundir.writable(path.parent):
            return
        file = io.BytesIO()
        fig.savefig(file, dpi=dpi, format="png", bbox_inches="tight")
        write_bytes(path, file.getvalue())


def _thin_out(axes: Any) -> None:
    """Few and round numbers, so that they never touch; plain ones where an axis is short."""
    from matplotlib.ticker import AutoLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        if isinstance(axis.get_major_locator(), AutoLocator):
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        elif axis.get_scale() == "log" and low > 0 and high < 50 * low:
            # Without this they read "2 x 10^2".
            even = MaxNLocator(5, steps=[1, 2, 5, 10])
            axis.set_major_locator(even if high < 4 * low else LogLocator(subs=(1, 2, 5)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def style(number: int, *, markers: bool = True) -> dict[str, Any]:
    """Keyword arguments of `plot` for the curve of this number."""
    chosen: dict[str, Any] = {
        "color": COLORS[number % len(COLORS)],
        "linestyle": _DASHES[number % len(_DASHES)],
    }
    if markers:
        chosen["marker"] = _MARKERS[number % len(_MARKERS)]
    return chosen


def band(axes: Any, x: Any, center: Any, error: Any, number: int) -> None:
    """Shades two standard errors around a curve."""
    x, center, error = (np.asarray(a, float) for a in (x, center, error))
    color = COLORS[number % len(COLORS)]
    axes.fill_between(
        x, center - 2 * error, center + 2 * error, color=color, alpha=0.18, linewidth=0
    )


def reference(axes: Any, y: float, text: str, *, at: str = "right", color: str = "#555555") -> None:
    """A thin horizontal line with its name written above its left or right end."""
    axes.axhline(y, color=color, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    axes.annotate(
        text,
        (0.99 if at == "right" else 0.01, y),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        ha=at,
        va="bottom",
        fontsize=8,
        color=color,
    )
