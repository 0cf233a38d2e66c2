"""Rows of training metrics, read one row late so that the devices never wait for the host."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.lib.runs.metrics import MetricsLog
from experiments.lib.training.step import TrainState, zero_totals


class TrainingRows:
    """Writes the means over the updates since the row before, from the sums in the state."""

    def __init__(self, log: MetricsLog, step: int, diverged: Callable[[int], None]):
        """Takes the log, the step to start from, and what to call with the first bad update."""
        self._log, self._diverged = log, diverged
        self._clock = (step, time.perf_counter())
        self._pending: list[tuple[int, Any, float]] = []

    def take(self, step: int, state: TrainState) -> TrainState:
        """Takes the sums for a row of this step; returns the state with empty ones."""
        # Donation will free the sums, so copies are taken; they come to the host on their own.
        totals, fresh = _take(state.totals)
        for leaf in totals:
            leaf.copy_to_host_async()
        before, since = self._clock
        self._clock = (step, time.perf_counter())
        speed = round((step - before) / (self._clock[1] - since), 3)
        self._write_pending()
        self._pending.append((step, totals, speed))
        return state._replace(totals=fresh)

    def flush(self, state: TrainState) -> None:
        """Writes what is to be written, waiting for it, and looks for a bad update."""
        self._write_pending()
        self._check(state.totals)

    def _write_pending(self) -> None:
        while self._pending:
            step, totals, speed = self._pending.pop(0)
            count = int(totals.updates)
            means = {
                name: float(np.float64(getattr(totals, name)) / count)
                for name in ("loss", "accuracy", "grad_norm")
            }
            self._log.write(step, "train", means, clock={"steps_per_second": speed})
            self._check(totals)

    def _check(self, totals: Any) -> None:
        if (bad := int(totals.bad_step)) > 0:
            self._diverged(bad)


@jax.jit
def _take(totals: Any) -> tuple[Any, Any]:
    """Copies of the sums, and empty ones that keep the first bad step."""
    return totals, zero_totals()._replace(bad_step=totals.bad_step)
