"""Received bytes on disk, exactly as they came: ``.part`` → fsync → name → fsync of the directory.

Layout below the root::

    <2 hex>/<study>/<series>/<sop>.dcm        an instance; <sop>.v2.dcm when other bytes came later
    results/<2 hex>/<study>/<revision>/…      what we made of the study
    tmp/….part                                an instance that still arrives
    journal/….segment                         small instances before they are files of their own

A UID that is no valid UID (PS3.5 9.1) is replaced by a hash of it, so that no peer chooses a path.
The File Meta group is ours (PS3.10 7.1); the data set follows it byte for byte as received.
"""

import contextlib
import fcntl
import os
import re
import shutil
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from daemon.errors import DiskReserveError, SpoolError
from daemon.files import create, disk_error, flush, part_name, sync_directory, write_new
from daemon.part import Part, StoredInstance, study_prefix, uid_name
from daemon.part10 import read_file_header

__all__ = ["Part", "Spool", "StoredInstance"]

# Directories that are remembered as made: those of the studies that arrive at one time.
_MADE = 256
# With this much above the reserve the free space is asked for only so often: it cannot be filled meanwhile.
_PLENTY_BYTES = 4_000_000_000
_LOOK_S = 0.2


class Spool:
    """A directory of received instances and of our results.

    Parameters
    ----------
    root
        Made when it does not exist, with mode 0700.
    reserve_bytes
        Free space below which nothing more is taken.
    """

    def __init__(self, root: Path, reserve_bytes: int = 0) -> None:
        self.root = root
        self.reserve_bytes = reserve_bytes
        self._lock = threading.Lock()
        # Directories whose own entry is known to be durable; bounded, it only saves repeated fsyncs.
        self._durable: set[Path] = set()
        self._made: set[str] = set()
        self._free_bytes, self._looked_at = 0, 0.0
        for directory in (root, root / "tmp"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, relative: str) -> Path:
        """Return the absolute path of an indexed instance or result."""
        return self.root / relative

    def free_bytes(self) -> int:
        """Return the free space of the spool's disk."""
        return shutil.disk_usage(self.root).free

    def has_room(self, size_bytes: int) -> bool:
        """Whether so much can be written above the reserve."""
        return self.free_bytes() - self.reserve_bytes > size_bytes

    def check_reserve(self) -> None:
        """Make sure that the disk is above its reserve.

        Raises
        ------
        DiskReserveError
            It is not: nothing more is taken until space is freed.
        """
        now = time.monotonic()
        if self._free_bytes - self.reserve_bytes > _PLENTY_BYTES and now - self._looked_at < _LOOK_S:
            return
        self._free_bytes, self._looked_at = self.free_bytes(), now
        if self._free_bytes < self.reserve_bytes:
            raise DiskReserveError("the spool's disk is below its reserve: free space on it")

    def begin(
        self, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, calling_ae: str
    ) -> Part:
        """Begin an instance whose data set bytes follow.

        Parameters
        ----------
        sop_class_uid, sop_instance_uid, transfer_syntax_uid
            From the C-STORE request and its presentation context; they go into the File Meta group.
        calling_ae
            AE title of the sender, kept in the File Meta group.

        Raises
        ------
        DiskReserveError
            The disk is below its reserve.
        """
        self.check_reserve()
        return Part(self, sop_class_uid, sop_instance_uid, transfer_syntax_uid, calling_ae)

    def clean(self) -> int:
        """Remove what interrupted receptions left in ``tmp``; call it once, before receiving.

        Returns
        -------
        int
            How many were removed. One that another process still writes is locked, and stays.
        """
        started = time.time()
        removed = 0
        for part in (self.root / "tmp").iterdir():
            if part.stat().st_mtime > started:
                continue
            with part.open("rb") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    continue
                part.unlink(missing_ok=True)
                removed += 1
        return removed

    def studies(self) -> Iterator[Path]:
        """Yield the directory of each study, named by its UID or by a hash of what is none."""
        yield from self.root.glob("[0-9a-f][0-9a-f]/*")

    def scan(self, directory: Path, known: Collection[str] = ()) -> Iterator[StoredInstance]:
        """Yield every instance of a study's directory whose relative path is not in ``known``.

        Files that cannot be read as an instance are passed over.
        """
        for file in sorted(directory.glob("*/*.dcm")):
            relative = str(file.relative_to(self.root))
            if relative not in known:
                try:
                    yield self._read(file, relative)
                except SpoolError:
                    continue

    def results_dir(self, study: str) -> Path:
        """Return the folder of everything that was made of a study."""
        return self.root / "results" / study_prefix(study) / uid_name(study)

    def write_result(self, study: str, revision: int, name: str, data: bytes) -> str:
        """Write one result of a study revision durably.

        Returns
        -------
        str
            Its path relative to the root. The same content again changes nothing.

        Raises
        ------
        SpoolError
            Another content was written under this name: one UID has one content.
        """
        directory = self.results_dir(study) / str(revision)
        target = directory / Path(name).name
        part = self.root / "tmp" / part_name()
        try:
            with create(part) as stream:
                stream.write(data)
                flush(stream)
                if not self.place(part, target) and target.read_bytes() != data:
                    raise SpoolError("a result of this name exists with another content")
        except OSError as error:
            raise disk_error(error) from error
        finally:
            part.unlink(missing_ok=True)
        return str(target.relative_to(self.root))

    def place(self, part: Path, target: Path, *, durable: bool = True) -> bool:
        """Give a finished part its name, durably unless said otherwise, and never over another file.

        Returns
        -------
        bool
            False when the name is taken. The part keeps its own name in ``tmp`` in either case.
        """
        make = self.make_durable if durable else self._make
        make(target.parent)
        try:
            # A link fails when the name is taken, a rename would replace it: two associations that
            # store the same instance at once cannot hurt each other.
            os.link(part, target)
        except FileExistsError:
            return False
        except FileNotFoundError:
            # Pruning, here or on another host, may have removed the empty directory.
            with self._lock:
                self._durable.clear()
                self._made.clear()
            make(target.parent)
            os.link(part, target)
        if durable:
            sync_directory(target.parent)
        return True

    def remove_empty(self, study: str) -> None:
        """Remove what pruning left of a study's directories."""
        for top in (self.root / study_prefix(study) / uid_name(study), self.results_dir(study)):
            for directory in sorted(top.rglob("*"), reverse=True):
                with contextlib.suppress(OSError):
                    directory.rmdir()
            with contextlib.suppress(OSError):
                top.rmdir()

    def place_new(self, relative: str, pieces: list[memoryview]) -> float | None:
        """Make a file that has its name from its first moment on; the caller sees to its durability.

        Returns
        -------
        float or None
            When it was made; None when the name is taken, or the file system knows no files without
            a name.

        Raises
        ------
        SpoolError
            The disk is full or failed.
        """
        directory, _, _ = relative.rpartition("/")
        try:
            if directory not in self._made:
                self._make(self.root / directory)
            return write_new(str(self.root), relative, pieces)
        except FileNotFoundError:
            # Pruning may have removed the empty directory.
            with self._lock:
                self._made.clear()
            return None
        except OSError as error:
            raise disk_error(error) from error

    def _make(self, directory: Path) -> None:
        """Create a directory below the root."""
        above = self.root
        relative = directory.relative_to(self.root)
        for name in relative.parts:
            above /= name
            above.mkdir(mode=0o700, exist_ok=True)
        with self._lock:
            if len(self._made) > _MADE:
                self._made.clear()
            self._made.add(str(relative))

    def make_durable(self, directory: Path) -> None:
        """Create a directory below the root and make its entry, and those above it, durable."""
        with self._lock:
            if directory in self._durable:
                return
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        above = directory
        while above != self.root:
            above.chmod(0o700)
            above = above.parent
            sync_directory(above)
        with self._lock:
            if len(self._durable) > _MADE:
                self._durable.clear()
            self._durable.add(directory)

    def _read(self, file: Path, relative: str) -> StoredInstance:
        header, _ = read_file_header(file)
        version = re.fullmatch(r".*\.v(\d+)\.dcm", file.name)
        stat = file.stat()
        return StoredInstance(
            study_instance_uid=header.study_instance_uid,
            series_instance_uid=header.series_instance_uid,
            sop_instance_uid=header.sop_instance_uid,
            sop_class_uid=header.sop_class_uid,
            transfer_syntax_uid=header.transfer_syntax_uid,
            path=relative,
            size_bytes=stat.st_size,
            received_at=stat.st_mtime,
            calling_ae=header.calling_ae,
            version=int(version.group(1)) if version else 1,
        )
