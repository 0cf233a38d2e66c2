"""The files of a checkpoint as they were written, so that damage is found before they are read.

Orbax reads all arrays at once. When one of them cannot be read, the others stay in flight, and each
reports its own failure later, in pages that nobody can catch; so a damaged folder is not given to
it.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from experiments.lib.runs.paths import is_remote, write_text

NAME = "files.json"


def seal(folder: Path) -> None:
    """Writes down the checksums of all files; in a bucket nothing, which keeps its own."""
    if not is_remote(folder):
        write_text(folder / NAME, json.dumps(_checksums(folder)))


def check(folder: Path) -> None:
    """Compares the files with what was written down; passes where nothing was.

    Raises:
      ValueError: they differ.
    """
    if is_remote(folder) or not (folder / NAME).exists():
        return
    written, found = json.loads((folder / NAME).read_text()), _checksums(folder)
    if written != found:
        names = written.keys() | found.keys()
        bad = min(name for name in names if written.get(name) != found.get(name))
        raise ValueError(f"its file {bad} is not as it was written")


def _checksums(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
    return {path.relative_to(folder).as_posix(): zlib.crc32(path.read_bytes()) for path in files}
