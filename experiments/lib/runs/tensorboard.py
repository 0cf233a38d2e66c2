"""TensorBoard's events, written by the thread that has them.

The thread that tensorboardX has for it dies of a full disk in silence, and whoever puts more into
its queue then waits for ever.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path

FLUSHED_EVERY = 30.0
"""Seconds, for those who watch; `flush` comes besides."""


class Board:
    """A file of scalars."""

    def __init__(self, folder: Path, purge_step: int | None):
        """Begins a file in a folder, which is made if absent.

        Args:
          folder: of all starts of a run.
          purge_step: TensorBoard forgets what earlier files have at this step and later.
        """
        # pyrefly: ignore[missing-module-attribute]
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import RecordWriter
        from tensorboardX.summary import scalar

        folder.mkdir(parents=True, exist_ok=True)
        self._event, self._scalar = Event, scalar
        # In the order of the starts; two within a second are two files.
        seconds, rest = divmod(time.time_ns(), 10**9)
        name = f"events.out.tfevents.{seconds}.{socket.gethostname()}.{rest:09}"
        self._file = RecordWriter(str(folder / name))
        self._flushed = time.monotonic()
        self._write(file_version="brain.Event:2")
        if purge_step is not None:
            self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def scalar(self, tag: str, number: float, step: int) -> None:
        """Adds a number.

        Raises:
          OSError: there is no room; here, in `flush` or in `close`.
        """
        self._write(step=step, summary=self._scalar(tag, number))
        if time.monotonic() - self._flushed > FLUSHED_EVERY:
            self.flush()

    def _write(self, **content: object) -> None:
        self._file.write(self._event(wall_time=time.time(), **content).SerializeToString())

    def flush(self) -> None:
        """Brings all to disk."""
        self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
