"""Folders on this machine, or in a bucket: `gs://BUCKET/runs/NAME` through etils.epath.

What is in a bucket is read and written whole: an object cannot be appended to, locked or renamed
in one step, and it is never half-written. Besides `google-cloud-storage` and `gcsfs` nothing is
needed.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

# `pathlib` makes one slash of two.
_BUCKET = re.compile(r"(gs|s3):/+(?=[^/])")


def as_path(path: str | os.PathLike[str]) -> Any:
    """A `pathlib.Path`, or for a place in a bucket the `epath.Path`, which has the same methods."""
    text = os.fspath(path)
    found = _BUCKET.match(text)
    if found is None:
        return Path(text)
    from etils import epath

    return epath.Path(f"{found[1]}://{text[found.end() :]}")


def is_remote(path: Any) -> bool:
    """Whether a path of `as_path` lies in a bucket."""
    return not isinstance(path, Path)


def absolute(path: Any) -> Any:
    """The same place, whatever the current directory."""
    return path if is_remote(path) else path.absolute()


def remove_tree(path: Any) -> None:
    """Removes a folder with all that is in it."""
    if is_remote(path):
        path.rmtree()
    else:
        shutil.rmtree(path)


def write_text(path: Any, text: str) -> None:
    """Writes a file at once or not at all."""
    if is_remote(path):
        path.write_text(text)
        return
    write_bytes(path, text.encode())


def write_bytes(path: Any, data: bytes) -> None:
    """Writes a file at once or not at all."""
    if is_remote(path):
        path.write_bytes(data)
        return
    # A name of its own: the shares of a run may write the same file at the same time.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)
        with contextlib.suppress(OSError):
            temporary.unlink()  # it takes the last room of a full disk
        raise
