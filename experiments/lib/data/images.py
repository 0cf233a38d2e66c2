"""Image classification data for every experiment: real TFDS sets, without TensorFlow.

    data = load_data(DataConfig(name="digits", label_noise=0.2))
    train = data.train.arrays()

Inputs are float32 (n, height, width, channels), targets int32 (n,). Everything drawn (subset,
wrong labels) is a function of the seeds alone, the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from experiments.lib.data.storage import open_builder

# Statistics of sets too large for memory come from this many examples.
_STATISTICS_EXAMPLES = 50_000


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which data, how much of it, and what is done to it."""

    name: str = "digits"
    """A TFDS image classification set: digits (made offline at first use), or cifar10, cifar100,
    mnist, fashion_mnist, svhn_cropped, any other once prepared in the data directory."""

    data_dir: str | None = field(default=None, metadata={"identity": False})
    """Where prepared sets lie; default $FLATJAX_DATA_DIR, else `data`."""

    train_size: int | None = None
    """Train on a random subset of this size; default all."""

    test_size: int | None = None
    """Test on a random subset of this size; default all."""

    label_noise: float = 0.0
    """Give exactly this fraction of the training examples a wrong label."""

    data_seed: int = 0
    """Seed of subset and label noise."""

    normalize: Literal["pixel", "none"] = "pixel"
    """pixel: subtract each pixel's training mean, divide by one global standard deviation; none:
    divide by 255."""

    in_memory_gib: float = field(default=2.0, metadata={"identity": False})
    """Decode a split once into memory up to this size; larger ones are read batch by batch."""

    def __post_init__(self):
        if not 0 <= self.label_noise <= 1:
            raise ValueError(f"label_noise is a fraction in [0, 1], got {self.label_noise}")


class Arrays(NamedTuple):
    """Examples in memory.

    Attributes:
      inputs: (n, height, width, channels) float32, normalised.
      targets: (n,) int32, the labels trained on, wrong ones included.
      clean_targets: (n,) int32, the labels of the data set.
      noisy: (n,) bool, where the two differ.
      index: (n,) int32, positions in the split.
    """

    inputs: np.ndarray
    targets: np.ndarray
    clean_targets: np.ndarray
    noisy: np.ndarray
    index: np.ndarray

    def take(self, where) -> Arrays:
        """The examples at `where`: an index array, a mask or a slice."""
        return Arrays(*(a[where] for a in self))


class Normalizer(NamedTuple):
    """`(pixels - mean) / std`, both broadcast against (height, width, channels)."""

    mean: np.ndarray
    std: np.ndarray

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        return (pixels.astype(np.float32) - self.mean) / self.std


class Split:
    """A part of a data set: a choice of rows of one stored split, with their wrong labels."""

    def __init__(self, name, source, rows, *, num_classes, keys, in_memory, label_shift=None):
        """Made by `load_data`; `label_shift` (n,) is added to the labels modulo the classes."""
        self.name = name
        self.num_classes = num_classes
        self.rows, self._source, self._keys = rows, source, keys
        self._shift = np.zeros(len(rows), np.int32) if label_shift is None else label_shift
        self._pixels, self._labels = self.read(rows) if in_memory else (None, None)
        self.normalizer = Normalizer(np.float32(0), np.float32(255))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def in_memory(self) -> bool:
        """Whether all images are decoded in memory."""
        return self._pixels is not None

    @property
    def noisy(self) -> np.ndarray:
        """(n,) bool: which examples carry a wrong label."""
        return self._shift != 0

    def pixels_and_labels(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Raw pixels (n, h, w, c) and the data set's own labels (n,) int32 at positions `index`."""
        if self._pixels is None:
            return self.read(self.rows[index])
        return self._pixels[index], self._labels[index]

    def noisy_labels(self, labels: np.ndarray, index: np.ndarray) -> np.ndarray:
        """The labels trained on, from the data set's own."""
        return (labels + self._shift[index]) % self.num_classes

    def arrays(self, size: int | None = None) -> Arrays:
        """The first `size` examples (default all), decoded, normalised."""
        return self.chunk(0, len(self) if size is None else min(size, len(self)))

    def chunk(self, start: int, stop: int) -> Arrays:
        """The examples `start .. stop`, as `arrays`."""
        index = np.arange(start, min(stop, len(self)), dtype=np.int32)
        pixels, clean = self.pixels_and_labels(index)
        targets = self.noisy_labels(clean, index)
        return Arrays(self.normalizer(pixels), targets, clean, self.noisy[index], index)

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Raw pixels and labels of some rows of the stored split."""
        image, label = self._keys
        records = self._source.__getitems__([int(r) for r in rows])
        labels = np.array([r[label] for r in records], dtype=np.int32)
        return np.stack([r[image] for r in records]), labels


class Dataset(NamedTuple):
    """A loaded data set.

    Attributes:
      config: what was asked for.
      num_classes: the number of classes.
      input_shape: (height, width, channels).
      train: the training split, wrong labels included.
      test: the test split, always clean.
    """

    config: DataConfig
    num_classes: int
    input_shape: tuple[int, ...]
    train: Split
    test: Split


def load_data(config: DataConfig) -> Dataset:
    """Opens a data set as configured; the digits are made on first use.

    Raises:
      DatasetNotPrepared: the set is not in the data directory; the message says what to run.
      ValueError: it is no image classification set, or smaller than asked for.
    """
    builder = open_builder(config.name, config.data_dir)
    keys, shape, num_classes = _describe(builder, config.name)
    train_split, test_split = _split_names(builder, config.name)
    sizes = {s: builder.info.splits[s].num_examples for s in (train_split, test_split)}

    rng = np.random.RandomState([config.data_seed, 0])
    train_rows = _choose(rng, sizes[train_split], config.train_size, "train")
    test_rows = _choose(rng, sizes[test_split], config.test_size, "test")
    shift = _label_shift(config, len(train_rows), num_classes)

    def split(name, stored, rows, label_shift=None):
        size = len(rows) * np.prod(shape)
        return Split(
            name,
            builder.as_data_source(split=stored),
            rows,
            num_classes=num_classes,
            keys=keys,
            in_memory=size <= config.in_memory_gib * 2**30,
            label_shift=label_shift,
        )

    train = split("train", train_split, train_rows, shift)
    test = split("test", test_split, test_rows)
    if config.normalize == "pixel":
        train.normalizer = test.normalizer = _fit_normalizer(train)
    return Dataset(config, num_classes, shape, train, test)


def _describe(builder, name: str) -> tuple[tuple[str, str], tuple[int, ...], int]:
    import tensorflow_datasets as tfds

    features = builder.info.features
    keys = tuple(builder.info.supervised_keys or ("image", "label"))
    try:
        image, label = features[keys[0]], features[keys[1]]
    except (KeyError, TypeError, IndexError):
        image = label = None
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel
    ):
        raise ValueError(
            f"data set {name!r} is not an image classification set: it needs an Image and a "
            f"ClassLabel as supervised keys, and has {features}"
        )
    if None in image.shape:
        raise ValueError(
            f"data set {name!r} has images of differing sizes, shape {image.shape}; "
            "resize them when preparing the set"
        )
    return keys, tuple(image.shape), label.num_classes  # type: ignore[return-value]


def _split_names(builder, name: str) -> tuple[str, str]:
    available = sorted(builder.info.splits)
    test = next((s for s in ("test", "validation") if s in available), None)
    if "train" not in available or test is None:
        raise ValueError(
            f"data set {name!r} needs a train and a test (or validation) split, has {available}"
        )
    return "train", test


def _choose(rng: np.random.RandomState, available: int, size: int | None, split: str) -> np.ndarray:
    """Draws the rows used; all rows in stored order if nothing is cut."""
    wanted = available if size is None else size
    if not 1 <= wanted <= available:
        raise ValueError(f"the {split} split has {available} examples, not {wanted}")
    order = rng.permutation(available)  # drawn always, so that one option does not move another
    return np.arange(available) if wanted == available else order[:wanted]


def _label_shift(config: DataConfig, size: int, num_classes: int) -> np.ndarray:
    """(n,) int32: what to add to each label, 0 for the clean: so a wrong label always differs."""
    rng = np.random.RandomState([config.data_seed, 1])
    shift = np.zeros(size, np.int32)
    count = round(config.label_noise * size)
    if count and num_classes < 2:
        raise ValueError("label_noise needs at least two classes")
    chosen = rng.permutation(size)[:count]
    shift[chosen] = rng.randint(1, max(num_classes, 2), size=count)
    return shift


def _fit_normalizer(train: Split) -> Normalizer:
    """Each pixel's mean, and one standard deviation for all."""
    index = np.arange(min(len(train), _STATISTICS_EXAMPLES))
    count, total, square = 0, 0.0, 0.0
    for part in np.array_split(index, max(1, len(index) // 1000)):
        pixels = train.pixels_and_labels(part)[0].astype(np.float64)
        count += len(part)
        total = total + pixels.sum(0)
        square = square + (pixels**2).sum(0)
    mean, second = total / count, square / count  # each (h, w, c)
    std = np.sqrt(max(second.mean() - mean.mean() ** 2, 0)) or 1.0
    return Normalizer(mean.astype(np.float32), np.float32(std))
