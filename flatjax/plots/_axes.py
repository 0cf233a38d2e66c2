"""The axes to draw into, and the colours."""

from typing import Any

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, "#56B4E9", "#E69F00", "#000000")


def axes(ax: Any, projection: str | None = None) -> Any:
    """The axes given, or the current ones; with a projection, new ones of this kind."""
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "flatjax.plots needs matplotlib: pip install 'flatjax[plots]'."
        ) from error
    return plt.gca() if projection is None else plt.gcf().add_subplot(projection=projection)
