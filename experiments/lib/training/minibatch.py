"""Minibatch training of any network inside a compiled loop.

    data = load_seeds("digits", seeds, train_size=400, label_noise=0.25)
    found = train_arm(out / "sgd", Recipe(epochs=100), data, seeds,
                      lambda seed, rate: optax.sgd(rate), hyper=jnp.full(len(seeds), 0.1))
    found.records["test_accuracy"]                                  # (seeds, records)

Everything has a leading axis of runs (one a seed, or seeds times settings). Fully connected
networks are trained side by side under `jax.vmap`; others one run after the other by one compiled
program, since on a CPU convolutions with a kernel for each run are slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib.data.small import SmallData, small_data, stack_seeds
from experiments.lib.runs.trajectory import run_chunks
from experiments.lib.training import recipes
from experiments.lib.training.epoch import MakeOptimizer, Measure, Run
from experiments.lib.training.recipes import Recipe
from flatjax import loops


class Trained(NamedTuple):
    """What became of all runs.

    Attributes:
      params: the last parameters, leading axis of runs.
      model_state: the last batch statistics, likewise.
      records: arrays (runs, records, ...); `epoch` counts the epochs trained, and stands still
        where a run has reached `stop_loss`.
      reached: (runs,) bool, whether it has.
    """

    params: Any
    model_state: Any
    records: dict[str, np.ndarray]
    reached: np.ndarray


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
    quiet: bool = True,
) -> Trained:
    """Trains all runs and records them; continues where an earlier start stopped.

    Args:
      folder: a folder of its own.
      recipe: network and training.
      data: with a leading axis of runs.
      seeds: of each run: initialisation, order of the batches, `seed` of the optimiser.
      make_optimizer: `make_optimizer(seed, hyper)`, both of one run and traced. The optimiser gets
        flatjax's extra arguments: `grad_fn`, `value_fn`, `batch`, and `args`, which is
        `(model_state,)`.
      hyper: a tree of numbers with a leading axis of runs, or None.
      measure: `measure(params, model_state, data, key)` of one run, more to record.
      start: the first parameters and batch statistics; default `init_runs`.
      chunk: records between two saves; default a quarter of all, or all of less than eight.
      quiet: no progress bar.

    Returns:
      The runs at the end and along the way.

    Raises:
      ValueError: there are labels for which the network has no output.
    """
    seeds = jnp.asarray(seeds, jnp.uint32)
    hyper = jnp.zeros(len(seeds)) if hyper is None else jax.tree.map(jnp.asarray, hyper)
    largest = max(int(np.max(a)) for a in (data.targets, data.test_targets))
    if largest >= recipe.classes:
        raise ValueError(
            f"the labels go up to {largest} and the network has {recipe.classes} outputs: set "
            f"--recipe.classes {largest + 1}"
        )
    engine = _Engine(recipe, make_optimizer, measure)
    given = (data, seeds, hyper, start)
    if recipe.flat:
        return engine.train(folder, given, chunk, quiet=quiet)
    runs = []
    for i in range(len(seeds)):
        one = jax.tree.map(lambda a, i=i: a[i : i + 1], given)
        runs.append(engine.train(folder / f"run_{i}", one, chunk, quiet=quiet))
    return jax.tree.map(lambda *a: np.concatenate(a), *runs)


class _Engine:
    """The compiled programs of one arm; everything has a leading axis of runs."""

    def __init__(self, recipe: Recipe, make_optimizer: MakeOptimizer, measure: Measure | None):
        self.recipe, self.run = recipe, Run(recipe, make_optimizer, measure)
        self.num_records = 1 + max(1, -(-recipe.epochs // recipe.record_every))
        self._over = jax.vmap if recipe.flat else _single
        self._moving = jax.jit(self._moved, static_argnums=4, donate_argnums=0)
        self._begin, self._still = jax.jit(self._first), jax.jit(self._recorded)

    def train(self, folder, given, chunk, *, quiet) -> Trained:
        data, seeds, hyper, start = given
        data = jax.tree.map(jnp.asarray, data)
        state = self._begin(data, seeds, hyper, start)

        def advance(state, steps):
            if not bool(state["runs"]["reached"].all()):
                return self._moving(state, data, seeds, hyper, steps)
            rest = self._still(state["runs"], data)
            return state, {k: jnp.repeat(v[:, None], steps, axis=1) for k, v in rest.items()}

        count = self.num_records
        chunk = chunk or (count if count < 8 else -(-count // 4))
        state, records = run_chunks(
            folder,
            state,
            advance,
            chunk * -(-count // chunk),
            chunk,
            axis=1,
            logged=count,
            quiet=quiet,
        )
        runs = state["runs"]
        records = {k: v[:, :count] for k, v in records.items()}
        return Trained(runs["params"], runs["model_state"], records, np.asarray(runs["reached"]))

    def _first(self, data, seeds, hyper, start):
        params, model_state = (
            recipes.init_runs(self.recipe, data, seeds) if start is None else start
        )
        runs = self._over(self.run.init)(params, model_state, seeds, hyper, data)
        return {"runs": runs, "block": jnp.zeros((), jnp.int32)}

    def _recorded(self, runs, data):
        return self._over(self.run.record)(runs, data)

    def _moved(self, state, data, seeds, hyper, steps):
        epoch = lambda _, runs: self._over(self.run.epoch)(runs, seeds, hyper, data)  # noqa: E731

        def block(state, _):
            # No epoch before the first record, nor in what fills up the last chunk: one program
            # serves all.
            moves = (state["block"] > 0) & (state["block"] < self.num_records)
            epochs = jnp.where(moves, self.recipe.record_every, 0)
            runs = loops.fori(epochs, epoch, state["runs"])
            return {"runs": runs, "block": state["block"] + 1}, self._recorded(runs, data)

        state, records = loops.scan(block, state, length=steps)
        return state, {k: jnp.moveaxis(v, 0, 1) for k, v in records.items()}


def _single(fn):
    """What `jax.vmap` returns of the one run that there is, without a batched kernel."""

    def over(*args):
        out = fn(*jax.tree.map(lambda a: a[0], args))
        return jax.tree.map(lambda a: jnp.asarray(a)[None], out)

    return over
