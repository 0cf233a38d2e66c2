"""The compiled programs of one arm; everything has a leading axis of runs."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib.data.small import SmallData
from experiments.lib.runs.trajectory import run_chunks
from experiments.lib.training import recipes
from experiments.lib.training.epoch import Run


class Trained(NamedTuple):
    """What became of all runs.

    Attributes:
      params: the last parameters, leading axis of runs.
      model_state: the last batch statistics, likewise.
      records: arrays (runs, records, ...); `epoch` counts the epochs trained, and stands still
        where a run has reached `stop_loss`.
      reached: (runs,) bool, whether it has.
      opt_state: the last state of the optimiser, leading axis of runs; `flatjax.averaged_params`
        reads averages from it, of one run.
    """

    params: Any
    model_state: Any
    records: dict[str, np.ndarray]
    reached: np.ndarray
    opt_state: Any = None


class Engine:
    """Trains on data that lie on the device."""

    def __init__(self, run: Run):
        self.run, self.recipe, self.placement = run, run.recipe, run.placement
        self.num_records = 1 + max(1, -(-self.recipe.epochs // self.recipe.record_every))
        self.over, compiled = self.recipe.over_runs, self.placement.compiled
        self._start, self._record = compiled(self.started), compiled(self.over(run.record))
        self._move = compiled(self._moved, static_argnums=4, donate_argnums=0)

    def train(
        self, folder: Path, given: tuple[Any, ...], chunk: int | None, *, quiet: bool
    ) -> Trained:
        """Trains with the given data, seeds, numbers for the optimiser, and first parameters."""
        data, seeds, hyper, start = given
        if start is None:
            start = recipes.init_runs(self.recipe, data, seeds)
        given = jax.tree.map(jnp.asarray, (data, seeds, hyper, start))
        data, seeds, hyper, start = self.placement.everywhere(given)
        runs = self.begin(data, seeds, hyper, start)
        chunk = chunk or self.chunk(len(runs["epoch"]))
        state, records = run_chunks(
            folder,
            {"runs": runs, "block": self.placement.everywhere(jnp.zeros((), jnp.int32))},
            functools.partial(self.advance, (data, seeds, hyper)),
            chunk * -(-self.num_records // chunk),
            chunk,
            axis=1,
            logged=self.num_records,
            placement=self.placement,
            quiet=quiet,
        )
        runs = state["runs"]
        names = ("params", "model_state", "opt_state")
        params, model_state, opt_state = self.placement.here(tuple(runs[n] for n in names))
        records = {k: v[:, : self.num_records] for k, v in records.items()}
        return Trained(params, model_state, records, np.asarray(runs["reached"]), opt_state)

    def chunk(self, count: int) -> int:
        """Records between two saves: a quarter, or fewer where so many runs share the time."""
        most = self.num_records if self.num_records < 8 else -(-self.num_records // 4)
        return max(1, most // (1 if self.recipe.flat else count))

    def begin(self, data: SmallData, seeds: Any, hyper: Any, start: Any) -> Any:
        """All runs before the first epoch."""
        return self._start(data, seeds, hyper, start)

    def started(self, data, seeds, hyper, start):
        runs = self.over(self.run.init)(*start, seeds, hyper)
        return self.over(self.run.judged)(runs, data)

    def advance(self, given: Any, state: Any, steps: int) -> tuple[Any, dict[str, Any]]:
        """The state after so many blocks of epochs, and a record of each."""
        if not np.asarray(state["runs"]["reached"]).all():
            return self._move(state, *given, steps)
        records = self._record(state["runs"], given[0])
        return state, {k: np.repeat(np.asarray(v)[:, None], steps, 1) for k, v in records.items()}

    def _moved(self, state, data, seeds, hyper, steps):
        # No epoch before the first record, nor in what fills up the last chunk: one program serves
        # all.
        block = state["block"] + jnp.arange(steps)
        moves = (block > 0) & (block < self.num_records)
        epochs = jnp.where(moves, self.recipe.record_every, 0)
        blocks = self.over(functools.partial(self.run.blocks, epochs=epochs))
        runs, records = blocks(state["runs"], seeds, hyper, data)
        return {"runs": runs, "block": state["block"] + steps}, records
