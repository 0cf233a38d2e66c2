"""Measurements along a run: functions called at chosen steps, whose results become metrics."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class Snapshot(NamedTuple):
    """A moment of a run. The arrays are donated to the next update: copy what is to be kept.

    Attributes:
      step: updates done.
      params: the parameters.
      model_state: batch statistics.
      opt_state: the optimiser's state.
    """

    step: Any
    params: Any
    model_state: Any
    opt_state: Any


def _no_carry(snapshot: Snapshot) -> tuple[()]:
    del snapshot
    return ()


@dataclass(frozen=True)
class Measurement:
    """Something to measure along a run.

    Results go to `metrics.jsonl` as rows whose event is `name`, and scalars to TensorBoard. They
    are made once: a resumed run keeps those it has. They must depend on the snapshot and the
    carry alone, or a resumed run would differ.

    Attributes:
      name: the event in `metrics.jsonl`.
      measure: `(snapshot, carry) -> (results, carry)`. Results are a mapping of numbers, strings,
        arrays or nested mappings; arrays become lists.
      every: measure at multiples of this step, 0 included.
      steps: and at these steps.
      at_end: and once more at the end of training.
      init: makes the first carry from the snapshot at step 0: a tree of arrays that is saved in
        the checkpoints, such as the vector of a warm-started eigensolver. Must be traceable.
    """

    name: str
    measure: Callable[[Snapshot, Any], tuple[Mapping[str, Any], Any]]
    every: int | None = None
    steps: Collection[int] = ()
    at_end: bool = True
    init: Callable[[Snapshot], Any] = _no_carry

    def __post_init__(self):
        if self.name in ("train", "eval"):
            raise ValueError(f"the name {self.name!r} is taken by the run's own rows")

    def due(self, step: int, last: bool) -> bool:
        """Whether to measure at this step."""
        periodic = self.every is not None and step % self.every == 0
        return periodic or step in self.steps or (last and self.at_end)
