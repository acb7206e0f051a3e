"""An instance that arrives, and what it becomes: bytes in ``tmp``, then a named file."""

import contextlib
import functools
import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.files import create, disk_error, flush, part_name, sync_directory, write_all
from daemon.part10 import Header, file_meta, read_file_header
from daemon.uids import is_uid

if TYPE_CHECKING:
    from daemon.spool import Spool


@dataclass(frozen=True, slots=True)
class StoredInstance:
    """One instance on disk; ``path`` is relative to the spool's root.

    ``version`` is 1, or higher when other bytes came under the same UID; ``received_at`` is in
    seconds since the epoch.
    """

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    path: str
    size_bytes: int
    received_at: float
    calling_ae: str
    version: int = 1


class Part:
    """An instance that arrives: its bytes go to ``tmp`` until :meth:`commit` names it."""

    def __init__(
        self,
        spool: "Spool",
        sop_class_uid: str,
        sop_instance_uid: str,
        transfer_syntax_uid: str,
        calling_ae: str,
    ) -> None:
        self._spool = spool
        self.sop_class_uid = sop_class_uid
        self.sop_instance_uid = sop_instance_uid
        self.transfer_syntax_uid = transfer_syntax_uid
        self.calling_ae = calling_ae
        self.data_bytes = 0
        self._checked_bytes = 0
        self._path = spool.root / "tmp" / part_name()
        self._stream = create(self._path)
        meta = file_meta(sop_class_uid, sop_instance_uid, transfer_syntax_uid, calling_ae)
        self._offset = len(meta)
        self._stream.write(meta)

    def write(self, data: bytes) -> None:
        """Append bytes of the data set as they came.

        Raises
        ------
        DiskReserveError
            The disk is full, or below its reserve.
        SpoolError
            The disk failed.
        """
        self._count(len(data))
        try:
            self._stream.write(data)
        except OSError as error:
            raise disk_error(error) from error

    def write_pieces(self, pieces: list[memoryview]) -> None:
        """Append bytes of the data set that lie in pieces, without copying them together.

        Raises
        ------
        DiskReserveError
            The disk is full, or below its reserve.
        SpoolError
            The disk failed.
        """
        self._count(sum(map(len, pieces)))
        self._write_through(pieces)

    def _count(self, size_bytes: int) -> None:
        self.data_bytes += size_bytes
        if self.data_bytes - self._checked_bytes > _RESERVE_CHECK_BYTES:
            self._checked_bytes = self.data_bytes
            self._spool.check_reserve()

    def _write_through(self, pieces: list[memoryview]) -> None:
        try:
            self._stream.flush()
            write_all(self._stream.fileno(), pieces)
        except OSError as error:
            raise disk_error(error) from error

    def header(self) -> Header:
        """Read the UIDs from the data set received so far; nothing after them is parsed.

        Raises
        ------
        SpoolError
            It cannot be parsed, or the disk failed.
        """
        try:
            self._stream.flush()
        except OSError as error:
            raise disk_error(error) from error
        return read_file_header(self._path)[0]

    def commit(self, study: str, series: str, *, durable: bool = True) -> StoredInstance:
        """Make the instance durable under its name; the part is finished by it.

        The same bytes again give the instance that is there already. Other bytes under the same
        UID are kept beside it as a new version.

        Parameters
        ----------
        study, series
            UIDs from the data set.
        durable
            False when the bytes are durable elsewhere until the file system was synchronised.

        Raises
        ------
        DiskReserveError
            The disk is full.
        SpoolError
            The disk failed.
        """
        directory = self._spool.root / Path(instance_path(study, series, self.sop_instance_uid)).parent
        try:
            if durable:
                flush(self._stream)
            else:
                self._stream.flush()
            target, version = self._place(directory, durable)
            size_bytes = target.stat().st_size
            # What a rebuilt index would say; one that came again is no older than now.
            received_at = target.stat().st_mtime if self._path.samefile(target) else time.time()
        except OSError as error:
            raise disk_error(error) from error
        finally:
            self.discard()
        return StoredInstance(
            study_instance_uid=study,
            series_instance_uid=series,
            sop_instance_uid=self.sop_instance_uid,
            sop_class_uid=self.sop_class_uid,
            transfer_syntax_uid=self.transfer_syntax_uid,
            path=str(target.relative_to(self._spool.root)),
            size_bytes=size_bytes,
            received_at=received_at,
            calling_ae=self.calling_ae,
            version=version,
        )

    def discard(self) -> None:
        """Remove what was received, unless it was committed."""
        # On a full disk closing fails, too: what is buffered cannot be written, nor need it be.
        with contextlib.suppress(OSError):
            self._stream.close()
        self._path.unlink(missing_ok=True)

    def _place(self, directory: Path, durable: bool) -> tuple[Path, int]:
        """Link the part to the first free version, or find the version with these bytes."""
        version = 1
        while True:
            suffix = "" if version == 1 else f".v{version}"
            target = directory / f"{uid_name(self.sop_instance_uid)}{suffix}.dcm"
            if target.exists():
                header, offset = read_file_header(target)
                same_syntax = header.transfer_syntax_uid == self.transfer_syntax_uid
                if same_syntax and _same_bytes(self._path, self._offset, target, offset):
                    # The earlier writer may have died between its link and its fsync.
                    if durable:
                        self._spool.make_durable(directory)
                        sync_directory(directory)
                    return target, version
                version += 1
            elif self._spool.place(self._path, target, durable=durable):
                return target, version


# How often a large instance looks at the free space.
_RESERVE_CHECK_BYTES = 64 * 1024 * 1024
_COMPARED_BYTES = 1024 * 1024


def uid_name(uid: str) -> str:
    """Return the UID as a file name, or a hash of it when it is no valid UID (PS3.5 9.1)."""
    if is_uid(uid):
        return uid
    return f"h{hashlib.blake2b(uid.encode(), digest_size=16).hexdigest()}"


def instance_path(study: str, series: str, sop: str) -> str:
    """Return where the first version of an instance is, relative to the spool's root."""
    return f"{_series_directory(study, series)}/{uid_name(sop)}.dcm"


# The series that arrive at one time: a slice needs its own twice.
@functools.lru_cache(256)
def _series_directory(study: str, series: str) -> str:
    return f"{study_prefix(study)}/{uid_name(study)}/{uid_name(series)}"


def study_prefix(study: str) -> str:
    """Return two hex digits of the study, so that no directory gets too many entries."""
    return hashlib.blake2b(study.encode(), digest_size=1).hexdigest()


def _same_bytes(one: Path, one_offset: int, other: Path, other_offset: int) -> bool:
    """Whether two files are equal from an offset in each to their ends."""
    with one.open("rb") as first, other.open("rb") as second:
        first.seek(one_offset)
        second.seek(other_offset)
        while (piece := first.read(_COMPARED_BYTES)) == second.read(_COMPARED_BYTES):
            if not piece:
                return True
    return False
