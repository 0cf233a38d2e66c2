"""Curves over seeds: the mean, with a band of two standard errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from experiments.lib.figures import band, style


def curve(axes: Any, x: Any, values: Any, number: int, label: str = "", **options: Any) -> None:
    """Draws the mean of `values` (seeds, points) over `x`."""
    values = np.asarray(values, float)
    options = {**style(number, markers=False), **options}
    axes.plot(x, values.mean(0), label=label or None, **options)
    if len(values) > 1:
        band(axes, x, values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values)), number)


def by_seed(seeds: Sequence[int], values: Any) -> dict[int, float]:
    """One number a seed, as `judge` takes them."""
    return {int(s): float(v) for s, v in zip(seeds, np.asarray(values, float), strict=True)}


def mean_and_error(values: Any) -> tuple[float, float | None]:
    """Mean and standard error over the seeds; None for a single one."""
    values = np.asarray(values, float)
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
    return float(values.mean()), None if error is None else float(error)


def rank_correlation(x: Any, y: Any) -> float:
    """Spearman's; NaN where one of the two does not vary."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    if np.ptp(x) == 0 or np.ptp(y) == 0 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return float("nan")
    return float(spearmanr(x, y).statistic)
