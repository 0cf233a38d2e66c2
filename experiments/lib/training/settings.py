"""All seeds with several settings of one optimiser, trained side by side as one program.

    rates = {rate: rate for rate in (0.03, 0.3)}
    found = train_settings(out, recipe, data, seeds, lambda seed, rate: optax.sgd(rate), rates)
    found[0.3].records["test_accuracy"]                              # (seeds, records)

Settings of different shapes, another optimiser say, are arms of their own. `train_grid` does so for
each of several data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from experiments.lib.data.small import SmallData
from experiments.lib.training import minibatch
from experiments.lib.training.epoch import MakeOptimizer
from experiments.lib.training.minibatch import Trained
from experiments.lib.training.recipes import Recipe

K = TypeVar("K")
D = TypeVar("D")


def train_settings(
    folder: Path,
    recipe: Recipe,
    data: SmallData,
    seeds: Sequence[int],
    make_optimizer: MakeOptimizer,
    settings: Mapping[K, Any],
    **options: Any,
) -> dict[K, Trained]:
    """Trains every seed with every setting.

    Args:
      folder: a folder of its own.
      recipe: network and training.
      data: with a leading axis of seeds.
      seeds: the seeds.
      make_optimizer: `make_optimizer(seed, setting)`, see `minibatch.train_arm`.
      settings: trees of numbers of one structure, by name.
      **options: more for `minibatch.train_arm`.

    Returns:
      For each setting its runs, with a leading axis of seeds.
    """
    count = len(settings)
    hyper = jax.tree.map(
        lambda *numbers: np.tile(np.array(numbers, np.float32), len(seeds)), *settings.values()
    )
    trained = minibatch.train_arm(
        folder,
        recipe,
        minibatch.repeat(data, count),
        np.repeat(seeds, count),
        make_optimizer,
        hyper=hyper,
        **options,
    )
    return {
        name: jax.tree.map(lambda a, i=i: a[i::count], trained) for i, name in enumerate(settings)
    }


def load_grid(
    name: str, recipe: Recipe, seeds: Sequence[int], noises: Sequence[float], **sizes: Any
) -> dict[float, SmallData]:
    """The data of all seeds for each of some fractions of wrong labels, for `train_grid`.

    `sizes` are `train_size` and, if not all are wanted, `test_size`.
    """
    options = {"flat": recipe.flat, "num_classes": recipe.classes, **sizes}
    return {
        noise: minibatch.load_seeds(name, seeds, label_noise=noise, **options) for noise in noises
    }


def train_grid(
    folder: Path,
    recipe: Recipe,
    data: Mapping[D, SmallData],
    seeds: Sequence[int],
    make_optimizer: MakeOptimizer,
    settings: Mapping[K, Any],
    **options: Any,
) -> dict[tuple[K, D], Trained]:
    """Trains every seed with every setting on each of some data, such as those of a label noise.

    Args:
      folder: a folder of its own.
      recipe: network and training.
      data: by name, of one shape, each with a leading axis of seeds.
      seeds: the seeds.
      make_optimizer: `make_optimizer(seed, setting)`, see `minibatch.train_arm`.
      settings: trees of numbers of one structure, by name.
      **options: more for `minibatch.train_arm`.

    Returns:
      For each setting and each data its runs, with a leading axis of seeds.
    """
    stacked = jax.tree.map(lambda *leaves: np.concatenate(leaves), *data.values())
    every = [*seeds] * len(data)
    found = train_settings(folder, recipe, stacked, every, make_optimizer, settings, **options)
    return {
        (setting, name): jax.tree.map(lambda a, i=i: a[i : i + len(seeds)], trained)
        for setting, trained in found.items()
        for i, name in zip(range(0, len(every), len(seeds)), data, strict=True)
    }
