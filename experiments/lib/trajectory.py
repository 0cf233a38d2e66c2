"""Trajectories of small networks inside compiled loops, in chunks that survive a kill.

    @functools.partial(jax.jit, static_argnums=1)
    def advance(state, steps):
        return jax.lax.scan(step, state, length=steps)        # records: a dict of arrays

    state, records = run_chunks(out / "gd", state, advance, num_steps=3000, chunk=500)

Right for MLPs only: XLA's convolutions are slow inside loops on a CPU (see flatjax.loops).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.lib.checkpoint import Checkpoints
from experiments.lib.errors import Preempted
from experiments.lib.metrics import jsonable
from experiments.lib.progress import Progress
from experiments.lib.seeds import load_arrays, save_arrays
from experiments.lib.signals import Interrupted, Signals

Advance = Callable[[Any, int], tuple[Any, Mapping[str, Any]]]


def run_chunks(
    folder: Path,
    state: Any,
    advance: Advance,
    num_steps: int,
    chunk: int,
    *,
    axis: int = 0,
    quiet: bool = True,
) -> tuple[Any, dict[str, np.ndarray]]:
    """Advances a state and collects what is recorded; continues where an earlier start stopped.

    After every chunk the records and then the state are saved; a kill at any moment costs the
    chunk it interrupts, and the same call ends with the same bits. At the end the scalars among the
    records are written to `metrics.jsonl`, as lists over seeds if these come first.

    Args:
      folder: a folder of its own.
      state: the first state, a tree of arrays (PRNG keys as their `jax.random.key_data`).
      advance: `advance(state, steps) -> (state, records)`, jitted with `steps` static; records is
        a dict of arrays of `steps` entries.
      num_steps: how many steps in all.
      chunk: steps between two saves; a last, shorter chunk is compiled anew.
      axis: the axis of the steps in the records: 1 behind a leading axis of vmapped seeds.
      quiet: no progress bar.

    Returns:
      The last state, and the records of all steps.

    Raises:
      Preempted: a signal asked to stop; what was done is saved.
      ValueError: `num_steps` or `chunk` is below 1.
    """
    if num_steps < 1 or chunk < 1:
        raise ValueError(f"num_steps and chunk must be at least 1, got {num_steps}, {chunk}")
    parts = folder / "records"
    parts.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(folder / "checkpoints", keep_last=2, keep_best=0)
    state = jax.tree.map(jax.numpy.asarray, state)
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
    )
    found = checkpoints.restore(abstract)
    done = 0
    if found is not None:
        done, state = found.step, found.state
    bar = Progress(folder.name, num_steps, done, enabled=not quiet)
    signals = Signals()
    try:
        with signals.installed():
            while done < num_steps:
                signals.check()
                steps = min(chunk, num_steps - done)
                state, records = advance(state, steps)
                done += steps
                # The records first: a checkpoint without its records could not be continued.
                save_arrays(parts / f"{done}.npz", **records)
                checkpoints.save(done, state, {})
                bar.update(done)
            checkpoints.wait()
    except Interrupted:
        raise Preempted(
            f"stopped at step {done} of {num_steps} in {folder}; the same command continues",
            signals.exit_status or 75,
        ) from None
    finally:
        bar.close()
        checkpoints.close()
    records = _joined(parts, num_steps, axis)
    if not (folder / "metrics.jsonl").exists():
        _write_metrics(folder / "metrics.jsonl", records, num_steps, axis)
    return state, records


def _write_metrics(path: Path, records: Mapping[str, np.ndarray], num_steps: int, axis: int):
    """At most a thousand rows, with a number for every record that has one a step and seed."""
    rows = []
    for step in range(0, num_steps, -(-num_steps // 1000)):
        row: dict[str, Any] = {"step": step, "event": "trajectory"}
        for name, values in records.items():
            if values.ndim == axis + 1:
                row[name] = jsonable(values.take(step, axis))
        rows.append(json.dumps(row) + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(rows), encoding="utf-8")
    os.replace(temporary, path)


def _joined(parts: Path, num_steps: int, axis: int) -> dict[str, np.ndarray]:
    ends = sorted(int(path.stem) for path in parts.glob("*.npz"))
    pieces = [load_arrays(parts / f"{end}.npz") for end in ends if end <= num_steps]
    return {name: np.concatenate([p[name] for p in pieces], axis) for name in pieces[0]}
