"""Results kept as soon as they are there: one JSON file per seed, and arrays in files.

results = shared(config, each_seed(config, run_seed))
found = kept_arrays(out / "curvature.npz", lambda: curvature(params, data))
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib.runs import distributed, rundir, sound
from experiments.lib.runs.errors import Preempted
from experiments.lib.runs.metrics import jsonable
from experiments.lib.runs.paths import as_path, write_bytes
from experiments.lib.runs.progress import say
from experiments.lib.runs.signals import Interrupted, Signals
from experiments.registry import Options


def each_seed(
    config: Options, run_seed: Callable[[int, Path], dict[str, Any]]
) -> dict[int, Callable[[], dict[str, Any]]]:
    """One piece of work a seed, for `experiments.lib.runs.shares.shared`; kept in a file.

    Args:
      config: the experiment's configuration, with its folder.
      run_seed: `run_seed(seed, folder)` returns the result, JSON values; what is not finite is
        kept as None. `folder` is its own, to keep more in.

    Returns:
      The pieces by seed. Each returns the result as it stands in `seed_K/result.json`, and raises
      `Preempted` if a signal asked to stop before it was there.
    """
    assert config.out is not None
    out = as_path(config.out)

    def of_seed(seed: int) -> dict[str, Any]:
        folder = out / f"seed_{seed}"
        path = folder / "result.json"
        result = rundir.read_json(path, then="the seed is run again")
        if result is None:
            say(f"seed {seed}", enabled=not config.quiet)
            folder.mkdir(parents=True, exist_ok=True)
            result = jsonable(_interruptible(path, lambda: run_seed(seed, folder)))
            rundir.write_json(path, result)
        return result

    return {seed: functools.partial(of_seed, seed) for seed in config.seed_range()}


def kept_arrays(path: Path, make: Callable[[], Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The arrays of a file, which is made if it is not there or damaged.

    Args:
      path: the npz file.
      make: returns the arrays by name; of joined processes each calls it, and the first one writes.

    Raises:
      Preempted: a signal asked to stop; they are not made.
    """
    found = arrays_of_first(lambda: sound.read(path, load_arrays, "it is made again"))
    if found is None:
        made = _interruptible(path, make)

        def written() -> dict[str, np.ndarray]:
            save_arrays(path, **made)
            return load_arrays(path)

        found = arrays_of_first(written)
    assert found is not None
    return found


def arrays_of_first(read: Callable[[], dict[str, np.ndarray] | None]) -> Any:
    """The arrays that the first of several joined processes reads, or None, on all of them."""
    if distributed.position()[1] == 1:
        return read()

    def text() -> str | None:
        found = read()
        return None if found is None else base64.b64encode(_packed(found)).decode()

    told = distributed.on_primary(text)
    return None if told is None else _unpacked(base64.b64decode(told))


def _interruptible(path: Path, make: Callable[[], Any]) -> Any:
    signals = Signals()
    try:
        with signals.installed():
            signals.check()
            with signals.interruptible():
                made = make()
        if signals.exit_status is not None:  # it came when all was made
            raise Interrupted
        return made
    except Interrupted:
        raise Preempted(
            f"stopped before {path} was there; the same command continues",
            signals.exit_status or distributed.PREEMPTED,
        ) from None


def save_arrays(path: Path, /, **arrays: Any) -> None:
    """Writes arrays to an npz file, at once or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, _packed(arrays))


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of `save_arrays`.

    Raises:
      ValueError: the file is damaged.
    """
    return _unpacked(path.read_bytes())


def _packed(arrays: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **{name: np.asarray(a) for name, a in arrays.items()})
    return file.getvalue()


def _unpacked(data: bytes) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return dict(file)
    except Exception as error:  # of numpy, zipfile, zlib and struct, a dozen kinds
        raise ValueError("it is no sound npz file") from error
