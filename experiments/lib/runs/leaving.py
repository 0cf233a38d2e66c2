"""A signal to a command line that has no run under way: it ends at once, as unfinished.

Import, compilation and drawing have nothing to save: what is to be kept lies in files, each written
at once or not at all. Nothing is raised, which one of them might catch.

Imports next to nothing: it comes before all other imports.
"""

from __future__ import annotations

import os
import signal

STATUS: dict[int, int] = {signal.SIGTERM: 75, signal.SIGINT: 130}
"""The exit status after each signal; 75 is EX_TEMPFAIL of sysexits.h, "try again later"."""


def install() -> dict[int, object]:
    """Handles the signals until another handler is installed, or `restore` called.

    Returns:
      The handlers before.
    """
    try:
        return {number: signal.signal(number, _leave) for number in STATUS}
    except ValueError:  # outside the main thread, where Python has none
        return {}


def restore(before: dict[int, object]) -> None:
    """Puts the handlers of before back."""
    for number, handler in before.items():
        signal.signal(number, handler)  # type: ignore[arg-type]


def _leave(number: int, frame: object) -> None:
    del frame
    line = f"Preempted: stopped by {signal.Signals(number).name}; the same command continues\n"
    try:
        os.write(2, line.encode())
    finally:
        os._exit(STATUS[number])
