"""Numbers over seeds: mean and standard error, rank correlations, tables of accuracies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit
from scipy.stats import spearmanr

from experiments.lib.verdicts.report import Table


def by_seed(seeds: Sequence[int], values: Any) -> dict[int, float]:
    """One number a seed, as `judge` takes them."""
    return {int(s): float(v) for s, v in zip(seeds, np.asarray(values, float), strict=True)}


def mean_and_error(values: Any) -> tuple[float, float | None]:
    """Mean and standard error over the seeds; None for a single one."""
    values = np.asarray(values, float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, None
    if np.ptp(values) == 0:  # the mean is rounded, and so would be a spread about it
        return float(values[0]), 0.0
    return mean, float(values.std(ddof=1) / np.sqrt(len(values)))


def with_error(values: Any) -> str:
    """Mean and standard error over the seeds as text, for a cell of a table."""
    mean, error = mean_and_error(values)
    return f"{mean:.3g}" + ("" if error is None else f" ± {error:.2g}")


def student(count: int) -> float:
    """The standard errors from the mean of so many seeds to an end of its 95 % interval."""
    return float(stdtrit(count - 1, 0.975))


def climb(row: np.ndarray) -> float:
    """The most that a number is above the least before it; negative where all only fall."""
    return max(float(row[i] - row[:i].min()) for i in range(1, len(row)))


def rank_correlation(x: Any, y: Any) -> float:
    """Spearman's; NaN where one of the two does not vary."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    if np.ptp(x) == 0 or np.ptp(y) == 0 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return float("nan")
    return float(spearmanr(x, y).statistic)


def accuracy_table(columns: Sequence[str], rows: dict[str, Sequence[Any]], caption: str) -> Table:
    """Accuracies (per seed) in per cent with standard errors, in the columns of the paper."""
    cells = []
    for name, values in rows.items():
        cells.append([name, *(_percent(v) for v in values)])
    return Table(("setting", *columns), cells, caption)


def _percent(values: Any) -> str:
    mean, error = mean_and_error(100 * np.asarray(values))
    return f"{mean:.1f}" + ("" if error is None else f" ± {error:.1f}")
