"""IDX files, in which MNIST and its successors are kept: unsigned bytes behind a short header.

    files = find_four("/usr/share/datasets/fashion-mnist")
    images = read_idx(files["train-images"]).array  # (60000, 28, 28) uint8

The header is two zero bytes, the code of the type (8, unsigned byte), the number of axes, and the
length of each axis as a big-endian 32-bit integer. The file may be gzipped.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.lib.runs.errors import BadData

# The four files of a set, and how many axes each has.
PARTS = {"train-images": 3, "train-labels": 1, "t10k-images": 3, "t10k-labels": 1}


class Idx(NamedTuple):
    """What an IDX file holds.

    Attributes:
      array: as many axes as the header says, uint8.
      sha256: the checksum of the unpacked file: the same content may be gzipped in many ways.
    """

    array: np.ndarray
    sha256: str


def read_idx(path: str | os.PathLike[str]) -> Idx:
    """Reads one file, gzipped or not, into memory.

    Raises:
      BadData: it cannot be read, is no IDX file of unsigned bytes, or is cut off or too long.
    """
    try:
        content = Path(path).read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise BadData(f"{path} cannot be read: {error}") from error
    axes = content[3] if len(content) > 3 else 0
    start = 4 + 4 * axes
    if content[:3] != b"\0\0\x08" or not axes or len(content) < start:
        raise BadData(f"{path} is no IDX file of unsigned bytes")
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    wanted = start + math.prod(shape)
    if len(content) != wanted:
        raise BadData(
            f"{path} has {len(content)} bytes, and its header, of shape {tuple(shape)}, says "
            f"{wanted}: fetch it again"
        )
    array = np.frombuffer(content, np.uint8, offset=start).reshape(shape)
    return Idx(array, hashlib.sha256(content).hexdigest())


def find_four(folder: str | os.PathLike[str]) -> dict[str, Path] | None:
    """The files of a set by their part of `PARTS`, or None unless all four are in the folder.

    They are called `train-images-idx3-ubyte` and so on, with `.gz` behind or without; some copies
    have a dot in place of the second hyphen.
    """
    found = {}
    for part, axes in PARTS.items():
        names = [f"{part}{mark}idx{axes}-ubyte{end}" for mark in "-." for end in ("", ".gz")]
        paths = [Path(folder, name) for name in names]
        path = next((p for p in paths if p.is_file()), None)
        if path is None:
            return None
        found[part] = path
    return found
