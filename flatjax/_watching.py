"""Signs of life of what the host drives: progress, a callback, a time limit, and Ctrl-C.

The four options of every function that may run for long make one `Watch`. A loop takes its steps in
the chunks that the watch deals out, and reports after each: the same compiled steps in the same
order as without, so that the results are the same, too. Without any of the options the watch is
`SILENT`, and deals out one chunk.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _checks as checks
from flatjax import _loops as loops
from flatjax import _progress as progress_of
from flatjax import _texts as texts

Callback = Callable[[int, Any, Any], Any]

SECONDS = 0.5  # that a chunk should take: so long a stop may wait, and so rare is the report
# The processor's seconds that all reports may take together, callbacks aside: so many, and this
# share of the time so far. One takes .1 to 2 ms.
FREE, SHARE = 0.005, 0.004
# Where several processes work together they must take the same chunks, whatever their clocks say.
_TOGETHER = 8
clock = time.monotonic
_timer = time.perf_counter
_effort = time.thread_time  # of the processor: to wait for the device is no part of a report


@jax.tree_util.register_static
class Reason(str):
    """Why a run has stopped early: a text, which is no leaf of the result that it stands in."""


class Watch:
    """Nobody watches: one chunk, no report, no end before the end.

    Attributes:
      on: whether somebody watches.
      stopped: why the run must stop, ``"callback"``, ``"max_seconds"`` or ``"interrupt"``; ``None``
        while it may go on.
    """

    on = False
    stopped: Reason | None = None

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *exception: Any) -> None:
        pass

    def check(self, *trees: Any) -> None:
        """Raise where something is traced and there is somebody to watch."""

    def chunks(self, total: int, *, whole: bool = False) -> Iterator[tuple[int, int]]:
        """Begin and end of every chunk of ``total`` steps, none after a stop.

        Between two of them the loop waits for the device and reports.

        Args:
          total: the number of steps.
          whole: where every number of steps is a program of its own: all in one chunk.

        Yields:
          The numbers of the first step and of that after the last.
        """
        yield 0, total

    def wants(self) -> bool:
        """Whether a report is wanted now: only then is it to be prepared."""
        return False

    def ask(self, callback: Callable[..., Any], *args: Any) -> None:
        """Call a callback that has arguments of its own; what it says counts at once."""

    def due(self, array: Any) -> bool:
        """Whether it is time for a report, of a loop that is not in chunks; then it has waited."""
        return False

    def report(
        self,
        step: int,
        values: Any = None,
        errors: Any = None,
        *,
        left: float | None = None,
        distance: float | None = None,
        ready: bool = True,
        text: str | None = None,
    ) -> None:
        """Tell what a loop has reached, and find out whether it must stop.

        Args:
          step: the steps taken so far.
          values: what they have given, on the host; without any the callback is not called.
          errors: how far these may be off, of the same shape.
          left: how many steps there are to come; a float for an estimate. After a report of none
            the run is not stopped: it has ended.
          distance: in place of it, a number that falls steadily to zero at the end.
          ready: whether there is a result to return; before there is one, nothing stops.
          text: what to show, in place of the worst of the errors relative to the values.
        """


SILENT = Watch()


class _Watching(Watch):
    """Somebody watches."""

    on = True

    def __init__(self, name, unit, label, progress, callback, max_seconds, on_interrupt, summary):
        self._name, self._unit, self._label, self._summary = name, unit, label, summary
        self._progress, self._callback = progress, callback
        self._max_seconds, self._on_interrupt = max_seconds, on_interrupt
        self._display: progress_of.Display | None = None
        self._pending: str | None = None
        self._interrupts = 0
        self._before: Any = None
        self._alone = jax.process_count() == 1
        self._size, self._since = 1 if self._alone else _TOGETHER, 0
        self._spent, self._waited, self._asked, self._entered = 0.0, True, 0.0, 0.0
        self._began = 0.0
        self._first: tuple[int, float] | None = None
        self._start: tuple[int, float] | None = None
        self._text = f"0 {unit}"

    def __enter__(self):
        self._began = self._last = clock()
        self._entered = _timer()
        if self._progress:
            self._display = progress_of.display(self._name)
        if self._on_interrupt == "return" and (
            threading.current_thread() is threading.main_thread()
        ):
            before = signal.getsignal(signal.SIGINT)
            if before not in (None, signal.SIG_IGN):
                self._before = before
                signal.signal(signal.SIGINT, self._interrupted)
        return self

    def __exit__(self, *exception):
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
        if self._display is not None:
            text = ""
            if self._summary and exception[0] is None:
                text = f"{self._text}, {texts.duration(clock() - self._began)}"
                text += "" if self.stopped is None else f", stopped by {self.stopped}"
            self._display.close(text)

    def _interrupted(self, *_):
        # An exception in the middle of a step would lose the state that the step consumes.
        self._interrupts += 1
        if self._interrupts > 1:
            raise KeyboardInterrupt

    def check(self, *trees):
        if loops.is_traced(trees):
            _refuse(self._name)

    def chunks(self, total, *, whole=False):
        done = 0
        while done < total and self.stopped is None:
            count = total - done if whole else min(self._size, total - done)
            self._last, self._waited = clock(), True
            yield done, done + count
            done += count
            if self._waited:
                self._grow(count)

    def wants(self):
        if self.stopped is not None:
            return False
        self._asked = _effort()
        due = self._pending is not None or self._interrupts or self._is_late()
        allowed = FREE + SHARE * (_timer() - self._entered)
        if self._alone and not due and self._spent > allowed:
            self._waited = False  # how long the steps take is not known without waiting for them
            return False
        return True

    def _is_late(self):
        return clock() - self._began >= self._max_seconds

    def due(self, array):
        self._since += 1
        if self._since < self._size:
            return False
        jax.block_until_ready(array)
        self._grow(self._since)
        self._since = 0
        return self.wants()

    def _grow(self, count):
        """Size the next chunk by how long so many steps have taken."""
        now = clock()
        if self._alone:
            each = max(now - self._last, 1e-9) / count
            self._size = max(1, min(2 * self._size, int(SECONDS / each)))
        self._last = now

    def ask(self, callback, *args):
        self._pending = self._called(callback, *args)
        if self._pending is not None:
            self.stopped = Reason(self._pending)

    def report(
        self, step, values=None, errors=None, *, left=None, distance=None, ready=True, text=None
    ):
        if self.stopped is not None:
            return
        if values is not None and self._callback is not None:
            began = _effort()
            self._pending = self._called(self._callback, step, values, errors) or self._pending
            self._asked += _effort() - began  # its seconds are the caller's
        if self._interrupts:
            self._pending = "interrupt"
        elif self._pending is None and self._is_late():
            self._pending = "max_seconds"
        if self._display is not None:
            of = f" of {step + left}" if isinstance(left, int) else ""
            rest = self._estimated(step, distance) if left is None else left
            self._text = f"{step}{of} {self._unit}{self._worst(values, errors, text)}"
            self._display.update(step, rest, self._text + self._time(step, rest))
        self._spent += _effort() - self._asked
        if isinstance(left, int) and left == 0:
            return  # it has come to its end
        if self._pending is not None and ready:
            self.stopped = Reason(self._pending)
        elif self._pending == "interrupt":
            raise KeyboardInterrupt(
                f"{self._name} was interrupted with {step} {self._unit} done, before there was a "
                "result to return."
            )

    def _called(self, callback, *args):
        try:
            stop = callback(*args)
        except KeyboardInterrupt:
            if self._on_interrupt == "raise":
                raise
            return "interrupt"
        # True alone: a callback may well return the loss, or what it has written.
        is_flag = np.ndim(stop) == 0 and np.asarray(stop).dtype == bool
        return "callback" if is_flag and bool(stop) else None

    def _worst(self, values, errors, text):
        if text is not None:
            return f", {text}"
        if values is None or errors is None or not np.size(values):
            return ""
        with np.errstate(all="ignore"):
            return f", {self._label} {np.max(np.abs(errors) / np.abs(values)):.1e}"

    def _estimated(self, step, distance):
        """The steps left, if the distance goes on falling as it has fallen so far."""
        if distance is None or not math.isfinite(distance):
            return None
        if self._start is None:
            self._start = step, distance
        begin, high = self._start
        return max(0.0, distance * (step - begin) / (high - distance)) if high > distance else None

    def _time(self, step, left):
        # Not from the beginning: the first steps compile.
        now = clock()
        if self._first is None:
            self._first = step, now
        begin, then = self._first
        if left is None or step == begin:
            return ""
        return f", about {texts.duration(left * (now - then) / (step - begin))} left"


def _refuse(name):
    raise TypeError(
        f"{name} cannot be watched while it is traced: progress=, callback=, max_seconds= and "
        "on_interrupt= are of the host. Call it outside jit, vmap and grad, or leave them out."
    )


def watch(
    name: str,
    progress: bool,
    callback: Callback | None,
    max_seconds: float | None = None,
    on_interrupt: str = "raise",
    *,
    traced: Any = (),
    unit: str = "products",
    label: str = "worst residual",
    summary: bool = True,
) -> Watch:
    """The watch of a call with these options; `SILENT` where all are off.

    Args:
      name: what is called.
      progress: whether to show how far it is.
      callback: a function of the step, values and errors that may return ``True`` to stop.
      max_seconds: the seconds after which to stop.
      on_interrupt: ``"raise"`` or ``"return"``.
      traced: what the call is given, which must not be traced if it is to be watched.
      unit: what its steps are.
      label: what the largest of the errors relative to the values is called.
      summary: whether to leave a line at the end.

    Returns:
      A context for as long as the call takes.

    Raises:
      TypeError: for options of another type, or something traced.
      ValueError: for a limit that is not positive, another choice, or stops that several processes
        cannot agree on.
    """
    checks.check_choice("on_interrupt", on_interrupt, ("raise", "return"))
    if not isinstance(progress, bool):
        raise TypeError(f"progress must be True or False, got {progress!r}.")
    if callback is not None and not callable(callback):
        raise TypeError(
            "callback must be a function of a step, values and their errors, got "
            f"{type(callback).__name__}."
        )
    limit = math.inf
    if max_seconds is not None:
        checks.check_scalar("max_seconds", max_seconds, above=0.0, infinite=True)
        limit = float(max_seconds)
    if not progress and callback is None and max_seconds is None and on_interrupt == "raise":
        return SILENT
    if loops.is_traced(traced, jnp.zeros(())):  # inside jit even a constant is
        _refuse(name)
    if jax.process_count() > 1 and (max_seconds is not None or on_interrupt == "return"):
        raise ValueError(
            "of several processes each would stop at another step, and wait for the others for "
            "ever: max_seconds= and on_interrupt= are for one process. A callback may stop them, "
            "if it decides alike on all."
        )
    return _Watching(name, unit, label, progress, callback, limit, on_interrupt, summary)


def marked(result: Any, watch: Watch) -> Any:
    """The result as it is, or said to have been stopped: ``stopped`` is why, nothing converged."""
    if watch.stopped is None:
        return result
    if "converged" in result._fields:
        result = result._replace(converged=jnp.zeros_like(result.converged))
    return result._replace(stopped=watch.stopped)
