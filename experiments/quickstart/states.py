"""The states of training: recorded as they are, and measured when training is over."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.flatten_util
import numpy as np

from experiments.lib.data.small import SmallData
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.training.curvature import NUMBERS, Curvature, run_of
from experiments.lib.training.minibatch import Trained

if TYPE_CHECKING:
    from experiments.quickstart import Config

Records = dict[str, np.ndarray]


def recorded(params: Any, model_state: Any, data: SmallData, key: Any) -> dict[str, jax.Array]:
    """Records the whole state, as a vector."""
    del data, key
    return {"state": jax.flatten_util.ravel_pytree((params, model_state))[0]}


def measured(config: Config, folder: Path, trained: Trained, data: SmallData) -> Records:
    """The records of an arm, and its curvature.

    Returns:
      The records (seeds, records); the `NUMBERS` with the epochs at which they were measured,
      `measured`, (seeds, points, ...); and the rest of `Curvature.everything`, of the end,
      (seeds, ...). A run that has stopped stands still, and so do its numbers.
    """
    records = dict(trained.records)
    states, epochs = records.pop("state"), records["epoch"]
    last = epochs.argmax(1)
    before = [i for i in range(last.max()) if _due(config, i * config.recipe.record_every)]
    seeds = []
    for index, seed in enumerate(config.seed_range()):
        instrument = Curvature(config.recipe, run_of(data, index), config.curvature)
        state = run_of((trained.params, trained.model_state), index)
        _, unravel = jax.flatten_util.ravel_pytree(state)
        at = [*np.minimum(before, last[index]).astype(int), last[index]]
        points = []
        for i in at:
            measure = instrument.everything if i == last[index] else instrument.numbers
            path = folder / f"curvature_{seed}_{epochs[index, i]}.npz"
            make = functools.partial(measure, *unravel(states[index, i]))
            points.append(kept_arrays(path, make))
        ends = {name: values for name, values in points[-1].items() if name not in NUMBERS}
        along = {name: np.stack([point[name] for point in points]) for name in NUMBERS}
        seeds.append({"measured": epochs[index, at], **along, **ends})
    found = {name: np.stack([each[name] for each in seeds]) for name in seeds[0]}
    return records | found | {"reached": trained.reached}


def _due(config: Config, epoch: int) -> bool:
    return epoch % config.measure_every == 0 or epoch in config.measure_at
