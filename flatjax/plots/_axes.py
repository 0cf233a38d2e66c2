"""The axes to draw into, and the colours."""

from typing import Any

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, "#56B4E9", "#E69F00", "#000000")


def check_kind(plot: str, result: Any, *kinds: type) -> None:
    """Raise ``TypeError`` unless the result is what a plot draws.

    Where one of its fields is, the error names that.
    """
    if isinstance(result, kinds):
        return
    fields = getattr(result, "_fields", ())
    inside = [f".{name}" for name in fields if isinstance(getattr(result, name), kinds)]
    hint = f": draw its {' or '.join(inside)}" if inside else ""
    names = " or ".join(kind.__name__ for kind in kinds)
    raise TypeError(f"{plot} draws a {names}, got {type(result).__name__}{hint}.")


def axes(ax: Any, projection: str | None = None) -> Any:
    """The axes given, or the current ones; with a projection, new ones of this kind."""
    if ax is not None:
        if projection is not None and ax.name != projection:
            raise TypeError(
                f'ax is of projection "{ax.name}", and must be of "{projection}": '
                f'plt.subplot(projection="{projection}").'
            )
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "flatjax.plots needs matplotlib: pip install 'flatjax[plots]'."
        ) from error
    return plt.gca() if projection is None else plt.gcf().add_subplot(projection=projection)
