"""A journal that a process left behind: what it holds gets its files and rows.

It was an earlier run of ours, or a host of the same spool that died. Looked for at the start and while the
node runs, since the instances were answered with Success; what fails is tried again.
"""

import contextlib
import fcntl
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from daemon.errors import DaemonError
from daemon.files import sync_file_system
from daemon.index import Index
from daemon.log import event
from daemon.part import Part, StoredInstance, instance_path
from daemon.part10 import file_meta
from daemon.reception.record import Record, read_segment
from daemon.spool import Spool

# Of the journal's folder in the spool.
JOURNAL = "journal"
# Instances that enter the index together.
_BATCH = 128
# A segment that is not ready after this long never will be.
_NEW_S = 600.0


class Replay:
    """Takes in the journals that no process holds.

    Parameters
    ----------
    spool, index
        Where their instances go.
    """

    def __init__(self, spool: Spool, index: Index) -> None:
        self._spool, self._index = spool, index
        # What could not be taken in yet.
        self._failed: set[Path] = set()

    def look(self) -> None:
        """Take in whatever no process holds."""
        directory = self._spool.root / JOURNAL
        self._failed = {path for path in left_behind(directory) if not self._try(path)}
        _remove_unfinished(directory)

    def _try(self, path: Path) -> bool:
        try:
            taken = self._take_in(path)
        except FileNotFoundError:
            # Another process was faster.
            return True
        except (OSError, DaemonError) as error:
            # Said once, though it is tried every few seconds.
            level = logging.DEBUG if path in self._failed else logging.ERROR
            reason = "a journal cannot be taken in yet: look at the disk and the database"
            event("journal", level=level, error=type(error).__name__, reason=reason)
            return False
        if taken:
            event("journal taken in", instances=taken)
        return True

    def _take_in(self, path: Path) -> int:
        with _unheld(path):
            stored = [store(self._spool, *found) for found in read_segment(path)]
            for first in range(0, len(stored), _BATCH):
                self._index.add_instances(stored[first : first + _BATCH], self._spool)
            sync_file_system(self._spool.root)
            path.unlink(missing_ok=True)
        return len(stored)


def left_behind(directory: Path) -> list[Path]:
    """Return the segments that no process holds: what they have may be missing in the index."""
    found = []
    for path in sorted(directory.glob("*.segment")):
        with contextlib.suppress(FileNotFoundError, BlockingIOError), _unheld(path):
            found.append(path)
    return found


@contextlib.contextmanager
def _unheld(path: Path) -> Iterator[None]:
    """Make sure that a segment's process is gone; whoever takes it in meanwhile does the same as we.

    Raises
    ------
    FileNotFoundError
        Another process has taken it in.
    BlockingIOError
        Its process holds it.
    """
    with path.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield


def _remove_unfinished(directory: Path) -> None:
    """Delete segments whose process ended before they were ready."""
    for path in directory.glob("*.new"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _NEW_S:
                path.unlink()


def store(spool: Spool, record: Record, data: memoryview | bytes) -> StoredInstance:
    """Make a file of a data set; it is durable when the file system was synchronised."""
    sop, syntax = record.sop_instance_uid, record.transfer_syntax_uid
    path = instance_path(record.study_instance_uid, record.series_instance_uid, sop)
    meta = file_meta(record.sop_class_uid, sop, syntax, record.calling_ae)
    received_at = spool.place_new(path, [memoryview(meta), memoryview(data)])
    if received_at is not None:
        return replace(record.stored(path, received_at), size_bytes=len(meta) + len(data))
    # The name is taken, by the same bytes or by others: the part knows what that means.
    part = Part(spool, record.sop_class_uid, sop, syntax, record.calling_ae)
    try:
        part.write_pieces([memoryview(data)])
        return part.commit(record.study_instance_uid, record.series_instance_uid, durable=False)
    finally:
        part.discard()
