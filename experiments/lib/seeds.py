"""One result a seed, kept as soon as it is there; and arrays in files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib import rundir
from experiments.lib.metrics import jsonable
from experiments.lib.progress import Progress
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
    """
    assert config.out is not None
    seeds = list(config.seed_range())
    results = {}
    bar = Progress("seeds", len(seeds), 0, enabled=not config.quiet)
    try:
        for count, seed in enumerate(seeds, 1):
            folder = Path(config.out) / f"seed_{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "result.json"
            if not path.exists():
                rundir.write_json(path, jsonable(run_seed(seed, folder)))
            results[seed] = rundir.read_json(path)
            bar.update(count, f"seed {seed}")
    finally:
        bar.close()
    return results


def save_arrays(path: Path, **arrays: Any) -> None:
    """Writes arrays to an npz file, at once or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        np.savez_compressed(file, **{name: np.asarray(a) for name, a in arrays.items()})
    os.replace(temporary, path)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of `save_arrays`."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)
