"""Shuffled training batches as a grain iterator, whose state goes into the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import grain
import numpy as np

# grain counts positions in a 64-bit integer; no run is this long.
_FOREVER = 2**48


class Rows(NamedTuple):
    """One batch of positions: which examples, and which batch of the run this is."""

    number: int
    index: np.ndarray


class Schedule:
    """Which examples make up each batch of a run: a function of the batch's number alone.

    Each epoch is a seeded permutation cut into whole batches; the remainder, different in each
    epoch, is left out. A random-access source for grain, so that an iterator's state is one
    number and resuming is exact.
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int | None,
        *,
        seed: int,
        shuffle: bool = True,
        reshuffle: bool = True,
    ):
        """See `experiments.lib.data.Dataset.batches`."""
        if batch_size is not None and not 1 <= batch_size <= num_examples:
            raise ValueError(
                f"batch_size must lie in 1 .. {num_examples}, the number of training examples, "
                f"or be None for full batches; got {batch_size}"
            )
        self.num_examples = num_examples
        self.batch_size = num_examples if batch_size is None else batch_size
        self.batches_per_epoch = num_examples // self.batch_size
        # A full batch keeps its order: shuffling it would only change the rounding.
        self._shuffle = shuffle and self.batch_size < num_examples
        self._reshuffle = reshuffle
        self._seed = seed
        self._cached: tuple[int, np.ndarray] = (-1, np.arange(num_examples))

    def __len__(self) -> int:
        return _FOREVER

    def __getitem__(self, number: int) -> Rows:
        epoch, place = divmod(int(number), self.batches_per_epoch)
        order = self._order(epoch if self._reshuffle else 0)
        return Rows(number, order[place * self.batch_size : (place + 1) * self.batch_size])

    def _order(self, epoch: int) -> np.ndarray:
        cached_epoch, order = self._cached
        if not self._shuffle or cached_epoch == epoch:
            return order
        # RandomState, not default_rng: its streams are frozen across NumPy versions (NEP 19).
        order = np.random.RandomState([self._seed, epoch]).permutation(self.num_examples)
        self._cached = (epoch, order)
        return order


def batch_iterator(schedule: Schedule, make_batch: Callable[[Rows], Any]) -> Any:
    """Returns a grain iterator over `make_batch(rows)`, endless, prefetching in one thread.

    It has `get_state()` and `set_state(state)`, and orbax saves and restores it as it is.
    """
    batches = grain.MapDataset.source(schedule).map(make_batch)
    # grain's own default reads 500 elements ahead, here whole batches, in 16 threads.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(batches.to_iter_dataset(options))
