"""One plain run on wrong labels: does its test error fall, rise and fall again by itself?

Records are noisy from one to the next, so they are averaged over octaves of epochs: the first
epochs, twice as many, four times as many, and so on.

octaves(records["epoch"], records["test_error"])                     # (seeds, octaves)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib.training import minibatch
from experiments.lib.training.descent import descent
from experiments.lib.verdicts.statistics import climb

PLAIN = "plain"
"""The arm."""


def train(config: Any, out: Path, measure: Any) -> dict[str, np.ndarray]:
    """The records of the plain run, (seeds, points) each."""
    seeds, recipe = list(config.seed_range()), config.plain
    data = minibatch.load_seeds(
        config.data, seeds, train_size=config.plain_size, test_size=config.test_size,
        label_noise=config.label_noise, flat=recipe.flat, num_classes=recipe.classes,
    )  # fmt: skip
    found = minibatch.train_arm(
        out / PLAIN, recipe, data, seeds,
        lambda seed, hyper: descent(config.plain_descent, recipe, config.plain_size),
        measure=measure, quiet=config.quiet,
    )  # fmt: skip
    errors = {f"{kind}_error": 1 - found.records[f"{kind}_accuracy"] for kind in ("test", "train")}
    return {**found.records, **errors}


def octaves(epochs: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Means over records of epochs from 2^k to 2^(k + 1), the untrained network left out.

    Args:
      epochs: (seeds, points), the same for all seeds.
      values: (seeds, points).

    Returns:
      (seeds, octaves), those without a record left out.
    """
    of = np.floor(np.log2(np.maximum(epochs[0], 0.5))).astype(int)
    return np.stack([values[:, of == k].mean(1) for k in np.unique(of[of >= 0])], axis=1)


def of_octaves(number: Callable[[np.ndarray], float], name: str) -> Any:
    """The measure of a claim: a number of every seed's row of octaves."""
    return lambda runs, config: [
        number(row) for row in octaves(runs[PLAIN]["epoch"], runs[PLAIN][name])
    ]


def fall(row: np.ndarray) -> float:
    """How much the end is below the peak, which is farthest above the least before it; or NaN."""
    if climb(row) <= 0:
        return float("nan")
    peak = max(range(1, len(row)), key=lambda i: row[i] - row[:i].min())
    return float(row[peak] - row[-1])


def end_over_largest(row: np.ndarray) -> float:
    """The end over the largest."""
    return float(row[-1] / row.max())
