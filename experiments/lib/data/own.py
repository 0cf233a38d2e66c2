"""A user's own data: an `.npz` file of arrays, or a folder of images.

    examples = load_own("mine.npz")                # arrays inputs, targets
    examples = load_own("photos", seed=1)          # photos/cats/1.png, photos/dogs/7.png, ...

A file holds `inputs`, (n, d) or (n, height, width, channels), and `targets`, (n,) integers from 0;
`test_inputs` and `test_targets` too, or a part is held back by a seed. Inputs of uint8 are divided
by 255; floats are taken as they are.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.lib.data.held_back import split_rows
from experiments.lib.runs.errors import BadData

_TRAIN, _TEST = ("inputs", "targets"), ("test_inputs", "test_targets")


class Examples(NamedTuple):
    """Labelled examples in memory, in two parts.

    Attributes:
      inputs: (n, d) or (n, height, width, channels) float32.
      targets: (n,) int32, in 0 .. num_classes - 1.
      test_inputs: (m, ...) float32, of the same shape after the first axis.
      test_targets: (m,) int32.
      num_classes: one more than the largest target of both parts.
      pixels: whether the inputs are uint8 in the file.
    """

    inputs: np.ndarray
    targets: np.ndarray
    test_inputs: np.ndarray
    test_targets: np.ndarray
    num_classes: int
    pixels: bool


def is_own(name: str) -> bool:
    """Whether a data set's name is that of a user's `.npz` file, or the path of a folder."""
    return name.endswith(".npz") or (os.sep in name and Path(name).expanduser().is_dir())


def load_own(
    path: str | os.PathLike[str], *, test_fraction: float = 0.2, seed: int = 0
) -> Examples:
    """Reads a file or a folder of images (see `experiments.lib.data.folder`).

    Args:
      path: the `.npz` file, or the folder.
      test_fraction: this part of the examples is held back where no test arrays are given.
      seed: of the choice of that part.

    Raises:
      BadData: the path is not there, or an array is missing, unknown, of a wrong rank, length or
        dtype, or not finite; the message names the array and says what is wanted.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        from experiments.lib.data.folder import read_images

        arrays = read_images(path)
    else:
        arrays = _read_npz(path)
    inputs, targets = _checked(path, arrays, *_TRAIN)
    pixels = arrays[_TRAIN[0]].dtype == np.uint8
    if _TEST[0] in arrays:
        test_inputs, test_targets = _checked(path, arrays, *_TEST)
        if test_inputs.shape[1:] != inputs.shape[1:]:
            raise BadData(
                f"{path}: examples have shape {test_inputs.shape[1:]} in test_inputs, "
                f"{inputs.shape[1:]} in inputs"
            )
        if (arrays[_TEST[0]].dtype == np.uint8) != pixels:
            raise BadData(f"{path}: inputs and test_inputs must both be uint8 or both be floats")
    else:
        train, test = split_rows(len(targets), test_fraction, seed, str(path))
        inputs, test_inputs = inputs[train], inputs[test]
        targets, test_targets = targets[train], targets[test]
    smallest = min(targets.min(), test_targets.min())
    if smallest > 0:
        raise BadData(
            f"{path}: targets must be classes counted from 0, the smallest is {smallest}: "
            "subtract it"
        )
    num_classes = int(max(targets.max(), test_targets.max())) + 1
    return Examples(inputs, targets, test_inputs, test_targets, num_classes, pixels)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise BadData(f"there is no file {path}")
    if not zipfile.is_zipfile(path):
        raise BadData(f"{path} is no .npz file; np.savez(file, inputs=..., targets=...) writes one")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile) as error:
        raise BadData(f"{path} cannot be read as plain arrays: {error}") from error
    known = (*_TRAIN, *_TEST) if set(_TEST) & arrays.keys() else _TRAIN
    missing = [name for name in known if name not in arrays]
    unknown = sorted(arrays.keys() - {*known})
    if missing or unknown:
        trouble = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(unknown)} too"
        raise BadData(
            f"{path} {trouble}; it needs the arrays inputs and targets, and may have test_inputs "
            "and test_targets, and no others"
        )
    return arrays


def _checked(
    path: Path, arrays: dict[str, np.ndarray], input_name: str, target_name: str
) -> tuple[np.ndarray, np.ndarray]:
    inputs, targets = arrays[input_name], arrays[target_name]
    if inputs.ndim not in (2, 4) or not inputs.size:
        hint = "; add a last axis of channels" if inputs.ndim == 3 else ""
        raise BadData(
            f"{path}: {input_name} must be (n, d) or (n, height, width, channels), "
            f"has shape {inputs.shape}{hint}"
        )
    if inputs.dtype != np.uint8 and inputs.dtype.kind != "f":
        raise BadData(f"{path}: {input_name} must be uint8 or floats, is {inputs.dtype}")
    if targets.dtype.kind not in "iu":
        raise BadData(f"{path}: {target_name} must be integers, is {targets.dtype}")
    if targets.shape != inputs.shape[:1]:
        raise BadData(
            f"{path}: {target_name} must have shape {inputs.shape[:1]}, one for each of "
            f"{input_name}, has {targets.shape}"
        )
    if targets.min() < 0 or targets.max() >= 2**31 - 1:
        raise BadData(f"{path}: {target_name} must be classes counted from 0, has {targets.min()}")
    scale = np.float32(255) if inputs.dtype == np.uint8 else np.float32(1)
    with np.errstate(over="ignore"):  # what is too large for float32 is found just below
        values = inputs.astype(np.float32) / scale
    bad = ~np.isfinite(values.reshape(len(values), -1)).all(1)
    if bad.any():
        raise BadData(
            f"{path}: {input_name} is not finite (in float32) in {bad.sum()} examples, the first "
            f"of them {bad.argmax()}"
        )
    return values, targets.astype(np.int32)
