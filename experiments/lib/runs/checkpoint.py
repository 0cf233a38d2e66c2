"""Checkpoints through orbax: asynchronous, verified when read, the last and the best kept.

Every checkpoint carries a checksum of its arrays, computed on the device when it was saved. What
cannot be read back bit for bit is damaged: it is set aside and an older one is taken.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as writing
from orbax.checkpoint import v1 as ocp

from experiments.lib.runs import arrays, distributed, orbax_alone, seals, sound
from experiments.lib.runs.errors import CheckpointMismatch, CheckpointNotWritten
from experiments.lib.runs.paths import absolute, is_remote, remove_tree

FORMAT = 1
_UNWRITTEN = (OSError, ValueError, RuntimeError, BaseExceptionGroup)


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

    def __init__(self, folder: Path, *, keep_last: int = 2, primary: bool = True):
        """Nothing is opened or written until the first save.

        Args:
          folder: where they lie.
          keep_last: how many of the last are kept; the best is kept besides.
          primary: whether this process writes.
        """
        self.folder, self._keep_last = absolute(folder), keep_last
        self._primary = primary
        self._writer: Any = None
        self._thread: Any = None
        self._in_flight: Future[None] | None = None

    def save(
        self,
        step: int,
        state: Any,
        meta: Mapping[str, Any],
        *,
        score: float | None = None,
    ) -> None:
        """Starts saving; returns when the arrays are copied.

        Args:
          step: the step; not before the newest one, which is written anew if it is this one.
          state: a tree of arrays; of several processes, each must have them whole.
          meta: JSON values.
          score: the higher the better, such as a test accuracy; the best is kept.

        Raises:
          CheckpointNotWritten: this one could not be begun, or the one before not be finished.
        """
        score = score if score is not None and math.isfinite(score) else None
        described = dict(meta, format=FORMAT, step=step, score=score)
        described["structure"] = arrays.structure(state)
        check = arrays.checksum(arrays.own(state))
        state = jax.tree.map(arrays.copied, arrays.own(state)) if self._primary else None
        self._on_writer(lambda: self._save(step, {"state": state, "checksum": check}, described))

    def _save(self, step: int, state: Any, described: dict[str, Any]) -> None:
        self._finish()
        if self._writer is None:
            self._writer, self._thread = orbax_alone.writer(), ThreadPoolExecutor(1)
            self.folder.mkdir(parents=True, exist_ok=True)
            for unfinished in self.folder.glob("*.orbax-checkpoint-tmp*"):
                remove_tree(unfinished)
        state = {**state, "checksum": np.asarray(state["checksum"])}
        described["checksum"] = int(state["checksum"])  # so that the two belong together
        meta = {"crc32": _crc32(described), "content": described}
        args = writing.args
        items = args.Composite(state=args.StandardSave(state), meta=args.JsonSave(meta))
        # In a thread of ours, which can seal what is written; orbax's own could not.
        self._in_flight = self._thread.submit(self._write, self.folder / str(step), items)

    def _write(self, path: Path, items: Any) -> None:
        with orbax_alone.failures_unlogged():
            self._writer.save(path, items, force=True)
        seals.seal(path)

    def _finish(self) -> None:
        """Waits for the save in the background and removes the checkpoints it supersedes."""
        if self._in_flight is None:
            return
        saved, self._in_flight = self._in_flight, None
        saved.result()
        steps = list_steps(self.folder)
        kept = {*steps[-self._keep_last :], *_ranked(steps)[:1]}
        for path in steps:
            if path not in kept:
                remove_tree(path)

    def _on_writer(self, fn: Callable[[], None]) -> None:
        """Calls `fn` where checkpoints are written; every process gets its error, in one line."""

        def call():
            try:
                fn()
            except _UNWRITTEN as error:
                raise self._not_written(error) from error

        distributed.on_primary(call)

    def _not_written(self, error: BaseException) -> CheckpointNotWritten:
        last = next(reversed(list_steps(self.folder)), None)
        return CheckpointNotWritten(
            f"a checkpoint could not be written to {self.folder} ({sound.reason(error)}); "
            + (f"the last good one is {last}" if last else "there is none before it")
            + "; make room and run the same command to continue"
        )

    def restore(
        self,
        abstract: Any,
        *,
        check: Callable[[dict[str, Any]], None] = lambda meta: None,
    ) -> Restored | None:
        """Loads the newest sound checkpoint, setting damaged ones aside with a warning.

        Args:
          abstract: the tree to fill: `jax.ShapeDtypeStruct`s with shardings.
          check: given the JSON values of a checkpoint, raises ValueError if what belongs to it
            elsewhere is not as it was.

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
                found = self._read(path, abstract, check)
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

    def _read(self, path: Path, abstract: Any, check: Any) -> Restored:
        seals.check(path)
        meta = read_meta(path)
        if meta["step"] != int(path.name):
            raise ValueError(f"it was saved at step {meta['step']}")
        needed = arrays.structure(abstract)
        if meta["structure"] != needed:
            raise CheckpointMismatch(
                f"checkpoint {path} holds {meta['structure']}, and this run needs {needed}; it was "
                "written by other code: choose another folder"
            )
        check(meta)
        stored = jax.tree.map(arrays.plain_abstract, abstract)
        items = {"state": {"state": stored, "checksum": arrays.like_checksum(abstract)}}
        with orbax_alone.context():
            loaded = ocp.load_checkpointables(path, items)
        state = jax.tree.map(arrays.typed, loaded["state"]["state"], abstract)
        sums = {meta["checksum"], int(loaded["state"]["checksum"]), int(arrays.checksum(state))}
        if len(sums) > 1:
            raise ValueError("the arrays do not match their checksum")
        return Restored(int(path.name), state, meta)

    def _set_aside(self, path: Path, error: Exception, found: Restored | None) -> None:
        instead = f"{self.folder / str(found.step)}" if found else "the beginning: none is sound"
        place = self.folder.parent / "damaged" / path.name
        then = f"the run continues from {instead}"
        sound.warn(f"checkpoint {path}", sound.reason(error), place, then)
        if self._primary:
            sound.move(path, place)

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
        except _UNWRITTEN as error:
            raise self._not_written(error) from error
        finally:
            if self._writer is not None:
                self._thread.shutdown()
                self._writer.close()
            self._writer = self._thread = None


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


def best_step(folder: Path) -> Path:
    """The checkpoint with the best score.

    Raises:
      FileNotFoundError: none was saved with one.
    """
    ranked = _ranked(list_steps(folder))
    if not ranked:
        raise FileNotFoundError(f"no checkpoint in {folder} was saved with a score")
    return ranked[0]


def _ranked(steps: Iterable[Path]) -> list[Path]:
    """Those saved with a score, the best first, of equals the latest."""
    scored = []
    for path in steps:
        try:
            score = read_meta(path).get("score")
        except Exception:  # damaged: told when it is to be restored
            continue
        if score is not None:
            scored.append((score, int(path.name), path))
    return [path for *_, path in sorted(scored, reverse=True)]


def read_meta(path: Path) -> dict[str, Any]:
    """The JSON values saved with a checkpoint.

    Raises:
      ValueError: they are not what was saved.
    """
    with orbax_alone.context():
        meta = ocp.load_checkpointables(path, {"meta": None})["meta"]
    if meta["crc32"] != _crc32(meta["content"]):
        raise ValueError("the metadata do not match their checksum")
    return meta["content"]


def _crc32(values: Any) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())
