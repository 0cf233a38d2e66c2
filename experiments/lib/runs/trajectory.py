"""Trajectories of small networks inside compiled loops, in chunks that survive a kill.

    @functools.partial(jax.jit, static_argnums=1)
    def advance(state, steps):
        return loops.scan(step, state, length=steps)          # records: a dict of arrays

    state, records = run_chunks(out / "gd", state, advance, num_steps=3000, chunk=500)

What a kill can cost is the chunk that it interrupts. Every checkpoint knows the files of records
behind it, by their last steps and checksums: one that is lost or not as it was written costs the
chunks since the last checkpoint before it, and one that no checkpoint knows is left out.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.lib.runs import distributed, sound
from experiments.lib.runs.checkpoint import Checkpoints
from experiments.lib.runs.errors import Preempted, refusals
from experiments.lib.runs.kept import arrays_of_first, load_arrays, save_arrays
from experiments.lib.runs.metrics import MetricsLog, read_metrics
from experiments.lib.runs.placement import Placement
from experiments.lib.runs.progress import Progress
from experiments.lib.runs.rundir import writable
from experiments.lib.runs.signals import Interrupted, Signals

MOST_ROWS = 500
"""In `metrics.jsonl`: of longer trajectories every second step, every third, and so on."""

Advance = Callable[[Any, int], tuple[Any, Mapping[str, Any]]]

Behind = list[list[int]]
"""The files of records that a checkpoint has behind it: of each its last step and its checksum."""


def run_chunks(
    folder: Path,
    state: Any,
    advance: Advance,
    num_steps: int,
    chunk: int,
    *,
    axis: int = 0,
    logged: int | None = None,
    placement: Placement | None = None,
    quiet: bool = True,
) -> tuple[Any, dict[str, np.ndarray]]:
    """Advances a state and collects what is recorded; continues where an earlier start stopped.

    After every chunk the records and then the state are saved; a kill at any moment costs the
    chunk it interrupts, and the same call ends with the same bits. The numbers among the records
    are written to `metrics.jsonl` and TensorBoard too, as lists over seeds if these come first.
    Of joined processes all must call, and the first one writes.

    Args:
      folder: a folder of its own.
      state: the first state, a tree of arrays (PRNG keys as their `jax.random.key_data`).
      advance: `advance(state, steps) -> (state, records)`, jitted with `steps` static; records is
        a dict of arrays of `steps` entries.
      num_steps: how many steps in all.
      chunk: steps between two saves; a last, shorter chunk is compiled anew.
      axis: the axis of the steps in the records: 1 behind a leading axis of vmapped seeds.
      logged: the steps that get rows, where those at the end only fill up a chunk; default all.
      placement: where the state lies; default the first device.
      quiet: no progress bar.

    Returns:
      The last state, and the records of all steps.

    Raises:
      Preempted: a signal asked to stop; what was done is saved.
      CheckpointNotWritten, DiskFull, NotWritable: the disk refuses; what was saved is sound.
      ValueError: `num_steps` or `chunk` is below 1.
    """
    if num_steps < 1 or chunk < 1:
        raise ValueError(f"num_steps and chunk must be at least 1, got {num_steps}, {chunk}")
    placement = placement or Placement(data_parallel=False)
    first = placement.primary
    parts = folder / "records"
    distributed.on_primary(lambda: parts.mkdir(parents=True, exist_ok=True))
    checkpoints = Checkpoints(folder / "checkpoints", keep_last=2, primary=first)
    state = jax.tree.map(jax.numpy.asarray, state)
    # The first process alone looks at the records: others may see a file a little later.
    check = lambda meta: _check(parts, meta["records"]) if first else None  # noqa: E731
    restored = checkpoints.restore(placement.abstract(state), check=check)
    done, behind = 0, []
    if restored is not None:
        done, behind = restored.step, restored.meta["records"]
        state = placement.everywhere(restored.state)
    distributed.on_primary(lambda: _clear(parts, behind, done))
    if done >= num_steps:
        return state, _joined(parts, behind, num_steps, axis)
    bar = Progress(folder.name, num_steps, done, enabled=not quiet)
    signals = Signals()
    try:
        with refusals(folder), signals.installed(), _open_log(folder, done, first) as log:
            while done < num_steps:
                signals.check()
                steps = range(done, min(done + chunk, num_steps))
                state, found = advance(state, len(steps))
                records = {name: np.asarray(values) for name, values in found.items()}
                behind = [*behind, _write(parts, records, log, steps, logged or num_steps, axis)]
                done = steps.stop
                checkpoints.save(done, state, {"records": behind}, score=_score(records, axis))
                bar.update(done)
            checkpoints.wait()
        if signals.exit_status is not None:  # it came during the last chunk
            raise Interrupted
    except Interrupted:
        raise Preempted(
            f"stopped at step {done} of {num_steps} in {folder}; the same command continues",
            signals.exit_status or 75,
        ) from None
    finally:
        bar.close()
        checkpoints.close()
    return state, _joined(parts, behind, num_steps, axis)


def _open_log(folder: Path, done: int, primary: bool) -> MetricsLog:
    """`metrics.jsonl`, cut back to the steps that the restored state has behind it."""
    keep = [row for row in read_metrics(folder) if row["step"] < done] if primary else ()
    return MetricsLog(folder, keep=keep, resume_step=done, primary=primary)


def _write(
    parts: Path,
    records: Mapping[str, np.ndarray],
    log: MetricsLog,
    steps: range,
    end: int,
    axis: int,
) -> list[int]:
    """Writes the records of a chunk, before its state: that could not be continued without them.

    Returns:
      The last step and the checksum.
    """

    def write() -> list[int]:
        path = parts / f"{steps.stop}.npz"
        save_arrays(path, **records)
        _write_rows(log, records, steps, end, axis)
        return [steps.stop, zlib.crc32(path.read_bytes())]

    return distributed.on_primary(write)


def _score(records: Mapping[str, np.ndarray], axis: int) -> float | None:
    """The last test accuracy, mean over seeds; None where there is none."""
    if "test_accuracy" not in records:
        return None
    found = float(records["test_accuracy"].take(-1, axis).mean())
    return found if np.isfinite(found) else None


def _write_rows(
    log: MetricsLog, records: Mapping[str, np.ndarray], steps: range, end: int, axis: int
) -> None:
    """A row for each step that gets one, with every record that has one number a step and seed."""
    stride = -(-end // MOST_ROWS)
    numbers = {name: values for name, values in records.items() if values.ndim == axis + 1}
    for place, step in enumerate(steps):
        if step < end and step % stride == 0:
            log.write(step, "trajectory", {k: v.take(place, axis) for k, v in numbers.items()})
    log.sync()


def _check(parts: Path, behind: Behind) -> None:
    """Raises ValueError where a file of records is not as it was written."""
    for end, checksum in behind:
        path = parts / f"{end}.npz"
        if not path.exists():
            raise ValueError(f"the records {path} are lost")
        if zlib.crc32(path.read_bytes()) != checksum:
            raise ValueError(f"the records {path} are not as they were written")


def _clear(parts: Path, behind: Behind, done: int) -> None:
    """Sets aside what lies among the records and is none; removes what a kill has left."""
    if not writable(parts):
        return
    known = {f"{end}.npz" for end, _ in behind}
    for path in sorted(parts.iterdir()):
        if path.suffix == ".tmp" or (path.stem.isdigit() and int(path.stem) > done):
            path.unlink()  # half-written, or a chunk that comes again
        elif path.name not in known:
            sound.set_aside(path, "no checkpoint knows these records", "left out", parts.parent)


def _joined(parts: Path, behind: Behind, num_steps: int, axis: int) -> dict[str, np.ndarray]:
    """The first `num_steps` of all records; a folder may have gone further."""
    first = (slice(None),) * axis + (slice(num_steps),)

    def read() -> dict[str, np.ndarray]:
        pieces = [load_arrays(parts / f"{end}.npz") for end, _ in behind]
        return {name: np.concatenate([p[name] for p in pieces], axis)[first] for name in pieces[0]}

    found = arrays_of_first(read)
    assert found is not None
    return found
