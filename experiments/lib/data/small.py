"""Data in memory, for trajectories inside compiled loops.

    data = small_data("digits", seed=0, train_size=300)

Inputs are divided by one standard deviation and centred at each pixel's training mean: without the
centring the largest eigenvalue at the start belongs to the mean image and falls in training, and
progressive sharpening is not seen.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from experiments.lib.data.own import is_own, load_own
from experiments.lib.runs.errors import BadData
from experiments.lib.runs.progress import say

IN_MEMORY_GIB = 2.0
"""A prepared set with more pixels than this stays on disk, see `experiments.lib.data.stored`."""


class SmallData(NamedTuple):
    """Examples; with a leading axis of seeds if stacked.

    Attributes:
      inputs: (n, d) float32, or images (n, height, width, channels); `Stored` images of a set that
        is too large for memory.
      targets: (n,) int32, the labels trained on.
      clean_targets: (n,) int32, the true ones.
      test_inputs: (m, ...) float32.
      test_targets: (m,) int32.
    """

    inputs: np.ndarray
    targets: np.ndarray
    clean_targets: np.ndarray
    test_inputs: np.ndarray
    test_targets: np.ndarray

    @property
    def noisy(self) -> np.ndarray:
        """(n,) bool: which labels are wrong."""
        return self.targets != self.clean_targets


def first_examples(data: SmallData, count: int | None, *, axis: int = 0) -> SmallData:
    """The data with the first training examples alone, or all for None; axis 1 if stacked."""
    part = (slice(None),) * axis + (slice(count),)
    names = ("inputs", "targets", "clean_targets")
    return data._replace(**{name: getattr(data, name)[part] for name in names})


def small_data(
    name: str,
    *,
    seed: int,
    train_size: int,
    label_noise: float = 0.0,
    test_size: int | None = None,
    num_classes: int = 10,
    flat: bool = True,
) -> SmallData:
    """Draws a subset and wrong labels by the seed.

    Args:
      name: `digits`, read from scikit-learn without a data directory; a TFDS set that is
        prepared in the data directory; or the path of a user's own data, see
        `experiments.lib.data.own`, whose floats are taken as they are.
      seed: of subset, order and wrong labels.
      train_size: n.
      label_noise: exactly this fraction of the labels is wrong.
      test_size: m; default all that are not trained on.
      num_classes: outputs of the network; wrong labels of `digits` are drawn among them.
      flat: whether images become vectors.

    Returns:
      The data as NumPy arrays.

    Raises:
      BadData: there are more classes than `num_classes`, or too few examples.
    """
    if is_own(name):
        data = _own(name, seed, train_size, label_noise, test_size, num_classes)
    elif name == "digits":
        data = _digits(seed, train_size, label_noise, test_size, num_classes)
    else:
        data = _prepared(name, seed, train_size, label_noise, test_size, num_classes)
    if not flat:
        return data

    def vectors(inputs):
        # What stays on disk is given the shape of the test inputs when it is read.
        return inputs.reshape(len(inputs), -1) if isinstance(inputs, np.ndarray) else inputs

    return data._replace(inputs=vectors(data.inputs), test_inputs=vectors(data.test_inputs))


def _digits(seed, train_size, label_noise, test_size, num_classes) -> SmallData:
    images, labels = _all_digits()
    _check_classes("digits", 10, num_classes)
    if train_size >= len(labels):
        raise ValueError(f"digits has {len(labels)} examples, {train_size} leave none to test on")
    rng = np.random.RandomState(seed)
    order = rng.permutation(len(labels))
    train, test = order[:train_size], order[train_size:][:test_size]
    mean = images[train].mean(0)
    clean = labels[train]
    return SmallData(
        images[train] - mean,
        _with_wrong(rng, clean, label_noise, num_classes),
        clean,
        images[test] - mean,
        labels[test],
    )


def _with_wrong(rng, labels, label_noise, num_classes) -> np.ndarray:
    """The labels, exactly the given fraction of them wrong."""
    shift = np.zeros(len(labels), np.int32)
    wrong = rng.permutation(len(labels))[: round(label_noise * len(labels))]
    shift[wrong] = rng.randint(1, num_classes, size=len(wrong))
    return (labels + shift) % num_classes


@functools.cache
def _all_digits() -> tuple[np.ndarray, np.ndarray]:
    from experiments.lib.data.digits import digits_arrays

    images, labels = digits_arrays()
    pixels = images.reshape(len(images), 8, 8, 1).astype(np.float32)
    return pixels / pixels.std(), labels.astype(np.int32)


def _prepared(name, seed, train_size, label_noise, test_size, num_classes) -> SmallData:
    from experiments.lib.data import stored
    from experiments.lib.data.images import DataConfig, load_data

    data = load_data(
        DataConfig(
            name=name,
            train_size=train_size,
            test_size=test_size,
            label_noise=label_noise,
            data_seed=seed,
            in_memory_gib=IN_MEMORY_GIB,
        )
    )
    _check_classes(name, data.num_classes, num_classes)
    test = data.test.arrays()
    if data.train.in_memory:
        train = data.train.arrays()
        given = train.inputs, train.targets, train.clean_targets
    else:
        given = stored.inputs(data.train, name), *stored.labels(data.train)
    return SmallData(*given, test.inputs, test.targets)


def _own(path, seed, train_size, label_noise, test_size, num_classes) -> SmallData:
    own = load_own(path)
    _check_classes(path, own.num_classes, num_classes)
    _tell_of_more(path, own.num_classes, num_classes)
    if train_size > len(own.targets):
        there = len(own.targets)
        raise BadData(
            f"{path} has {there} examples to train on, not {train_size}: set --train-size {there} "
            "or less, and so any other option of a size that --help names"
        )
    rng = np.random.RandomState(seed)
    train = rng.permutation(len(own.targets))[:train_size]
    clean = own.targets[train]
    inputs, test_inputs = own.inputs[train], own.test_inputs[:test_size]
    if own.pixels:
        mean = inputs.mean(0, dtype=np.float64).astype(np.float32)
        # Where all is constant there is nothing to divide.
        scale = np.float32(inputs.std(dtype=np.float64) or 1)
        inputs, test_inputs = (inputs - mean) / scale, (test_inputs - mean) / scale
    return SmallData(
        inputs,
        _with_wrong(rng, clean, label_noise, own.num_classes),
        clean,
        test_inputs,
        own.test_targets[:test_size],
    )


def _check_classes(name, there, outputs):
    if there > outputs:
        raise BadData(
            f"{name} has {there} classes, the network {outputs} outputs: set --recipe.classes "
            f"{there}, or --architecture.classes {there}"
        )


@functools.cache
def _tell_of_more(path, there, outputs):
    """Once, not for every seed."""
    if there < outputs:
        say(f"{path} has {there} classes, the network {outputs} outputs: --recipe.classes {there}")


def stack_seeds(each: Sequence[SmallData]) -> SmallData:
    """The data of several seeds with a leading axis for `jax.vmap`."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *each)


def shuffled_batches(key: jax.Array, size: int, batch_size: int) -> jax.Array:
    """One epoch of minibatches without replacement: indices (size // batch_size, batch_size)."""
    count = size // batch_size
    return jax.random.permutation(key, size)[: count * batch_size].reshape(count, batch_size)
