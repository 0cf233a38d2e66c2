"""What a person sees of a computation in progress: a bar on a terminal, lines elsewhere.

Both go to standard error. The bar is that of rich, where it is installed; of several computations
one inside the other (a stream of batches within `eigsh`) each has a line of the same display.
"""

import sys
import time
from typing import Any

import jax

APART = 5.0  # seconds between two lines where there is no terminal
_PER_SECOND = 1  # how often a bar is drawn: once takes some 3 ms


class Display:
    """Nothing to see: of several processes all but the first are silent."""

    def update(self, step: int, left: float | None, text: str) -> None:
        """Show ``step`` of ``step + left`` steps, and a text."""

    def close(self, text: str) -> None:
        """Take the bar away; leave the text, if there is any."""


class Lines(Display):
    """Lines on standard error, `APART` seconds apart, and one at the end."""

    def __init__(self, name: str):
        self._name, self._last = name, time.monotonic()

    def update(self, step: int, left: float | None, text: str) -> None:
        if time.monotonic() - self._last >= APART:
            self._write(text)

    def _write(self, text):
        self._last = time.monotonic()
        sys.stderr.write(f"{self._name}: {text}\n")
        sys.stderr.flush()

    def close(self, text: str) -> None:
        if text:
            self._write(text)


class Bar(Display):
    """A line of the one display that rich draws."""

    _shared: Any = None
    _users = 0

    def __init__(self, name: str):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        if Bar._shared is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TimeElapsedColumn(),
                TextColumn("{task.fields[text]}"),
            )
            console = Console(stderr=True)
            Bar._shared = Progress(
                *columns, console=console, transient=True, refresh_per_second=_PER_SECOND
            )
            Bar._shared.start()
        Bar._users += 1
        self._name = name
        self._task = Bar._shared.add_task(name, total=None, text="the first steps compile")

    def update(self, step: int, left: float | None, text: str) -> None:
        total = None if left is None else step + left
        Bar._shared.update(self._task, completed=step, total=total, text=text)

    def close(self, text: str) -> None:
        shared = Bar._shared
        shared.remove_task(self._task)
        Bar._users -= 1
        if not Bar._users:
            Bar._shared = None
            shared.stop()
        if text:
            shared.console.print(f"{self._name}: {text}", highlight=False, markup=False)


def display(name: str) -> Display:
    """What fits where standard error goes."""
    if jax.process_index() > 0:
        return Display()
    if sys.stderr.isatty():
        try:
            return Bar(name)
        except ImportError:  # rich is not installed
            pass
    return Lines(name)
