"""Small pictures for notebooks, as SVG, where a plotting library need not be installed."""

from collections.abc import Iterable

import numpy as np

_WIDTH, _HEIGHT, _MARGIN = 420, 140, 22
_DECADES = 6.0  # below the highest point
_BINS = 210


def density(grid: np.ndarray, values: np.ndarray, stems: Iterable[float] = ()) -> str:
    """A density over its grid, logarithmic upwards, with a stem where single values are.

    The grid is taken as evenly spaced: on the axis that it was made for it is.

    Args:
      grid: ascending, shape ``(g,)``.
      values: shape ``(g,)``.
      stems: values on the axis, marked.

    Returns:
      An ``<svg>`` element, or nothing where no value is positive.

    Example:
      >>> import numpy as np
      >>> from flatjax import _sketches as sketches
      >>> sketches.density(np.array([0.0, 1.0]), np.array([1.0, 0.1]), [0.5]).count("<line")
      1
    """
    some = values[np.isfinite(values) & (values > 0)]
    if not some.size or len(grid) < 2:
        return ""
    # The highest of each few points, so that no outlier falls between two of those drawn.
    starts = np.unique(np.linspace(0, len(grid), _BINS, endpoint=False).astype(int))
    tops = np.maximum.reduceat(np.nan_to_num(values, posinf=some.max()), starts)
    floor = some.max() * 10**-_DECADES
    heights = np.log10(np.maximum(tops, floor) / floor) / _DECADES
    bottom, across = _HEIGHT - _MARGIN, _WIDTH - 2 * _MARGIN

    def x(position):
        return f"{_MARGIN + across * position / (len(grid) - 1):.1f}"

    def y(height):
        return f"{bottom - (bottom - 8) * height:.1f}"

    line = " ".join(f"{x(s)},{y(h)}" for s, h in zip(starts, heights, strict=True))
    parts = [
        f'<polyline points="{line}" fill="none" stroke="currentColor"/>',
        f'<path d="M{_MARGIN} {bottom}h{across}" stroke="currentColor" opacity=".4"/>',
    ]
    for stem in stems:
        at = float(np.interp(stem, grid, np.arange(len(grid))))
        top = y(float(np.interp(at, starts, heights)))
        ends = f'x1="{x(at)}" x2="{x(at)}" y1="{bottom}" y2="{top}"'
        parts.append(f'<line {ends} stroke="currentColor" stroke-width="2" opacity=".6"/>')
    for anchor, at in (("start", 0), ("end", len(grid) - 1)):
        label = f'x="{x(at)}" y="{_HEIGHT - 6}" text-anchor="{anchor}"'
        parts.append(f'<text {label} font-size="11" fill="currentColor">{grid[at]:.4g}</text>')
    size = f'width="{_WIDTH}" height="{_HEIGHT}" style="display:block"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(parts)}</svg>'
