"""The errors an experiment ends with on purpose: shown as one line, with an exit status."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator


class ExperimentError(Exception):
    """An error whose text says what to do; the command line shows it without a traceback."""

    exit_status = 1


class ConfigMismatch(ExperimentError):
    """The run's folder holds a run of another configuration."""


class BadData(ExperimentError, ValueError):
    """The data are not what their reader needs; the message says which and what to do."""


class BadNetwork(ExperimentError, ValueError):
    """A user's own network is not what the laboratory can train; the message says why."""


class RunLocked(ExperimentError):
    """Another process is working in the run's folder."""


class BadShare(ExperimentError):
    """The option `--share` has no meaning here; the message says what to pass."""

    exit_status = 2


class BadSeeds(ExperimentError):
    """There are no such seeds."""

    exit_status = 2


class CheckpointNotWritten(ExperimentError):
    """A checkpoint could not be written; those before it are sound."""


class DiskFull(ExperimentError):
    """There is no room for the run's records."""


class NotWritable(ExperimentError):
    """A file or folder of the run may not be written, or is none."""


class Damaged(ExperimentError):
    """A file is not what was written, and cannot be made again."""


class CheckpointMismatch(ExperimentError):
    """A checkpoint is sound but does not fit the state to be restored."""


class Preempted(ExperimentError):
    """A signal asked the run to stop; its state is saved, and the same command continues it.

    Attributes:
      exit_status: 75 (EX_TEMPFAIL, "try again later") after SIGTERM, 130 after an interrupt.
    """

    def __init__(self, message: str, exit_status: int = 75):
        super().__init__(message)
        self.exit_status = exit_status


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}


@contextlib.contextmanager
def refusals(folder: str | os.PathLike[str]) -> Iterator[None]:
    """What the disk refuses, as an error that says what to do.

    Args:
      folder: named where the system names no file.

    Raises:
      DiskFull: there is no room.
      NotWritable: it may not be written or read, or a file lies where a folder is needed.
    """
    try:
        yield
    except OSError as error:
        where = f"{error.filename or folder}: {error.strerror}"
        if error.errno in _FULL:
            raise DiskFull(f"{where}; make room and run the same command to continue") from error
        if error.errno in _REFUSED:
            raise NotWritable(
                f"{where}; change its permissions, or choose another folder with --out"
            ) from error
        raise
