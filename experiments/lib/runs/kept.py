"""Results kept as soon as they are there: one JSON file a seed, and arrays in files.

    results = each_seed(config, run_seed)
    found = kept_arrays(out / "curvature.npz", lambda: curvature(params, data))

Several processes share the seeds; see `experiments.lib.runs.shares`.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib.runs import distributed, rundir
from experiments.lib.runs.errors import Preempted
from experiments.lib.runs.metrics import jsonable
from experiments.lib.runs.paths import as_path, write_bytes
from experiments.lib.runs.progress import Progress
from experiments.lib.runs.shares import shared
from experiments.lib.runs.signals import Interrupted, Signals
from experiments.registry import ExperimentConfig


def each_seed(
    config: ExperimentConfig, run_seed: Callable[[int, Path], dict[str, Any]]
) -> dict[int, dict[str, Any]]:
    """Runs every seed of the configuration that has no result yet.

    Args:
      config: the experiment's configuration, with its folder.
      run_seed: `run_seed(seed, folder)` returns the result, JSON values; what is not finite is
        kept as None. `folder` is its own, to keep more in.

    Returns:
      The results by seed, as they stand in `seed_K/result.json`.

    Raises:
      Preempted: a signal asked to stop; the seeds that are done are kept.
    """
    assert config.out is not None
    seeds = list(config.seed_range())
    out = as_path(config.out)
    bar = Progress("seeds", len(seeds), 0, enabled=not config.quiet)

    def of_seed(number: int, seed: int) -> dict[str, Any]:
        folder = out / f"seed_{seed}"
        path = folder / "result.json"
        found = rundir.read_json(path)
        if found is None:
            folder.mkdir(parents=True, exist_ok=True)
            result = _interruptible(path, lambda: run_seed(seed, folder))
            rundir.write_json(path, jsonable(result))
            found = rundir.read_json(path)
        bar.update(number, f"seed {seed}")
        return found

    try:
        return shared({s: functools.partial(of_seed, n, s) for n, s in enumerate(seeds, 1)})
    finally:
        bar.close()


def kept_arrays(path: Path, make: Callable[[], Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The arrays of a file, which is made if it is not there.

    Of several processes at work together all make them, and the first one writes.

    Args:
      path: the npz file.
      make: returns the arrays by name.

    Raises:
      Preempted: a signal asked to stop; they are not made.
    """
    if not distributed.on_primary(path.exists):
        save_arrays(path, **_interruptible(path, make))
    return load_arrays(path)


def _interruptible(path: Path, make: Callable[[], Any]) -> Any:
    signals = Signals()
    try:
        with signals.installed():
            signals.check()
            with signals.interruptible():
                return make()
    except Interrupted:
        raise Preempted(
            f"stopped before {path} was there; the same command continues",
            signals.exit_status or distributed.PREEMPTED,
        ) from None


def save_arrays(path: Path, **arrays: Any) -> None:
    """Writes arrays to an npz file, at once or not at all; of several processes the first one."""

    def write() -> None:
        file = io.BytesIO()
        np.savez_compressed(file, **{name: np.asarray(a) for name, a in arrays.items()})
        write_bytes(path, file.getvalue())

    distributed.on_primary(write)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of `save_arrays`."""
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
        return dict(file)
