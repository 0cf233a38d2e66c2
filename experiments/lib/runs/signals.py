"""SIGTERM and interrupts: finish the update, save, and leave; at once during a measurement.

Outside of training a signal ends the process at once, see `experiments.lib.runs.leaving`.

Of several processes all leave at the same update, so a measurement is then finished first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import ClassVar

from experiments.lib.runs import distributed
from experiments.lib.runs.leaving import STATUS


class Interrupted(BaseException):
    """Raised inside `Signals.interruptible` when a signal arrives.

    Not an `Exception`, so that no `except Exception` in a measurement swallows it.
    """


class Signals:
    """Remembers a request to stop. A second signal of the same kind acts as usual."""

    def __init__(self):
        """Takes the way of several processes where there are any."""
        self.exit_status: int | None = None
        self._interruptible = False
        self._notice = StopNotice() if distributed.is_distributed() else None

    @contextlib.contextmanager
    def installed(self) -> Iterator[Signals]:
        """Handles the signals; outside the main thread, where Python has none, does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        if self._notice is not None:
            with self._notice.installed():
                yield self
            return
        before = {number: signal.signal(number, self._handle) for number in STATUS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Between two updates: raises `Interrupted` if it is time to leave."""
        if self._notice is not None and self._notice.reached():
            self.exit_status = STATUS[signal.SIGTERM]
            raise Interrupted
        with self.interruptible():
            pass

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within it a signal raises `Interrupted` instead of waiting to be asked for."""
        self._interruptible = True
        try:
            if self.exit_status is not None:
                raise Interrupted
            yield
        finally:
            self._interruptible = False

    def _handle(self, number, frame) -> None:
        del frame
        signal.signal(number, signal.SIG_DFL)
        self.exit_status = STATUS[signal.Signals(number)]
        if self._interruptible:
            raise Interrupted


class StopNotice:
    """A request to stop that reaches one process and is obeyed by all at the same update.

    JAX's runtime catches SIGTERM, tells the other processes and finds the first question that none
    of them has asked yet; an interrupt from the keyboard is treated likewise. Python's own handler
    of SIGTERM must not be installed, or the runtime would not see it.
    """

    _asked: ClassVar[int] = 0  # over all runs of this process: the runtime compares these numbers

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Hands interrupts to the runtime."""
        before = signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _interrupt(self, number, frame) -> None:
        del number, frame
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGTERM)

    def reached(self) -> bool:
        """Whether to stop now; all processes must ask equally often, and get the same answer."""
        from jax.experimental import multihost_utils

        StopNotice._asked += 1
        return multihost_utils.reached_preemption_sync_point(StopNotice._asked)
