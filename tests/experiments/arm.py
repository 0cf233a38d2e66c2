"""A short convolutional run of the training engine, to be killed."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from experiments.lib.lab import Lab, Options
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.training import engine, minibatch
from experiments.lib.training.recipes import Recipe
from experiments.lib.training.settings import train_settings


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    seeds: int = 2
    recipe: Recipe = Recipe(network="s2cnn-4-batch", batch_size=8, epochs=12, flip=True, crop=1)
    pause: float = field(default=0.0, metadata={"identity": False})  # seconds before each chunk


lab = Lab(Config, "Nobody", data_parallel=True, smoke={})
EXPERIMENT = lab.experiment


def pausing(seconds: float) -> Any:
    """`run_chunks` that leaves others the time to kill it."""
    run_chunks = engine.run_chunks

    def slow(folder, state, advance, *args, **options):
        def late(*now):
            time.sleep(seconds)
            return advance(*now)

        return run_chunks(folder, state, late, *args, **options)

    return slow


@lab.run
def run(config: Config, out: Path) -> dict[str, Any]:
    """All records, and all parameters at the end."""
    if config.pause:
        engine.run_chunks = pausing(config.pause)
    seeds = config.seed_range()
    data = minibatch.load_seeds(
        config.data, seeds, train_size=32, test_size=50, label_noise=0.25, flat=False
    )
    make = lambda seed, rate: optax.sgd(rate, momentum=0.5)  # noqa: E731
    rates = {"slow": 0.01, "fast": 0.02}
    trained = train_settings(out / "sgd", config.recipe, data, seeds, make, rates)

    def ends() -> dict[str, Any]:
        found = {}
        for rate, runs in trained.items():
            leaves = jax.tree.leaves((runs.params, runs.model_state))
            found[rate] = np.concatenate([a.reshape(len(seeds), -1) for a in leaves], axis=1)
            found |= {f"{rate} {name}": values for name, values in runs.records.items()}
        return found

    return kept_arrays(out / "ends.npz", ends)
