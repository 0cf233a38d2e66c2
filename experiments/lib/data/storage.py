"""Where prepared data sets lie, and how one is opened: TFDS without TensorFlow.

Only array_record files are read: TFDS reads its older tfrecord files through TensorFlow. The
digits are made on first use, offline; every other set is prepared once by whoever wants it. A set
in a bucket is copied to this machine when it is first opened, for array_record reads local files
only.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.lib.runs.errors import ExperimentError
from experiments.lib.runs.paths import as_path, is_remote

DATA_DIR_VARIABLE = "FLATJAX_DATA_DIR"
CACHE_DIR_VARIABLE = "FLATJAX_CACHE_DIR"


class DatasetNotPrepared(ExperimentError, FileNotFoundError):
    """The data set is not in the data directory; the message says in one line what to run."""


def data_directory(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns `data_dir`, else $FLATJAX_DATA_DIR, else `data` under the current directory."""
    return as_path(data_dir or os.environ.get(DATA_DIR_VARIABLE) or "data").expanduser()


def open_builder(name: str, data_dir: str | os.PathLike[str] | None = None) -> Any:
    """Opens a prepared TFDS data set, making the digits if they are the ones asked for.

    Args:
      name: a TFDS name as its folder is called, `cifar10` or `group/config`; `name:1.0.0` picks a
        version, else the newest prepared one is taken.
      data_dir: see `data_directory`.

    Returns:
      A read-only `tfds.core.DatasetBuilder`.

    Raises:
      DatasetNotPrepared: the set is absent or not in array_record files.
    """
    directory = data_directory(data_dir)
    name, _, version = name.partition(":")
    place = directory
    if is_remote(directory):
        directory, version = _copied(directory, name, version)
    if name == "digits":
        _ensure_digits(directory)
    import tensorflow_datasets as tfds

    # PIL decodes as well as the OpenCV that TFDS would rather have.
    logging.getLogger("absl").addFilter(_not_about_opencv)
    folder = _version_folder(directory / name, version)
    if folder is None:
        raise DatasetNotPrepared(_how_to_prepare(name, place, "is not prepared"))
    builder = tfds.builder_from_directory(folder)
    if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        found = f"is prepared as {builder.info.file_format.value}, which needs TensorFlow to read,"
        raise DatasetNotPrepared(_how_to_prepare(name, place, found))
    return builder


def cache_directory() -> Path:
    """Returns $FLATJAX_CACHE_DIR, else `.cache/flatjax` in the home directory."""
    given = os.environ.get(CACHE_DIR_VARIABLE)
    return Path(given).expanduser() if given else Path.home() / ".cache" / "flatjax"


def _copied(bucket: Any, name: str, version: str) -> tuple[Path, str]:
    """A local data directory with the bucket's set in it, if it has it; and which version that is.

    A version is copied once: data sets do not change without a new one.
    """
    directory = cache_directory() / "data" / bucket.as_posix().replace("://", "-").replace("/", "-")
    found = _version_folder(bucket / name, version)
    if found is None:
        return directory, version
    place = directory / name / found.name
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)

        def copy(work: Path) -> None:
            for file in found.iterdir():
                with file.open("rb") as source, (work / file.name).open("wb") as target:
                    shutil.copyfileobj(source, target, 2**24)

        appear(place, place.parent, copy)
    return directory, found.name


def _version_folder(folder: Path, version: str) -> Path | None:
    """The folder of one version, the newest unless named; unfinished preparations do not count."""
    ready = [path.parent for path in folder.glob("*/dataset_info.json")]
    named = {tuple(map(int, p.name.split("."))): p for p in ready if _is_version(p.name)}
    if version:
        return next((p for p in named.values() if p.name == version), None)
    return named[max(named)] if named else None


def _is_version(text: str) -> bool:
    return all(part.isdigit() for part in text.split("."))


def _not_about_opencv(record: logging.LogRecord) -> bool:
    return "OpenCV is not installed" not in record.getMessage()


def _how_to_prepare(name: str, directory: Path, found: str) -> str:
    if name == "fashion_mnist" and found == "is not prepared":
        command = f"python -m experiments data fashion_mnist --data_dir {str(directory)!r}"
        return f"data set {name!r} {found} in {str(directory)!r}; run once: {command}"
    call = (
        f"import tensorflow_datasets as t; t.builder('{name}', data_dir='{directory}', "
        "file_format='array_record').download_and_prepare()"
    )
    return (
        f"data set {name!r} {found} in {str(directory)!r}; run once, where tensorflow is "
        f'installed: python -c "{call}"'
    )


def _ensure_digits(directory: Path) -> None:
    """Makes the digits' files unless they are there."""
    final = directory / "digits" / "1.0.0"
    if not final.exists():
        directory.mkdir(parents=True, exist_ok=True)
        appear(final, directory, _build_digits, "digits/1.0.0")


def appear(final: Path, directory: Path, make: Callable[[Path], None], made: str = ".") -> None:
    """Makes a folder unless it is there; safe against kills and against company.

    The files are made in a temporary folder in `directory` and moved to their place by one rename,
    so that no reader ever sees half a data set. A lock spares a crowd the work, and tells its
    holder that every temporary folder left behind belongs to a killed process.

    Args:
      final: the folder.
      directory: for the temporary folder; on the same file system.
      make: makes the files, given the temporary folder.
      made: where in the temporary folder what becomes `final` is then found.
    """
    name = final.parent.name
    with _locked(directory / f".{name}.lock") as alone:
        if final.exists():
            return
        if alone:
            for left_behind in directory.glob(f".{name}-*.tmp"):
                shutil.rmtree(left_behind, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".{name}-", suffix=".tmp", dir=directory))
        try:
            make(work)
            final.parent.mkdir(exist_ok=True)
            os.rename(work / made, final)
        except OSError:
            if not final.exists():  # else another process won the race without the lock
                raise
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _build_digits(directory: Path) -> None:
    import tensorflow_datasets as tfds

    from experiments.lib.data.digits import Digits

    tfds.disable_progress_bar()
    # TFDS prints where it writes; the temporary folder would only puzzle the reader.
    with contextlib.redirect_stdout(io.StringIO()):
        Digits(data_dir=directory, file_format="array_record").download_and_prepare()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Holds an exclusive lock on `path`, freed by the system when the holder dies.

    Yields whether there is a lock at all: some systems and network file systems have none.
    """
    with open(path, "a") as handle:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        except (ImportError, OSError):
            yield False
        else:
            yield True
