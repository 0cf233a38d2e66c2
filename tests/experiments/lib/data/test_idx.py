"""IDX files: header and bytes as written, and every way a file can be broken."""

import gzip
import hashlib

import numpy as np
import pytest

from experiments.lib.data.idx import find_four, read_idx
from experiments.lib.runs.errors import BadData

# Written out by hand: type 8, two axes of lengths 2 and 3, and six bytes.
FILE = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 255])
PACKED = gzip.compress(FILE, mtime=0)  # without the time: the name of a test must not change


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_is_its_header_and_its_bytes(tmp_path, packed):
    path = tmp_path / "file"
    path.write_bytes(PACKED if packed else FILE)
    read = read_idx(path)
    np.testing.assert_array_equal(read.array, [[1, 2, 3], [4, 5, 255]])
    assert read.array.dtype == np.uint8
    assert read.sha256 == hashlib.sha256(FILE).hexdigest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no IDX file"),
        (FILE[:3], "is no IDX file"),
        (FILE[:9], "is no IDX file"),
        (bytes([0, 0, 13, 1, 0, 0, 0, 1, 0, 0, 0, 0]), "is no IDX file of unsigned bytes"),
        (FILE[:-1], r"has 17 bytes, and its header, of shape \(2, 3\), says 18"),
        (FILE + b"\0", "has 19 bytes"),
        (PACKED[:-9], "cannot be read"),
        (PACKED[:11] + b"\0\0\0" + PACKED[14:], "cannot be read"),
        (b"\0\0\x08\x03" + b"\xff" * 12, f"says {(2**32 - 1) ** 3 + 16}"),
    ],
)
def test_a_broken_file_is_named(tmp_path, content, message):
    (tmp_path / "broken").write_bytes(content)
    with pytest.raises(BadData, match=message) as caught:
        read_idx(tmp_path / "broken")
    assert str(tmp_path / "broken") in str(caught.value)
    with pytest.raises(BadData, match="cannot be read"):
        read_idx(tmp_path / "absent")


def test_a_set_is_four_files_packed_or_not(tmp_path):
    names = {
        "train-images": "train-images-idx3-ubyte.gz",
        "train-labels": "train-labels.idx1-ubyte",
        "t10k-images": "t10k-images-idx3-ubyte",
        "t10k-labels": "t10k-labels-idx1-ubyte.gz",
    }
    for name in names.values():
        assert find_four(tmp_path) is None
        (tmp_path / name).touch()
    assert find_four(tmp_path) == {part: tmp_path / name for part, name in names.items()}
