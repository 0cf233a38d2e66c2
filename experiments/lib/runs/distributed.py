"""Several processes that share the batches of one run: how they join, agree, stop and leave.

    python -m experiments NAME --distributed                      # SLURM, Cloud TPU, GKE, Open MPI
    python -m experiments NAME --distributed --coordinator HOST:PORT --processes 2 --process 0

Every process runs the same program on its own rows of the data; the first one writes. What only the
first one can know (a file, a lock) is told to the others, so that all take the same way. A process
that dies without a word is missed after `HEARTBEAT_SECONDS`, and the others end with an error that
names it. Independent pieces of work need none of this, see `experiments.lib.runs.shares`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from experiments.lib.runs import errors
from experiments.lib.runs.errors import ExperimentError

HEARTBEAT_SECONDS = 30
"""After how long a silent process is taken for dead; all others then end too."""

PREEMPTED = 75
"""The exit status of a run that was stopped and that the same command continues."""

_FLAGS = {
    "--coordinator": ("coordinator", str),
    "--processes": ("processes", int),
    "--process": ("process", int),
    "--join-timeout": ("join_timeout", int),
    "--heartbeat": ("heartbeat", int),
}

_LOCAL = {"127.0.0.1", "localhost", "[::1]"}

USAGE = """\
distributed runs:
  --distributed          join the other processes of this run; on SLURM, Cloud TPU, GKE and Open MPI
                         the rest is found out
  --coordinator H:P      address and free port of the first process
  --processes N          how many processes there are
  --process I            which of them this is, from 0
  --join-timeout S       how long to wait for the others at the start (default 300 seconds)
  --heartbeat S          after how long a silent process is taken for dead (default 30 seconds)
"""


class CannotJoin(ExperimentError):
    """The processes did not find each other; the message says what to pass."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How this process joins the others.

    Attributes:
      coordinator: address and port of the first process; None to detect it.
      processes: how many there are; None to detect it.
      process: which of them this is, from 0; None to detect it.
      join_timeout: seconds to wait for the others at the start.
      heartbeat: seconds after which a silent process is taken for dead.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    join_timeout: int = 300
    heartbeat: int = HEARTBEAT_SECONDS


def take_options(arguments: Sequence[str]) -> tuple[Options | None, list[str]]:
    """Takes the options of a distributed run out of a command line.

    Args:
      arguments: the arguments after the experiment's name.

    Returns:
      The options, None without `--distributed`; and the other arguments.

    Raises:
      CannotJoin: an option without a value or without `--distributed`.
    """
    rest, found, distributed = [], {}, False
    left = list(arguments)
    while left:
        name, equals, value = left.pop(0).partition("=")
        if name == "--distributed" and not equals:
            distributed = True
        elif name in _FLAGS:
            if not equals:
                value = left.pop(0) if left else ""
            field, kind = _FLAGS[name]
            try:
                found[field] = kind(value)
            except ValueError:
                value = ""
            if not value:
                raise CannotJoin(f"{name} needs a value\n\n{USAGE}")
        else:
            rest.append(name + equals + value)
    if found and not distributed:
        raise CannotJoin(f"{', '.join(found)}: only with --distributed\n\n{USAGE}")
    return (Options(**found) if distributed else None), rest


def join(options: Options) -> None:
    """Joins the other processes; before anything else of JAX.

    Raises:
      CannotJoin: the others were not found.
    """
    import jax

    given = (options.coordinator, options.processes, options.process)
    host = (options.coordinator or "").rpartition(":")[0]
    try:
        jax.distributed.initialize(
            *given,
            initialization_timeout=options.join_timeout,
            heartbeat_timeout_seconds=options.heartbeat,
            shutdown_timeout_seconds=options.heartbeat,
            # By default the first process listens on all interfaces.
            coordinator_bind_address=options.coordinator if host in _LOCAL else None,
        )
    except (ValueError, TypeError) as error:
        missing = [
            flag
            for flag, value in zip(
                ("--coordinator", "--processes", "--process"), given, strict=True
            )
            if value is None
        ]
        where = "this is no SLURM step, Cloud TPU, GKE or Open MPI job" if missing else str(error)
        raise CannotJoin(f"{where}: pass {', '.join(missing) or 'other values'}") from error
    except RuntimeError as error:
        raise CannotJoin(
            f"process {options.process} did not find the others at {options.coordinator} within "
            f"{options.join_timeout} seconds ({str(error).splitlines()[0]})"
        ) from error


def is_distributed() -> bool:
    """Whether this process has joined others (even if it is the only one)."""
    import jax

    return jax.distributed.is_initialized()


def position() -> tuple[int, int]:
    """Which process this is, from 0, and of how many at work together."""
    import jax

    return (jax.process_index(), jax.process_count()) if is_distributed() else (0, 1)


def is_first() -> bool:
    """Whether this process writes: it is alone, or the first of those at work together."""
    return position()[0] == 0


def run(main: Callable[[], int]) -> int:
    """Runs the whole program of a process that has joined others.

    The usual way out waits for the others. After an error it would do so in vain, for they wait for
    this one somewhere else; so it leaves at once.

    Args:
      main: the program; returns the exit status.

    Returns:
      The exit status.
    """
    import jax

    index, count = jax.process_index(), jax.process_count()
    try:
        status = main()
    except BaseException:
        traceback.print_exc()
        status = 1
    if status in (0, PREEMPTED):
        return status
    print(
        f"process {index} of {count} ends with exit status {status}, and the others with it; the "
        "same command continues from the last checkpoint",
        file=sys.stderr,
    )
    sys.stdout.flush()
    sys.stderr.flush()
    if index == 0:
        time.sleep(1)  # its end is the end of the runtime: the others may speak first
    os._exit(status)


def agree(ok: bool) -> bool:
    """Whether `ok` holds on every process; every process must ask."""
    return all(gather(bool(ok)))


def gather(number: int | bool) -> list[int]:
    """The number of every process, in order; every process must ask."""
    import numpy as np
    from jax.experimental import multihost_utils

    if position()[1] == 1:
        return [int(number)]
    return np.asarray(multihost_utils.process_allgather(np.int32(number))).tolist()


def on_primary(fn: Callable[[], Any]) -> Any:
    """Calls `fn` on the first process only; all get its result, or its error.

    Args:
      fn: returns a JSON value.

    Returns:
      That value.

    Raises:
      ExperimentError: of the same class, text and exit status on every process.
    """
    index, count = position()
    if count == 1:
        return fn()
    told: Any = None
    error = None
    if index == 0:
        try:
            with errors.refusals("the folder of the run"):
                told = {"value": fn()}
        except ExperimentError as caught:
            error = caught
            name, status = type(caught).__name__, caught.exit_status
            told = {"error": str(caught), "name": name, "status": status}
    told = _broadcast(told)
    if error is not None:
        raise error
    if "error" in told:
        kind = getattr(errors, told["name"], ExperimentError)
        relayed = kind.__new__(kind, told["error"])  # some take more arguments than the text
        relayed.exit_status = told["status"]
        raise relayed
    return told["value"]


def _broadcast(value: Any) -> Any:
    """The JSON value of the first process."""
    import numpy as np
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
    padded = np.zeros(size, np.uint8)
    padded[: min(size, text.size)] = text[:size]
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))))
