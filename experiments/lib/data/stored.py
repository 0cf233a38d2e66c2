"""Inputs that stay on disk until they are asked for, and reading ahead.

images = inputs(split, "cifar10")              # indexed like split.arrays().inputs
for block in read_ahead([slice(0, 100), slice(100, 200)], lambda rows: images[rows]):
    ...
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grain
import jax
import numpy as np

from experiments.lib.data.images import DataConfig, Normalizer, Split, load_data
from experiments.lib.data.storage import data_directory

B = TypeVar("B")
T = TypeVar("T")


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["rows", "mean", "std"], meta_fields=["split"]
)
@dataclass(frozen=True)
class Stored:
    """Normalised images (n, height, width, channels), read when they are indexed.

    A tree of small arrays: those of several runs are stacked and repeated as arrays are, if they
    come from one object `split`.

    Attributes:
      rows: (n,) which images of the stored split they are.
      mean: what is subtracted from their pixels, and ...
      std: ... by what they are divided.
      split: reads them.
    """

    rows: Any
    mean: Any
    std: Any
    split: Split

    def __getitem__(self, index: Any) -> np.ndarray:
        """Reads the images at some positions."""
        rows = self.rows[index]
        pixels = self.split.read(rows.ravel())[0]
        return Normalizer(self.mean, self.std)(pixels.reshape(*rows.shape, *pixels.shape[1:]))


def inputs(part: Split, name: str) -> Stored:
    """Those of a part of the training split of a prepared data set."""
    reader = _reader(name, str(data_directory()))
    mean, std = map(np.asarray, part.normalizer)
    return Stored(part.rows, mean, std, reader)


@functools.cache
def _reader(name: str, directory: str) -> Split:
    """One object for all parts, so that they can be stacked."""
    config = DataConfig(name=name, data_dir=directory, normalize="none", in_memory_gib=0)
    return load_data(config).train


def labels(part: Split) -> tuple[np.ndarray, np.ndarray]:
    """The labels trained on and the true ones, without keeping the images."""
    index = np.arange(len(part), dtype=np.int32)
    pieces = np.array_split(index, max(1, len(index) // 1000))
    clean = np.concatenate([part.pixels_and_labels(piece)[1] for piece in pieces])
    return part.noisy_labels(clean, index), clean


def read_ahead(blocks: Sequence[B], read: Callable[[B], T]) -> Iterator[T]:
    """`read(block)` of each block, in order, two blocks ahead, by threads of grain."""
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
    places = grain.MapDataset.range(len(blocks))
    return iter(places.map(lambda i: read(blocks[i])).to_iter_dataset(options))
