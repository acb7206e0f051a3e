"""The journal: small instances become durable by one direct write, and files of their own a little later.

A file per instance costs several flushes of the disk before Success. Here an instance and its
record are written behind the last one into a file that exists already, with O_DSYNC: one flush,
shared by whoever writes at the same time. When all that a segment holds lies in files that are
durable themselves, the segment begins anew.
"""

import fcntl
import mmap
import os
import threading
import uuid
from pathlib import Path

from daemon.files import disk_error, sync_directory
from daemon.reception.record import BLOCK, SEGMENT, Page, Record, blocks, header

SEGMENT_BYTES = 32 * 1024 * 1024
_MAXIMUM_SEGMENTS = 6


class Segment:
    """One file of the journal.

    Parameters
    ----------
    directory
        Of the journal.

    Raises
    ------
    OSError
        It cannot be made.
    """

    def __init__(self, directory: Path) -> None:
        # It gets its last name when it is locked: a process that starts takes in what is not.
        self.path = directory / f"{uuid.uuid4().hex}.new"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_DSYNC
        try:
            self._file = os.open(self.path, flags | os.O_DIRECT, 0o600)
        except OSError:
            # A file system in memory, or one that knows no direct writes.
            self.path.unlink(missing_ok=True)
            self._file = os.open(self.path, flags, 0o600)
        self.at = BLOCK
        # Written and not in a durable file of its own yet; counted by the journal.
        self.open_records = 0
        self._block = mmap.mmap(-1, BLOCK)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            # Blocks that were never written cost a second flush each.
            zeros = mmap.mmap(-1, 4 * 1024 * 1024)
            for at in range(0, SEGMENT_BYTES, len(zeros)):
                os.pwrite(self._file, zeros, at)
            self.begin_anew()
            self.path = self.path.rename(self.path.with_suffix(".segment"))
            sync_directory(directory)
        except OSError:
            self.remove()
            raise

    def begin_anew(self) -> None:
        """Forget every record."""
        self.generation = uuid.uuid4().hex
        self._block[:] = header(SEGMENT, {"generation": self.generation})
        if os.pwrite(self._file, self._block, 0) != BLOCK:
            raise OSError("short write")
        self.at = BLOCK

    def write(self, data: memoryview, at: int) -> None:
        """Write whole blocks durably."""
        if os.pwrite(self._file, data, at) != len(data):
            raise OSError("short write")

    def remove(self) -> None:
        """Delete it: nothing in it is needed."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Leave it on disk for the next start."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Journal:
    """The segments of this process.

    Parameters
    ----------
    directory
        Made when it does not exist, with mode 0700.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(mode=0o700, exist_ok=True)
        self._lock = threading.Lock()
        self._segments: list[Segment] = []
        self._free: list[Segment] = []
        self._active: Segment | None = None

    def grow(self) -> bool:
        """Make sure that a segment is free; returns whether one had to be made.

        Raises
        ------
        SpoolError
            The disk is full or failed.
        """
        with self._lock:
            if self._free or len(self._segments) >= _MAXIMUM_SEGMENTS:
                return False
        try:
            segment = Segment(self.directory)
        except OSError as error:
            raise disk_error(error) from error
        with self._lock:
            self._segments.append(segment)
            self._free.append(segment)
        return True

    @property
    def wants_more(self) -> bool:
        """Whether no segment is free, though there may be more."""
        with self._lock:
            return not self._free and len(self._segments) < _MAXIMUM_SEGMENTS

    def append(self, page: Page, record: Record) -> Segment | None:
        """Make an instance durable.

        Returns
        -------
        Segment or None
            Where it is; None when there is no room now, or its UIDs are too long for a header.

        Raises
        ------
        SpoolError
            The disk failed.
        """
        needed = blocks(page.used)
        with self._lock:
            segment = self._with_room(needed)
            if segment is None:
                return None
            at, generation = segment.at, segment.generation
            segment.at += needed
            segment.open_records += 1
        try:
            segment.write(page.sealed(record, generation), at)
        except ValueError:
            self.release(segment)
            return None
        except OSError as error:
            self.release(segment)
            raise disk_error(error) from error
        return segment

    def _with_room(self, needed: int) -> Segment | None:
        active = self._active
        if active is None or active.at + needed > SEGMENT_BYTES:
            self._active = self._free.pop() if self._free else None
        return self._active

    def release(self, segment: Segment) -> None:
        """Note that one of a segment's records has a file of its own, which may not be durable yet."""
        with self._lock:
            segment.open_records -= 1

    def finished(self, *, idle: bool) -> list[Segment]:
        """Return the segments whose records all have files; they take no more records.

        Parameters
        ----------
        idle
            Whether the one in use is to end, too, though it has room.
        """
        with self._lock:
            if idle and self._active is not None and self._active.at > BLOCK:
                self._active = None
            return [
                segment
                for segment in self._segments
                if segment is not self._active and segment.at > BLOCK and not segment.open_records
            ]

    def reuse(self, segment: Segment) -> None:
        """Let a segment begin anew: everything in it is durable elsewhere.

        Raises
        ------
        SpoolError
            The disk failed.
        """
        try:
            segment.begin_anew()
        except OSError as error:
            raise disk_error(error) from error
        with self._lock:
            self._free.append(segment)

    def close(self) -> None:
        """Delete the segments that nobody needs, and leave the others for the next start."""
        with self._lock:
            for segment in self._segments:
                if segment.at == BLOCK:
                    segment.remove()
                else:
                    segment.close()
            self._segments, self._free, self._active = [], [], None
