"""The test set in two halves: one chooses epoch and coefficient, the other one is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from experiments.lib.data.small import SmallData
from experiments.lib.training import recipes
from experiments.lib.training.minibatch import Trained
from experiments.lib.training.recipes import Recipe

K = TypeVar("K")


def halves(
    recipe: Recipe, params: Any, model_state: Any, data: SmallData, key: Any = None
) -> dict[str, jax.Array]:
    """The accuracy on both halves of the test set; with a recipe, a `epoch.Measure`."""
    del key
    logits = recipes.logits(recipe, params, model_state, data.test_inputs)
    hits = recipes.hits(logits, data.test_targets)
    half = len(hits) // 2
    return {"validation_accuracy": hits[:half].mean(), "half_accuracy": hits[half:].mean()}


def at_best_epoch(records: dict[str, np.ndarray], among: Any = True) -> np.ndarray:
    """Accuracy on the second half where that on the first is best, for every seed.

    `among` says which records count, (seeds, records), see `cost.within`.
    """
    best = np.where(among, records["validation_accuracy"], -1.0).argmax(1)
    return np.take_along_axis(records["half_accuracy"], best[:, None], axis=1)[:, 0]


def final(
    records: dict[str, np.ndarray], name: str = "test_accuracy", among: Any = True
) -> np.ndarray:
    """The last of some records, for every seed; `among` as in `at_best_epoch`."""
    values = records[name]
    among = np.broadcast_to(among, values.shape[:2])
    last = np.where(among, np.arange(values.shape[1]), -1).max(1)
    return values[np.arange(len(values)), last]


def best_setting(found: Mapping[K, Trained]) -> K:
    """The setting with the best validation accuracy on the way, mean over seeds; none diverged."""

    def best(setting: K) -> float:
        accuracy = found[setting].records["validation_accuracy"].max(1).mean()
        return -1.0 if np.isnan(accuracy) else accuracy

    return max(found, key=best)
