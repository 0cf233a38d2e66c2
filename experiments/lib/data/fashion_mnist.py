"""Fashion-MNIST as a TFDS data set, from the IDX files of Debian's package; nothing downloaded.

    python -m experiments data fashion_mnist                 # of the installed package
    python -m experiments data fashion_mnist --from FOLDER   # of any folder of the four IDX files

Afterwards every experiment has it by the name `fashion_mnist`.
"""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from experiments.lib.data.idx import PARTS, find_four, read_idx
from experiments.lib.data.storage import DatasetNotPrepared, appear, data_directory
from experiments.lib.runs.errors import BadData
from experiments.lib.runs.paths import is_remote

INSTALLED = "usr/share/datasets/fashion-mnist"
FETCH = (
    "apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb debian && "
    f"python -m experiments data fashion_mnist --from debian/{INSTALLED}"
)
SHAPE = (28, 28)
SIZES = {"train": 60_000, "t10k": 10_000}
CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
# Of the files in Debian's dataset-fashion-mnist 0.0~git20200523.55506a9-1, unpacked.
SHA256 = {
    "train-images": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


class FashionMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """70,000 images of clothes, 28 x 28 x 1, 10 classes: 60,000 for training, 10,000 for testing.

    Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
    Learning Algorithms", 2017. The order is that of the files.
    """

    # Not registered: TFDS has a builder of this name, which downloads and needs TensorFlow.
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}

    def __init__(self, arrays: dict[str, np.ndarray], sha256: dict[str, str], **options: Any):
        """Takes the arrays of the four files and their checksums; the rest is the base class's."""
        self._arrays, self._sha256 = arrays, sha256
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__class__.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(*SHAPE, 1)),
                    "label": tfds.features.ClassLabel(names=list(CLASSES)),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            metadata=tfds.core.MetadataDict(sha256=self._sha256),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        return {"train": self._generate_examples("train"), "test": self._generate_examples("t10k")}

    def _generate_examples(self, part):
        images, labels = self._arrays[f"{part}-images"], self._arrays[f"{part}-labels"]
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            # A PIL image: TFDS encodes NumPy arrays with TensorFlow, PIL images without.
            yield i, {"image": Image.fromarray(image), "label": int(label)}


def prepare(
    source: str | os.PathLike[str] | None = None, data_dir: str | os.PathLike[str] | None = None
) -> str:
    """Writes the set's array_record files, all at once or not at all.

    Args:
      source: the folder of the four IDX files; default that of the installed Debian package.
      data_dir: as `experiments.lib.data.storage.data_directory` takes it.

    Returns:
      One line that says what was done. A set that is there already, of the same files, is left.

    Raises:
      DatasetNotPrepared: the files are not there; the message says in one line how to fetch them.
      BadData: they are damaged or of other counts or shapes, or the set is there of other files.
    """
    directory = data_directory(data_dir)
    if is_remote(directory):
        raise BadData(f"{directory} is in a bucket: prepare the set in a folder here and copy it")
    arrays, sha256 = _read(source if source is not None else Path("/", INSTALLED))
    whose = "Debian's files" if sha256 == SHA256 else "files that are not Debian's"
    final = directory / "fashion_mnist" / "1.0.0"
    present = final.exists()
    if not present:
        directory.mkdir(parents=True, exist_ok=True)

        def make(work: Path) -> None:
            tfds.disable_progress_bar()
            # TFDS prints where it writes; the temporary folder would only puzzle the reader.
            with contextlib.redirect_stdout(io.StringIO()):
                FashionMnist(
                    arrays, sha256, data_dir=work, file_format="array_record"
                ).download_and_prepare()

        appear(final, directory, make, "fashion_mnist/1.0.0")
    # Read from what is there now: another process may have been quicker, with other files.
    if tfds.builder_from_directory(final).info.metadata != {"sha256": sha256}:
        raise BadData(f"{final} was made of other files; remove that folder to make it anew")
    counts = " + ".join(f"{size:,}" for size in SIZES.values())
    done = "was already in" if present else "is now in"
    return f"fashion_mnist, {counts} images of {whose}, {done} {final}"


def _read(source: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    files = find_four(source)
    if files is None:
        names = ", ".join(f"{part}-idx{axes}-ubyte" for part, axes in PARTS.items())
        raise DatasetNotPrepared(f"{source} has not the files {names} (.gz or not); run: {FETCH}")
    read = {part: read_idx(path) for part, path in files.items()}
    for part, idx in read.items():
        split, _, kind = part.partition("-")
        wanted = (SIZES[split], *(SHAPE if kind == "images" else ()))
        if idx.array.shape != wanted:
            raise BadData(f"{files[part]} has shape {idx.array.shape}, not {wanted}")
        if kind == "labels" and idx.array.max() >= len(CLASSES):
            raise BadData(f"{files[part]} has label {idx.array.max()}, past {len(CLASSES) - 1}")
    return {p: i.array for p, i in read.items()}, {p: i.sha256 for p, i in read.items()}
