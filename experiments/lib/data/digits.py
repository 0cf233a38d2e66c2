"""The handwritten digits bundled with scikit-learn, as a TFDS data set made offline."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

NUM_TRAIN = 1500
# scikit-learn's pixels count the ink of 4 x 4 cells, 0 to 16. Times 15 they fill uint8's range
# without loss, so that image viewers show something.
_SCALE = 15


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 images, 8 x 8 x 1, 10 classes: 1,500 for training and 297 for testing.

    Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998; the copy inside
    scikit-learn. The split is one fixed permutation, the same on every machine.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}

    def _info(self) -> tfds.core.DatasetInfo:
        # Not dataset_info_from_configs: that wants a package folder with metadata files.
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__class__.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            disable_shuffling=True,  # already permuted; TFDS's own order hangs on its hash
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        images, labels = digits_arrays()
        return {
            "train": self._generate_examples(images[:NUM_TRAIN], labels[:NUM_TRAIN]),
            "test": self._generate_examples(images[NUM_TRAIN:], labels[NUM_TRAIN:]),
        }

    def _generate_examples(self, images, labels):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            # A PIL image: TFDS encodes NumPy arrays with TensorFlow, PIL images without.
            yield i, {"image": Image.fromarray(image), "label": int(label)}


def digits_arrays() -> tuple[np.ndarray, np.ndarray]:
    """Returns all images, (1797, 8, 8) uint8, and labels, (1797,) int64, training part first."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # RandomState, not default_rng: its streams are frozen across NumPy versions (NEP 19).
    order = np.random.RandomState(0).permutation(len(bunch.target))
    images = (bunch.images[order] * _SCALE).astype(np.uint8)
    return images, bunch.target[order]
