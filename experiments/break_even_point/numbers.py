"""Pure functions of the records: the largest values, the break-even point, distances of paths."""

from __future__ import annotations

import numpy as np

LEARNED = 0.97
"""Training accuracy up to which is compared."""


def smooth(values: np.ndarray) -> np.ndarray:
    """Means of 9 of medians of 9: single spikes late in training do not count."""
    for mean in (np.median, np.mean):
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, 4, mode="edge"), 9)
        values = mean(windows, -1)
    return values


def learned(accuracy: np.ndarray) -> int:
    """The first measurement at which nearly everything is learned."""
    found = np.flatnonzero(accuracy >= LEARNED)
    return int(found[0]) if len(found) else len(accuracy)


def compared(records: dict[str, np.ndarray], quantity: str) -> list[np.ndarray]:
    """The smoothed values until nearly everything is learned, for every seed."""
    first = 5 if quantity.startswith("ratio") else 0
    ends = [max(learned(row), first + 5) for row in records["accuracy"]]
    return [smooth(v[first:end]) for v, end in zip(records[quantity], ends, strict=True)]


def largest(records: dict[str, np.ndarray], quantity: str) -> np.ndarray:
    """The largest of them."""
    return np.array([values.max() for values in compared(records, quantity)], float)


def break_even(slow: dict[str, np.ndarray], fast: dict[str, np.ndarray]) -> list[int | None]:
    """The measurement at which the slow arm's tr K passes the fast arm's largest."""
    found: list[int | None] = []
    for row, top in zip(slow["trace_K"], largest(fast, "trace_K"), strict=True):
        passed = np.flatnonzero(smooth(row) > top)
        found.append(int(passed[0]) if len(passed) else None)
    return found


def nearest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """For every row of a the distance to the closest row of b, per example of the predictions."""
    shown = a.shape[1]
    a, b = (x.reshape(len(x), -1).astype(np.float32) for x in (a, b))
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0).min(1) / shown)
