"""The audit trail's file: one message per line, the owner's alone, with a bounded number of old files."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from pathlib import Path

from daemon.log import event


class TrailFile:
    """The trail on disk; old files are renamed ``.1``, ``.2`` and so on.

    Parameters
    ----------
    path
        The newest file.
    maximum_bytes
        Size at which a new file begins.
    keep
        How many old files stay.
    """

    def __init__(self, path: Path, maximum_bytes: int, keep: int) -> None:
        self._path, self._maximum, self._keep = path, maximum_bytes, keep
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._descriptor = self._open()

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, message: str) -> None:
        """Append one message; a disk that cannot take it is an error in the log, not of the caller."""
        line = message.encode() + b"\n"
        with self._lock:
            try:
                size = os.fstat(self._descriptor).st_size
                if size and size + len(line) > self._maximum:
                    self._rotate()
                os.write(self._descriptor, line)
            except OSError as error:
                event("audit trail not written", level=logging.ERROR, reason=error.strerror)

    def _rotate(self) -> None:
        for number in range(self._keep - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self._path}.{number}").replace(f"{self._path}.{number + 1}")
        self._path.replace(f"{self._path}.1")
        os.close(self._descriptor)
        self._descriptor = self._open()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            os.close(self._descriptor)
