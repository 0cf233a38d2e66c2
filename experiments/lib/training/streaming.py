"""Training on inputs that stay on the host: the batches of `Engine`, sent in blocks of updates.

The device draws which examples make up the batches of an epoch; a block of them is gathered by
threads that read ahead. Of several processes each reads whole batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments.lib.data.stored import read_ahead
from experiments.lib.training import recipes
from experiments.lib.training.engine import Engine
from experiments.lib.training.epoch import Run
from flatjax import loops

UPDATES = 200
"""The most updates of a block, and ..."""

BYTES = 2**26
"""... of its inputs, if that is not less than one update."""


@jax.tree_util.register_static
class Absent:
    """Stands for the training inputs in what is measured."""

    def __getattr__(self, name: Any) -> Any:
        raise ValueError(
            "what is measured along training needs the training inputs on the device, and they are "
            "streamed: leave out --recipe.stream, or train on fewer examples"
        )

    __getitem__ = __getattr__

    def __len__(self) -> int:
        return self[0]


class Streaming(Engine):
    """Trains on inputs of which the host has those of each run; see `Engine`."""

    def __init__(self, run: Run, inputs: Sequence[Any], shape: tuple[int, ...]):
        """Takes what is indexed by examples, and the shape of one as the network takes it."""
        super().__init__(run)
        self.inputs, self.shape = inputs, shape
        over, compiled = self.over, self.placement.compiled
        self._initial, self._draw = compiled(over(run.init)), compiled(over(self._drawn))
        self._update = compiled(over(self._updated), donate_argnums=0)
        self._judge, self._end = compiled(over(run.judged)), compiled(over(self._ended))
        self._answer = compiled(over(run.answers))

    def chunk(self, count):
        del count
        return 1  # an epoch takes its time

    def begin(self, data, seeds, hyper, start):
        runs = self._initial(*start, seeds, hyper)
        if self.recipe.stop_loss is None:
            return runs
        return self._judge(runs, data, self._answers(runs, data))

    def advance(self, given, state, steps):
        data, runs, records = given[0], state["runs"], []
        first = int(state["block"])
        for block in range(first, first + steps):
            for _ in range(self.recipe.record_every if 0 < block < self.num_records else 0):
                if np.asarray(runs["reached"]).all():
                    break
                runs = self._epoch(runs, *given)
            records.append(self._record(runs, data, self._answers(runs, data)))
        records = {k: np.stack([np.asarray(r[k]) for r in records], axis=1) for k in records[0]}
        return {"runs": runs, "block": state["block"] + steps}, records

    def _epoch(self, runs, data, seeds, hyper):
        index, keys = map(np.asarray, self._draw(runs, data))
        update = index[:, 0].size * np.prod(self.shape) * 4
        count = index.shape[1]
        most = max(1, min(UPDATES, BYTES // int(update)))
        # Of equal length, or differing by one update: one program or two.
        blocks = np.array_split(np.arange(count), -(-count // most))
        for block, inputs in zip(blocks, self._read([index[:, b] for b in blocks]), strict=True):
            now = self.placement.everywhere((index[:, block], keys[:, block], inputs))
            jax.block_until_ready(runs)  # or blocks that wait for the device would fill its memory
            runs = self._update(runs, seeds, hyper, data, *now)
        answers = () if self.recipe.stop_loss is None else (self._answers(runs, data),)
        return self._end(runs, data, *answers)

    def _read(self, blocks):
        """The inputs of the examples (runs, ...) of each block."""

        def read(index):
            found = [rows[examples] for rows, examples in zip(self.inputs, index, strict=True)]
            return np.stack(found).reshape(*index.shape, *self.shape)

        return read_ahead(blocks, read)

    def _answers(self, runs, data):
        """The logits of the training set, (runs, n, classes)."""
        count, size = data.targets.shape
        parts = recipes.parts(size)
        blocks = [np.broadcast_to(part, (count, len(part))) for part in parts]
        found = [
            np.asarray(self._answer(runs, self.placement.everywhere(i))) for i in self._read(blocks)
        ]
        order = np.argsort(np.concatenate(parts))
        return self.placement.everywhere(np.concatenate(found, axis=1)[:, order])

    def _drawn(self, state, data):
        index, keys = self.run.drawn(state, data)
        return index, jax.random.key_data(keys)

    def _updated(self, state, seed, hyper, data, index, keys, inputs):
        keys = jax.random.wrap_key_data(keys)
        return self._unless_reached(
            state, lambda: self.run.updated(state, seed, hyper, data, index, keys, inputs)
        )

    def _ended(self, state, data, answers=None):
        def ended():
            return self.run.judged(state | {"epoch": state["epoch"] + 1}, data, answers)

        return self._unless_reached(state, ended)

    def _unless_reached(self, state, move):
        if self.recipe.stop_loss is None:
            return move()
        return loops.cond(state["reached"], lambda: state, move)
