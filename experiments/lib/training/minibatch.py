"""Minibatch training of any network inside a compiled loop.

    data = load_seeds("digits", seeds, train_size=400, label_noise=0.25)
    found = train_arm(out / "sgd", Recipe(epochs=100), data, seeds,
                      lambda seed, rate: optax.sgd(rate), hyper=jnp.full(len(seeds), 0.1))
    found.records["test_accuracy"]                                  # (seeds, records)

Everything has a leading axis of runs (one a seed, or seeds times settings). Fully connected
networks are trained side by side, others one run after the other in one compiled program, see
`Architecture.over_runs`. Joined processes and several accelerators share every batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib.data.small import SmallData, small_data, stack_seeds
from experiments.lib.data.stored import Stored
from experiments.lib.runs.placement import Placement
from experiments.lib.training.engine import Engine, Trained
from experiments.lib.training.epoch import MakeOptimizer, Measure, Run
from experiments.lib.training.recipes import Recipe
from experiments.lib.training.streaming import Absent, Streaming


def load_seeds(
    name: str, seeds: Sequence[int], *, train_size: int, label_noise: float = 0.0, **options: Any
) -> SmallData:
    """The data of all seeds, with a leading axis; see `small_data`."""
    return stack_seeds(
        [
            small_data(name, seed=s, train_size=train_size, label_noise=label_noise, **options)
            for s in seeds
        ]
    )


def repeat(tree: Any, count: int) -> Any:
    """Every run `count` times in a row, for as many settings."""
    return jax.tree.map(lambda a: np.repeat(np.asarray(a), count, axis=0), tree)


def train_arm(
    folder: Path,
    recipe: Recipe,
    data: SmallData,
    seeds: Any,
    make_optimizer: MakeOptimizer,
    *,
    hyper: Any = None,
    measure: Measure | None = None,
    start: Any = None,
    chunk: int | None = None,
    data_parallel: bool | None = None,
    quiet: bool = True,
) -> Trained:
    """Trains all runs and records them; continues where an earlier start stopped.

    Args:
      folder: a folder of its own.
      recipe: network and training.
      data: with a leading axis of runs; of several processes each has all of them.
      seeds: of each run: initialisation, order of the batches, `seed` of the optimiser.
      make_optimizer: `make_optimizer(seed, hyper)`, both of one run and traced. The optimiser gets
        flatjax's extra arguments: `grad_fn`, `value_fn`, `batch`, and `args`, which is
        `(model_state,)`.
      hyper: a tree of numbers with a leading axis of runs, or None.
      measure: `measure(params, model_state, data, key)` of one run, more to record.
      start: the first parameters and batch statistics; default `init_runs`.
      chunk: records between two saves; default a quarter of all, or all of less than eight, and
        fewer where so many runs go one after the other.
      data_parallel: whether all devices share each batch; default where there are several processes
        or accelerators, see `experiments.lib.runs.placement`.
      quiet: no progress bar.

    Returns:
      The runs at the end and along the way.

    Raises:
      ExperimentError: a batch does not split over the devices.
      ValueError: there are labels for which the network has no output.
    """
    seeds = jnp.asarray(seeds, jnp.uint32)
    hyper = jnp.zeros(len(seeds)) if hyper is None else hyper
    largest = max(int(np.max(a)) for a in (data.targets, data.test_targets))
    if largest >= recipe.classes:
        raise ValueError(
            f"the labels go up to {largest} and the network has {recipe.classes} outputs: set "
            f"--recipe.classes {largest + 1}"
        )
    placement = Placement(data_parallel=data_parallel)
    size = data.targets.shape[1]
    placement.check_batch_size(min(recipe.batch_size or size, size))
    engine = Engine(run := Run(recipe, make_optimizer, measure, placement))
    if recipe.stream or isinstance(data.inputs, Stored):
        inputs = [jax.tree.map(lambda a, i=i: a[i], data.inputs) for i in range(len(seeds))]
        engine = Streaming(run, inputs, data.test_inputs.shape[2:])
        data = data._replace(inputs=Absent())
    return engine.train(folder, (data, seeds, hyper, start), chunk, quiet=quiet)
