"""Files that are read sound or not at all.

What can be made again is, when damaged, set aside with a warning, and counts as absent. Where a
file cannot be made again, the run ends with one line that names it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from experiments.lib.runs.paths import remove_tree

T = TypeVar("T")


def read(path: Path, parse: Callable[[Path], T], then: str) -> T | None:
    """What a file holds; None where there is none, or where it was damaged and is set aside.

    Args:
      path: the file.
      parse: reads it; its ValueError says what is wrong.
      then: what is done without it, for the warning, such as "it is made again".
    """
    if not path.exists():
        return None
    try:
        return parse(path)
    except ValueError as error:
        set_aside(path, reason(error), then)
        return None


def set_aside(path: Path, why: str, then: str, folder: Path | None = None) -> None:
    """Warns of a damaged file and moves it to `damaged/` in a folder, by default its own."""
    place = (folder or path.parent) / "damaged" / path.name
    warn(str(path), why, place, then)
    move(path, place)


def warn(what: str, why: str, place: Path, then: str) -> None:
    """Warns of damage."""
    warnings.warn(f"{what} is damaged ({why}); it is moved to {place} and {then}", stacklevel=4)


def move(path: Path, place: Path) -> None:
    """Moves a file or folder to a place, where it takes that of an older one."""
    if place.exists():
        remove_tree(place) if place.is_dir() else place.unlink()
    place.parent.mkdir(exist_ok=True)
    path.rename(place)


def json_object(path: Path, **fields: Any) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
      path: the file.
      **fields: what it has, with the types of the values.

    Raises:
      ValueError: it is none, or a field is missing or of another type.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")
    bad = [name for name, kind in fields.items() if not isinstance(found.get(name), kind)]
    if bad:
        raise ValueError(f"it lacks a sound {', '.join(bad)}")
    return found


def reason(error: BaseException) -> str:
    """The first line of an error, of a group that of its first one."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return (str(error) or type(error).__name__).splitlines()[0][:300]
