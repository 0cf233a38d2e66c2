"""Finished measurements, kept one by one so that a run goes on where it was stopped."""

import json
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any


class Rows:
    """A folder of JSON files, one a finished measurement.

    Attributes:
      folder: where they are.
      wanted: the keys asked for so far, in order.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder, self.wanted = folder, []

    def path(self, key: str) -> pathlib.Path:
        """The file of a measurement."""
        return self.folder / (re.sub(r"[^\w.,=-]+", "_", key) + ".json")

    def get(self, key: str, measure: Callable[[], Any]) -> Any:
        """The kept result of ``key``, or that of ``measure()``, which is then kept."""
        self.wanted.append(key)
        path = self.path(key)
        if path.exists():
            return json.loads(path.read_text())
        result = measure()
        self.folder.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: a run may be stopped at any time.
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(result))
        os.replace(unfinished, path)
        return json.loads(path.read_text())

    def room(self, name: str) -> "Rows":
        """The rows of one benchmark."""
        return Rows(self.folder / name)

    def beside(self, name: str) -> "Rows":
        """The rows of another benchmark of the same run."""
        return Rows(self.folder.parent / name)
