"""What the tests of progress, callbacks, time limits and interrupts share."""

import signal
from typing import Any

import jax
import numpy as np


class Clock:
    """A clock that stands still, or goes on by some seconds at every look.

    With no time between two looks a chunk is twice as long as the one before; with a second or more
    it is one step.

    Attributes:
      now: the time.
      tick: what every look adds.
    """

    def __init__(self, tick: float = 0.0):
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


class Calls(list):
    """A callback that keeps what it is called with, and stops at a step.

    Args:
      stop: the step from which on it returns ``True``.
      do: what to call there instead: something that raises, say.
    """

    def __init__(self, stop: float = np.inf, do: Any = None):
        super().__init__()
        self.stop, self.do = stop, do

    def __call__(self, step: int, values: Any, errors: Any) -> bool:
        self.append((step, values, errors))
        if step < self.stop:
            return False
        return self.do() if self.do else True

    @property
    def steps(self) -> list[int]:
        return [call[0] for call in self]


def ctrl_c() -> None:
    """As a person does."""
    signal.raise_signal(signal.SIGINT)


def interrupt() -> None:
    """As a callback may."""
    raise KeyboardInterrupt


def check_same(a: Any, b: Any) -> None:
    """Two results are the same, bit by bit."""
    jax.tree.map(np.testing.assert_array_equal, a, b)
