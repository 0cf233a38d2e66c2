"""`metrics.jsonl`: one JSON object a line, each with `step` and `event`; and TensorBoard.

TensorBoard gets every number of a row, and of a list of numbers, such as one a seed, each.

The file is the record that figures are made from. It survives kills: rows beyond the step a run
resumes from are cut off, they come again, and a half-written last line is dropped.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib.runs.paths import as_path, is_remote, remove_tree, write_text
from experiments.lib.runs.tensorboard import Board


def read_metrics(path: str | os.PathLike[str], *, clock: bool = True) -> list[dict[str, Any]]:
    """Returns the rows of a `metrics.jsonl` as dicts, without a half-written last line.

    Other lines that are no rows are left out with a warning.

    Args:
      path: the file, or the run's folder.
      clock: keep the time of writing; without it the rows of identical runs are equal.
    """
    path = as_path(path)
    rows = _parse(path / "metrics.jsonl" if path.is_dir() else path)
    return [{k: v for k, v in row.items() if clock or k != "time"} for row in rows]


def _parse(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    *lines, unfinished = path.read_bytes().decode("utf-8", errors="replace").split("\n")
    rows = [_row(line) for line in lines]
    damaged = [str(number) for number, row in enumerate(rows, 1) if row is None]
    if damaged:
        warnings.warn(
            f"{path}: what stands in line {', '.join(damaged)} is no row of a run and left out",
            stacklevel=3,
        )
    return [row for row in [*rows, _row(unfinished)] if row is not None]


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    sound = isinstance(row, dict) and type(row.get("step")) is int and type(row.get("event")) is str
    return row if sound else None


def jsonable(value: Any) -> Any:
    """Returns a value as JSON knows it: arrays as lists, what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if hasattr(value, "_asdict"):
        return jsonable(value._asdict())
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if isinstance(value, (bool, str, int)) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return jsonable(np.asarray(value).tolist())


class MetricsLog:
    """Appends rows to `metrics.jsonl` and scalars to TensorBoard, which has none in a bucket.

    A context manager, which closes the files.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: Iterable[Mapping[str, Any]] = (),
        resume_step: int = 0,
        primary: bool = True,
    ):
        """Opens the log.

        Args:
          folder: the run's folder.
          keep: the rows to begin with; all others in the file are dropped.
          resume_step: TensorBoard forgets events at this step and later; at 0 all there are.
          primary: whether this process writes at all.
        """
        self._file = self._board = self._remote = None
        if not primary:
            return
        path = folder / "metrics.jsonl"
        kept = "".join(_line(row) for row in keep)
        write_text(path, kept)
        if is_remote(path):  # nothing can be appended there: rows are kept, and written at `sync`
            self._remote, self._file = path, io.StringIO()
            self._file.write(kept)
            return
        self._file = path.open("a", encoding="utf-8")
        if not resume_step and (folder / "tensorboard").exists():
            remove_tree(folder / "tensorboard")
        # TensorBoard drops what a killed run wrote beyond the resumed step.
        self._board = Board(folder / "tensorboard", purge_step=resume_step or None)

    def __enter__(self) -> MetricsLog:
        """Returns the log."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the files."""
        self.close()

    def write(self, step: int, event: str, values: Mapping[str, Any]) -> None:
        """Writes one row, with the time."""
        if self._file is None:
            return
        row = {"step": step, "event": event, **jsonable(values), "time": round(time.time(), 3)}
        self._file.write(_line(row))
        self._file.flush()
        if self._board is not None:
            for name, value in row.items():
                if name not in ("step", "time"):
                    for suffix, number in _numbers(value):
                        self._board.scalar(f"{event}/{name}{suffix}", number, step)

    def sync(self) -> None:
        """Brings all rows to disk: before a checkpoint that counts on them."""
        if self._remote is not None:
            write_text(self._remote, self._file.getvalue())
        elif self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Closes the files, all of them even where there is no room for the last rows."""
        with contextlib.ExitStack() as stack:
            for file in (self._file, self._board):
                if file is not None:
                    stack.callback(file.close)
            self.sync()


def _numbers(value: Any) -> list[tuple[str, float]]:
    """A number, or those in a list of numbers with their places."""
    if isinstance(value, list):
        return [(f"/{i}", v) for i, v in enumerate(value) if isinstance(v, (int, float))]
    return [("", value)] if isinstance(value, (int, float)) else []


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
