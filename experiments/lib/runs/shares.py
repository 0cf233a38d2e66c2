"""Independent pieces of work, spread over the processes of a run.

    found = shared({arm: functools.partial(run_arm, config, out, arm) for arm in ARMS})

Each process does its share by itself, as a run of one process would, and writes its files. Then all
go over every piece together and find it finished, so that all have all results, and a run started
again with more or fewer processes goes on where it was.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from experiments.lib.runs import distributed
from experiments.lib.runs.errors import ExperimentError, Preempted

K = TypeVar("K")
T = TypeVar("T")

_BLOCKS = itertools.count()
_LOOK_EVERY = 0.2  # seconds


def shared(work: Mapping[K, Callable[[], T]]) -> dict[K, T]:
    """The results of all pieces of work, in order.

    Args:
      work: the pieces by name, in the same order on all processes; none needs another. Each keeps
        what it has done in files of its own, and called again reads its result from them.

    Returns:
      The results by name, on every process.

    Raises:
      Preempted: a signal reached one of the processes; all have saved their work.
      ExperimentError: another process failed.
    """
    index, count = distributed.position()
    if count > 1:
        _each_its_share(list(work.values())[index::count])
    return {name: piece() for name, piece in work.items()}


def _each_its_share(pieces: list[Callable[[], T]]) -> None:
    index, count = distributed.position()
    block = f"experiments/shared/{next(_BLOCKS)}"
    stopped: Preempted | None = None
    with distributed.by_itself():
        try:
            for piece in pieces:
                piece()
        except Preempted as error:
            stopped = error
        except BaseException:
            distributed.leave_note(f"{block}/{index}", "failed")
            raise
    distributed.leave_note(f"{block}/{index}", "stopped" if stopped else "done")
    # Not in a collective: that would give up on work that takes longer than its patience.
    notes: list[str | None] = [None]
    while None in notes:
        time.sleep(_LOOK_EVERY)
        notes = [distributed.read_note(f"{block}/{other}") for other in range(count)]
        if "failed" in notes:
            raise ExperimentError(f"process {notes.index('failed')} failed; see what it says")
    if stopped is not None:
        raise stopped
    if "stopped" in notes:
        raise Preempted("stopped by a signal at another process; the same command continues")
