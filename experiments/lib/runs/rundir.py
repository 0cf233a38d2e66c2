"""A run's folder: its lock, `config.json` and `env.json`.

Of several joined processes the first one reads and writes them, and all must call alike: all see
what it sees, and a file that is written is there for all.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.lib.runs import distributed, sound
from experiments.lib.runs.errors import ConfigMismatch, Damaged, RunLocked
from experiments.lib.runs.identity import differences
from experiments.lib.runs.paths import is_remote, write_text

_PACKAGES = ("flatjax", "jax", "jaxlib", "optax", "flax", "orbax-checkpoint", "grain", "numpy")


def write_json(path: Path, value: Any) -> None:
    """Writes a file at once or not at all."""
    text = json.dumps(value, indent=2) + "\n"
    distributed.on_primary(lambda: write_text(path, text))


def read_json(path: Path, *, then: str | None = None, **fields: Any) -> Any:
    """Reads a JSON object, or None if there is no file.

    Args:
      path: the file.
      then: for what can be made again, what is done where it is damaged, such as "it is measured
        again": it is set aside with a warning, and counts as absent.
      **fields: what the object has, with the types of the values.

    Raises:
      Damaged: it holds no such object, and `then` is not given.
    """

    def read() -> Any:
        if then is not None:
            return sound.read(path, lambda path: sound.json_object(path, **fields), then)
        try:
            return sound.json_object(path, **fields) if path.exists() else None
        except ValueError as error:
            raise Damaged(
                f"{path} is damaged ({sound.reason(error)}), and nothing else tells what it held: "
                "delete it if you know that the folder is of this configuration, or choose another "
                "folder"
            ) from error

    return distributed.on_primary(read)


def writable(folder: Path) -> bool:
    """Whether this process may write in a folder; a finished run that it may not is only shown."""
    return is_remote(folder) or not folder.exists() or os.access(folder, os.W_OK)


@contextlib.contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Holds the folder for this run; the system frees it when the process dies.

    Of several joined processes the first one holds it.

    Args:
      folder: the folder, made if absent.
      shared: hold it beside others that do the same, and beside no other.

    Raises:
      RunLocked: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # There are no locks in a bucket: trust the user. Where nothing can be written nobody disturbs.
    if is_remote(folder) or not distributed.is_first() or not writable(folder):
        yield
        return
    with open(folder / ".lock", "a") as handle:
        try:
            import fcntl

            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunLocked(
                f"another process is running in {folder}; wait for it or choose another folder"
            ) from None
        except (ImportError, OSError):
            pass  # no locks on this system or file system: trust the user
        yield


def check_config(folder: Path, config: dict[str, Any], identity: dict[str, Any]) -> None:
    """Writes `config.json`, or compares with the one there.

    One of a run that failed before it left anything else, for want of data, say, gives way.

    Args:
      folder: the run's folder.
      config: the whole configuration.
      identity: the part of it that decides the result.

    Raises:
      ConfigMismatch: the folder holds a run with another identity.
    """
    found = read_json(folder / "config.json", config=dict, identity=dict)
    whole = {"config": config, "identity": identity}
    if found is not None:
        changes = differences(found["identity"], identity)
        if changes and not _only_begun(folder):
            raise ConfigMismatch(
                f"{folder} holds a run of another configuration ({'; '.join(changes)}); choose "
                "another folder with --out, or delete this one"
            )
    if found is None or (found != whole and writable(folder)):
        write_json(folder / "config.json", whole)


def _only_begun(folder: Path) -> bool:
    """Whether a run left no more than its start; in a bucket, where no lock tells, it is not so."""
    if is_remote(folder):
        return False
    start = {".lock", "config.json", "env.json"}
    return distributed.on_primary(lambda: {path.name for path in folder.iterdir()} <= start)


def record_environment(folder: Path) -> None:
    """Adds this start to `env.json`: versions, devices, command, revision of the code."""
    import jax

    if not writable(folder):
        return
    then = "the starts are counted anew"
    starts = (read_json(folder / "env.json", starts=list, then=then) or {"starts": []})["starts"]
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    starts.append(
        {
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": sys.argv,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "versions": versions,
            "backend": jax.default_backend(),
            "devices": [d.device_kind for d in jax.devices()],
            "processes": jax.process_count(),
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
            "git": _git_revision(),
        }
    )
    write_json(folder / "env.json", {"starts": starts})


def _git_revision() -> str | None:
    """The commit of this code, with `+` if the tree has changed; None outside a repository."""
    here = Path(__file__).resolve().parent
    try:
        commit = _git("rev-parse", "HEAD", cwd=here)
        changed = _git("status", "--porcelain", "--untracked-files=no", cwd=here)
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")


def _git(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=cwd, capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()
