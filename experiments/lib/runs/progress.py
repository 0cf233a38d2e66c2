"""What a person sees while a run runs: a bar on a terminal, a few lines elsewhere."""

from __future__ import annotations

import sys
from typing import Any

from experiments.lib.runs import distributed


class Progress:
    """A rich progress bar on a terminal; nothing where output goes to a file."""

    def __init__(self, label: str, total: int, done: int, *, enabled: bool = True):
        """Shows `done` of `total` updates under a label."""
        self._bar: Any = None
        if enabled and sys.stderr.isatty() and distributed.is_first():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            # The time left is estimated over all updates: in the last half minute may be none.
            self._bar = Bar(
                *columns,
                console=Console(stderr=True),
                transient=True,
                speed_estimate_period=float("inf"),
            )
            self._task = self._bar.add_task(label, total=total, completed=done, note="")
            self._bar.start()
            self._bar.advance(self._task, 0)  # from here on

    def update(self, step: int, note: str | None = None) -> None:
        """Moves the bar to `step`."""
        if self._bar is not None:
            fields = {} if note is None else {"note": note}
            self._bar.update(self._task, completed=step, **fields)

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()


def say(message: str, *, enabled: bool = True) -> None:
    """Prints a line to standard error, where it does not mix with an experiment's tables.

    Of several processes at work together only the first one speaks.
    """
    if enabled and distributed.is_first():
        print(message, file=sys.stderr, flush=True)
