"""Numbers of pairs of learning rate eta and batch size S: their ratio, and what pairs share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

Pairs = dict[tuple[float, int], dict[str, np.ndarray]]
"""Learning rate and batch size, and what was measured, with a leading axis of seeds."""


def ratios_of(pairs: Iterable[tuple[float, int]]) -> np.ndarray:
    """Eta / S of all pairs."""
    return np.array([rate / size for rate, size in pairs])


def crossed(pairs: Iterable[tuple[float, int]]) -> np.ndarray:
    """A product of powers of eta and S whose logarithm is uncorrelated with that of eta / S."""
    logs = np.log(np.array(list(pairs)))
    logs = logs - logs.mean(0)
    return np.exp(logs @ [1 / (variance or np.inf) for variance in logs.var(0)])


def rates_of(pairs: Iterable[tuple[float, int]]) -> list[float]:
    """Eta of all pairs."""
    return [rate for rate, _ in pairs]


def alike(numbers: Any) -> list[np.ndarray]:
    """For each value which of the numbers have it."""
    numbers = np.asarray(numbers, float)
    return [np.isclose(numbers, n, rtol=1e-3) for n in np.unique(numbers.round(8))]


def spread(values: np.ndarray) -> float:
    """Largest over smallest, minus one."""
    return float(values.max() / values.min() - 1)


def at(level: float, rising: np.ndarray, *others: np.ndarray) -> list[float]:
    """The other quantities where the first one reaches a level, between records linearly."""
    reached = np.flatnonzero(rising >= level)
    if not len(reached):
        return [float("nan")] * len(others)
    j = int(reached[0])
    if j == 0:
        return [float(values[0]) for values in others]
    part = (level - rising[j - 1]) / (rising[j] - rising[j - 1])
    return [float((1 - part) * values[j - 1] + part * values[j]) for values in others]


def halfway(pairs: Pairs) -> np.ndarray:
    """Validation accuracy and epoch with half of the wrong labels fitted, (pairs, seeds, 2)."""
    names = ("noisy_fit", "test_accuracy", "epoch")
    return np.array(
        [
            [at(0.5, *row) for row in zip(*(p[n] for n in names), strict=True)]
            for p in pairs.values()
        ]
    )


def unexplained(rows: np.ndarray, numbers: Any) -> np.ndarray:
    """Share of the variance of rows (seeds, pairs) that is among pairs of equal numbers."""
    rest = rows.copy()
    for group in alike(numbers):
        rest[:, group] -= rest[:, group].mean(1, keepdims=True)
    return rest.var(1) / rows.var(1)


def within(groups: Iterable[np.ndarray], rows: np.ndarray) -> list[float]:
    """The largest relative range within groups, of rows (seeds, pairs)."""
    return [max(spread(row[group]) for group in groups) for row in rows]


def fitted_at_equal_accuracy(pairs: Pairs, seed: int) -> list[float]:
    """Wrong labels fitted where the accuracy is first within 1 % of the best that all reach."""
    tests = [p["test_accuracy"][seed] for p in pairs.values()]
    level = min(test.max() for test in tests) - 0.01
    return [
        at(level, test, p["noisy_fit"][seed])[0]
        for test, p in zip(tests, pairs.values(), strict=True)
    ]


def accuracy_halfway(pairs: Pairs, seed: int) -> np.ndarray:
    """The validation accuracy of every pair where half of the wrong labels are fitted."""
    return halfway(pairs)[:, seed, 0]
