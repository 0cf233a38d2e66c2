"""Checkpoints through orbax: asynchronous, verified when read, the last and the best kept.

Every checkpoint carries a checksum of its arrays, computed on the device when it was saved. What
cannot be read back bit for bit is damaged: it is set aside and an older one is taken.
"""

from __future__ import annotations

import functools
import json
import logging
import re
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as writing
from orbax.checkpoint import v1 as ocp

from experiments.lib import distributed
from experiments.lib.errors import CheckpointMismatch, CheckpointNotWritten
from experiments.lib.paths import absolute, is_remote, remove_tree

FORMAT = 1


class Restored(NamedTuple):
    """What a checkpoint held.

    Attributes:
      step: its step.
      state: the tree of arrays.
      meta: the JSON values saved with it.
    """

    step: int
    state: Any
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, each in `folder/STEP`.

    Saving copies the arrays to the host before it returns, so that donating them afterwards is
    safe, and writes in the background; a checkpoint counts once it is renamed into place. Of
    several processes the first one writes and each reads for itself, so that none waits in orbax
    for another that is dead or cannot write; all must call every method.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        best_metric: str = "test_accuracy",
        primary: bool = True,
    ):
        """Nothing is opened or written until the first save; see `TrainConfig` for the options."""
        self.folder = absolute(folder)
        self._keep_last, self._keep_best, self._best = keep_last, keep_best, best_metric
        self._primary = primary
        self._writer: Any = None
        self._in_flight = False

    def save(
        self,
        step: int,
        state: Any,
        meta: Mapping[str, Any],
        *,
        iterator: Any = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts saving; returns when the arrays are copied.

        Args:
          step: the step; not before the newest one, which is written anew if it is this one.
          state: a tree of arrays; of several processes, each must have them whole.
          meta: JSON values.
          iterator: a grain iterator, whose state is saved; it is the same in all processes,
            whatever their number.
          metrics: metrics of this very step, if it was evaluated: they decide the best.

        Raises:
          CheckpointNotWritten: this one could not be begun, or the one before not be finished.
        """
        described = dict(meta, format=FORMAT, step=step, structure=structure(state))
        described["metrics"] = dict(metrics or {})
        if iterator is not None:
            # Not an item of its own: grain writes one file for each process.
            described["data_state"] = iterator.get_state()
        check = checksum(own(state))
        state = jax.tree.map(_copied, own(state)) if self._primary else None
        self._on_writer(lambda: self._save(step, {"state": state, "checksum": check}, described))

    def _save(self, step: int, state: Any, described: dict[str, Any]) -> None:
        self._finish()
        if self._writer is None:
            self._writer = _writer()
            self.folder.mkdir(parents=True, exist_ok=True)
            for unfinished in self.folder.glob("*.orbax-checkpoint-tmp*"):
                remove_tree(unfinished)
        meta = {"crc32": _crc32(described), "content": described}
        state = {**state, "checksum": np.asarray(state["checksum"])}
        args = writing.args
        items = args.Composite(state=args.StandardSave(state), meta=args.JsonSave(meta))
        self._writer.save(self.folder / str(step), items, force=True)
        self._in_flight = True

    def _finish(self) -> None:
        """Waits for the save in the background and removes the checkpoints it supersedes."""
        if not self._in_flight:
            return
        self._in_flight = False
        self._writer.wait_until_finished()
        steps = list_steps(self.folder)
        kept = {*steps[-self._keep_last :], *_ranked(steps, self._best)[: self._keep_best]}
        for path in steps:
            if path not in kept:
                remove_tree(path)

    def _on_writer(self, fn: Callable[[], None]) -> None:
        """Calls `fn` where checkpoints are written; every process gets its error, in one line."""

        def call():
            try:
                fn()
            except (OSError, ValueError, RuntimeError, BaseExceptionGroup) as error:
                last = next(reversed(list_steps(self.folder)), None)
                raise CheckpointNotWritten(
                    f"a checkpoint could not be written to {self.folder} ({_reason(error)}); "
                    + (f"the last good one is {last}" if last else "there is none before it")
                    + "; make room and run the same command to continue"
                ) from error

        distributed.on_primary(call)

    def restore(self, abstract: Any, *, iterator: Any = None) -> Restored | None:
        """Loads the newest sound checkpoint, setting damaged ones aside with a warning.

        Args:
          abstract: the tree to fill: `jax.ShapeDtypeStruct`s with shardings.
          iterator: the grain iterator to set to the saved state.

        Returns:
          The checkpoint, or None if there is none.

        Raises:
          CheckpointMismatch: the newest sound checkpoint has another structure.
        """
        self.close()
        damaged: list[tuple[Path, Exception]] = []
        found = None
        # The first process's list: others may see a shared file system a little later.
        names = distributed.on_primary(lambda: [path.name for path in list_steps(self.folder)])
        for path in (self.folder / name for name in reversed(names)):
            error: Exception = ValueError("another process could not read it")
            try:
                found = self._read(path, abstract, iterator)
            except CheckpointMismatch:
                raise
            except Exception as caught:
                found, error = None, caught
            if distributed.agree(found is not None):
                break
            found = None
            damaged.append((path, error))
        for path, error in damaged:
            self._set_aside(path, error, found)
        return found

    def _read(self, path: Path, abstract: Any, iterator: Any) -> Restored:
        meta = read_meta(path)
        if meta["step"] != int(path.name):
            raise ValueError(f"it was saved at step {meta['step']}")
        if meta["structure"] != structure(abstract):
            raise CheckpointMismatch(
                f"checkpoint {path} holds {meta['structure']}, and this run needs "
                f"{structure(abstract)}; it was written by other code: choose another folder"
            )
        stored = jax.tree.map(_plain_abstract, abstract)
        items = {"state": {"state": stored, "checksum": _like_checksum(abstract)}}
        _leave_abandoned_unreported()
        with _context():
            loaded = ocp.load_checkpointables(path, items)
        state = jax.tree.map(_typed, loaded["state"]["state"], abstract)
        if int(checksum(state)) != int(loaded["state"]["checksum"]):
            raise ValueError("the arrays do not match their checksum")
        if iterator is not None:
            iterator.set_state(meta["data_state"])
        return Restored(int(path.name), state, meta)

    def _set_aside(self, path: Path, error: Exception, found: Restored | None) -> None:
        instead = f"{self.folder / str(found.step)}" if found else "the beginning: none is sound"
        place = self.folder.parent / "damaged" / path.name
        warnings.warn(
            f"checkpoint {path} is damaged ({_reason(error)}); it is moved to {place} and the run "
            f"continues from {instead}",
            stacklevel=4,
        )
        if self._primary:
            if place.exists():
                remove_tree(place)
            place.parent.mkdir(exist_ok=True)
            path.rename(place)

    def wait(self) -> None:
        """Waits for the save in the background.

        Raises:
          CheckpointNotWritten: it failed.
        """
        self._on_writer(self._finish)

    def latest(self) -> Path | None:
        """The folder of the newest complete checkpoint."""
        self.wait()
        steps = list_steps(self.folder)
        return steps[-1] if steps else None

    def close(self) -> None:
        """Waits for the save in the background; a process may call it without the others."""
        try:
            self._finish()
        finally:
            if self._writer is not None:
                self._writer.close()
            self._writer = None


def _writer() -> Any:
    """Orbax's writer, for one process alone.

    Of orbax's first interface: in the second one (v1) all processes of a run must save together,
    and when one cannot, the others wait for it in a barrier.
    """
    _leave_abandoned_unreported()
    options = writing.options.MultiprocessingOptions()
    if jax.process_count() > 1:
        me = jax.process_index()
        options = writing.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
        )
    handler = writing.CompositeCheckpointHandler(
        state=writing.StandardCheckpointHandler(multiprocessing_options=options),
        meta=writing.JsonCheckpointHandler(multiprocessing_options=options),
        composite_options=writing.CompositeOptions(multiprocessing_options=options),
    )
    return writing.AsyncCheckpointer(handler, multiprocessing_options=options)


def _copied(leaf: jax.Array) -> np.ndarray:
    """The numbers on the host, in memory of their own: the next update frees the array."""
    return np.array(_plain(leaf))


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> Any:
    """Keys as they are stored, the other arrays as they are."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _plain_abstract(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    stored = jax.eval_shape(_plain, leaf)
    return jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=leaf.sharding)


def _typed(leaf: jax.Array, abstract: jax.ShapeDtypeStruct) -> jax.Array:
    if not _is_key(abstract):
        return leaf
    found = []  # `key_impl` takes arrays and tracers only
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), abstract)
    return jax.random.wrap_key_data(leaf, impl=found[0])


def _raised_anyway(record: logging.LogRecord) -> bool:
    """Drops the pages that orbax logs, thread by thread, of a failed save that `wait` raises."""
    return "raised an exception" not in record.getMessage() and not record.exc_info


@functools.cache
def _leave_abandoned_unreported() -> None:
    """Keeps quiet about reads and writes that orbax leaves in flight when one of many fails.

    Each of them reports its own failure, or a closed event loop, pages of them and possibly much
    later; the failure itself is raised in the ordinary way.
    """
    before = sys.unraisablehook

    def hook(unraisable):
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and "Event loop is closed" in str(error)):
            before(unraisable)

    def not_abandoned(record):
        return "async_deserialize" not in record.getMessage()

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(not_abandoned)
    logging.getLogger("absl").addFilter(_raised_anyway)


def list_steps(folder: Path) -> list[Path]:
    """The complete checkpoints of a folder, ascending.

    Half-written ones have other names; in a bucket, where nothing is renamed at once, they lack the
    file that orbax writes last.
    """
    if not folder.is_dir():
        return []
    found = (p for p in folder.iterdir() if p.name.isdigit())
    if is_remote(folder):
        found = (p for p in found if (p / "commit_success.txt").exists())
    return sorted(found, key=lambda p: int(p.name))


def best_step(folder: Path, metric: str) -> Path:
    """The checkpoint with the best saved metric.

    Raises:
      FileNotFoundError: none was saved at an evaluation.
    """
    ranked = _ranked(list_steps(folder), metric)
    if not ranked:
        raise FileNotFoundError(f"no checkpoint in {folder} was saved with a {metric!r}")
    return ranked[0]


def _ranked(steps: Iterable[Path], metric: str) -> list[Path]:
    """Those saved with the metric, the best first, of equals the latest."""
    scored = []
    for path in steps:
        try:
            metrics = read_meta(path)["metrics"]
        except Exception:  # damaged: told when it is to be restored
            continue
        if metric in metrics:
            scored.append((best_sign(metric) * metrics[metric], int(path.name), path))
    return [path for *_, path in sorted(scored, reverse=True)]


def best_sign(metric: str) -> int:
    """-1 where lower is better."""
    return -1 if metric.endswith("loss") else 1


def read_meta(path: Path) -> dict[str, Any]:
    """The JSON values saved with a checkpoint.

    Raises:
      ValueError: they are not what was saved.
    """
    with _context():
        meta = ocp.load_checkpointables(path, {"meta": None})["meta"]
    if meta["crc32"] != _crc32(meta["content"]):
        raise ValueError("the metadata do not match their checksum")
    return meta["content"]


def _crc32(values: Any) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def _context() -> ocp.Context:
    """Orbax's settings: `meta` as readable JSON, not as arrays; each process acts for itself."""
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="meta")
    context = ocp.Context()
    context.checkpointables.registry = registry
    if jax.process_count() > 1:
        me = jax.process_index()
        context.multiprocessing.primary_host = me
        context.multiprocessing.active_processes = {me}
        context.multiprocessing.barrier_sync_key_prefix = f"process{me}"
    return context


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return (str(error) or type(error).__name__).splitlines()[0][:300]


def own(tree: Any) -> Any:
    """The copy of a replicated tree that this process has on its first device.

    Raises:
      ValueError: an array is spread over several processes.
    """
    if jax.process_count() == 1:
        return tree

    def copy(path, x):
        if not x.is_fully_replicated:
            raise ValueError(
                f"{jax.tree_util.keystr(path)} is spread over the processes: replicate it, or save "
                "it with orbax directly"
            )
        return x.addressable_data(0)

    return jax.tree_util.tree_map_with_path(copy, tree)


def structure(tree: Any) -> str:
    """A text that two trees share if one can be restored into the other."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    parts = (f"{jax.tree_util.keystr(path)}:{x.dtype}{list(x.shape)}" for path, x in leaves)
    return re.sub(r"\s", "", "; ".join(parts))


def _like_checksum(tree: Any) -> jax.ShapeDtypeStruct:
    sharding = next((x.sharding for x in jax.tree.leaves(tree)), None)
    if isinstance(sharding, jax.sharding.NamedSharding):
        sharding = jax.sharding.NamedSharding(sharding.mesh, jax.P())
    return jax.ShapeDtypeStruct((), jnp.uint32, sharding=sharding)


@jax.jit
def checksum(tree: Any) -> jax.Array:
    """A 32-bit sum over the bits of all leaves: exact, whatever the sharding or the order.

    Each word is multiplied by an odd number that depends on its leaf's name and its place, a
    bijection modulo 2^32: one changed word always changes the sum. Names, not positions, so that
    the same arrays restored as plain dicts have the same sum.
    """
    total = jnp.zeros((), jnp.uint32)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        words = _words(leaf)
        place = jax.lax.iota(jnp.uint32, words.size) + jnp.uint32(zlib.crc32(name.encode()))
        odd = place * jnp.uint32(0x9E3779B1) * jnp.uint32(2) + jnp.uint32(1)
        total = total + jnp.sum(words * odd, dtype=jnp.uint32)
    return total


def _words(leaf: jax.Array) -> jax.Array:
    """The bits of an array as a flat array of uint32."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32).reshape(-1)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32).reshape(-1)


def finite(trees: Iterable[Any]) -> jax.Array:
    """Whether every floating-point number in the trees is finite, as an array."""
    leaves = [x for x in jax.tree.leaves(trees) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(x).all() for x in leaves] or [jnp.array(True)]).all()
