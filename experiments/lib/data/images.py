"""Image classification data for every experiment: real TFDS sets, without TensorFlow.

    data = load_data(DataConfig(name="digits", label_noise=0.2))
    batches = data.batches(64, seed=0)          # grain iterator: {"inputs", "targets", "index"}
    train = data.train.arrays()                 # small data at once, for curvature work

Inputs are float32 (n, height, width, channels), targets int32 (n,). Everything drawn (subset,
wrong labels, shuffles, augmentation) is a function of the seeds alone, the same on every machine
and for any number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.lib.data import augment
from experiments.lib.data.batches import Rows, Schedule, batch_iterator
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

    validation_size: int = 0
    """Hold back this many training examples as a validation split."""

    label_noise: float = 0.0
    """Give exactly this fraction of the training examples a wrong label."""

    data_seed: int = 0
    """Seed of subset and label noise."""

    normalize: Literal["pixel", "channel", "none"] = "pixel"
    """pixel: subtract each pixel's training mean, divide by one global standard deviation;
    channel: mean and standard deviation of each channel; none: divide by 255."""

    flip: bool = False
    """Augmentation: random horizontal flips."""

    crop: int = 0
    """Augmentation: random crops after padding by this many pixels."""

    mixup: float = 0.0
    """Augmentation: mixup with Beta(mixup, mixup) weights."""

    in_memory_gib: float = field(default=2.0, metadata={"identity": False})
    """Decode a split once into memory up to this size; larger ones are read batch by batch."""

    def __post_init__(self):
        if not 0 <= self.label_noise <= 1:
            raise ValueError(f"label_noise is a fraction in [0, 1], got {self.label_noise}")
        if self.normalize not in ("pixel", "channel", "none"):
            raise ValueError(f"normalize must be pixel, channel or none, got {self.normalize!r}")
        if self.crop < 0 or self.mixup < 0 or self.validation_size < 0:
            raise ValueError("crop, mixup and validation_size must not be negative")


class Arrays(NamedTuple):
    """Examples in memory.

    Attributes:
      inputs: (n, height, width, channels) float32, normalised, not augmented.
      targets: (n,) int32, the labels trained on, wrong ones included.
      clean_targets: (n,) int32, the labels of the data set.
      noisy: (n,) bool, where the two differ.
      index: (n,) int32, positions in the split, as in the batches.
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
        """The first `size` examples (default all), decoded, normalised, not augmented."""
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
      validation: held back from the training split, clean; None if none was asked for.
    """

    config: DataConfig
    num_classes: int
    input_shape: tuple[int, ...]
    train: Split
    test: Split
    validation: Split | None

    def batches(
        self,
        batch_size: int | None,
        *,
        seed: int,
        shuffle: bool = True,
        reshuffle: bool = True,
        process: tuple[int, int] = (0, 1),
    ) -> Any:
        """Returns an endless grain iterator over training batches, with a checkpointable state.

        Each is a dict of NumPy arrays: `inputs` (b, h, w, c) float32; `targets` (b,) int32, or
        (b, classes) float32 probabilities under mixup; `index` (b,) int32 positions in `train`.

        Args:
          batch_size: examples a batch over all processes, or None for full batches, which keep
            the order of `train.arrays()`.
          seed: seed of shuffles and augmentation.
          shuffle: whether to shuffle.
          reshuffle: a new order each epoch, or the same one.
          process: this process's number and the number of processes; each gets its rows of the
            same global batches.
        """
        schedule = Schedule(
            len(self.train), batch_size, seed=seed, shuffle=shuffle, reshuffle=reshuffle
        )
        part, parts = process
        if schedule.batch_size % parts:
            raise ValueError(
                f"batch size {schedule.batch_size} does not split over {parts} processes; "
                "choose a multiple"
            )
        share = schedule.batch_size // parts
        return batch_iterator(
            schedule, self._batch_maker(seed, slice(part * share, (part + 1) * share))
        )

    def _batch_maker(self, seed: int, mine: slice):
        train, normalizer = self.train, self.train.normalizer
        augmentation = augment.Augmentation(self.config.flip, self.config.crop, self.config.mixup)

        def examples(index, draws):
            pixels, labels = train.pixels_and_labels(index)
            inputs = normalizer(augment.transform_images(pixels, draws, augmentation.crop))
            return inputs, train.noisy_labels(labels, index)

        def make_batch(rows: Rows) -> dict[str, np.ndarray]:
            rng = np.random.RandomState([seed, rows.number % 2**32, rows.number >> 32, 1])
            draws = augment.draw(augmentation, rng, len(rows.index))
            index = rows.index[mine].astype(np.int32)
            inputs, targets = examples(index, draws.rows(mine))
            if draws.partner is not None:
                partner = draws.partner[mine]
                others = examples(rows.index[partner], draws.rows(partner))
                mixing = draws.mixing[mine]
                inputs, targets = augment.mix(inputs, targets, *others, mixing, self.num_classes)
            return {"inputs": inputs, "targets": targets, "index": index}

        return make_batch


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
    train_rows, validation_rows = _choose(
        rng, sizes[train_split], config.train_size, config.validation_size, "train"
    )
    test_rows, _ = _choose(rng, sizes[test_split], config.test_size, 0, "test")
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
    validation = split("validation", train_split, validation_rows) if len(validation_rows) else None
    normalizer = _fit_normalizer(config.normalize, train)
    for part in (train, test, validation):
        if part is not None:
            part.normalizer = normalizer
    return Dataset(config, num_classes, shape, train, test, validation)


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


def _choose(
    rng: np.random.RandomState, available: int, size: int | None, held_back: int, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the rows used and the rows held back; all rows in stored order if nothing is cut."""
    wanted = available - held_back if size is None else size
    if wanted < 1 or wanted + held_back > available:
        raise ValueError(
            f"the {split} split has {available} examples; {wanted} wanted and {held_back} held back"
        )
    order = rng.permutation(available)  # drawn always, so that one option does not move another
    if wanted == available:
        return np.arange(available), order[:0]
    return order[:wanted], order[available - held_back :]


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


def _fit_normalizer(kind: str, train: Split) -> Normalizer:
    if kind == "none":
        return Normalizer(np.float32(0), np.float32(255))
    index = np.arange(min(len(train), _STATISTICS_EXAMPLES))
    count, total, square = 0, 0.0, 0.0
    for part in np.array_split(index, max(1, len(index) // 1000)):
        pixels = train.pixels_and_labels(part)[0].astype(np.float64)
        count += len(part)
        total = total + pixels.sum(0)
        square = square + (pixels**2).sum(0)
    mean, second = total / count, square / count  # each (h, w, c)
    axes = (0, 1) if kind == "channel" else (0, 1, 2)
    centre = mean.mean(axes)
    std = np.sqrt(np.maximum(second.mean(axes) - centre**2, 0))
    # A constant channel carries nothing: centre it and leave its scale alone.
    std = np.where(std > 0, std, 1.0)
    offset = centre if kind == "channel" else mean
    return Normalizer(offset.astype(np.float32), std.astype(np.float32))
