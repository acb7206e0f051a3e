"""Files that survive a crash: created for us alone, flushed, and entered durably in their directory."""

import ctypes
import errno
import fcntl
import os
import uuid
from pathlib import Path
from typing import BinaryIO

from daemon.errors import DiskReserveError, SpoolError

# Of Linux; more pieces than this fail.
_IOV_MAX = 1024


def part_name() -> str:
    """Return a name in ``tmp`` that no other process takes."""
    return f"{uuid.uuid4().hex}.part"


def create(path: Path) -> BinaryIO:
    """Create a file for us alone, locked for as long as it is open."""
    try:
        stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        fcntl.flock(stream, fcntl.LOCK_EX)
    except OSError as error:
        raise disk_error(error) from error
    return stream


def flush(stream: BinaryIO) -> None:
    """Make a file's bytes durable."""
    stream.flush()
    os.fsync(stream.fileno())


def sync_directory(directory: Path) -> None:
    """Make a directory's entries durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, pieces: list[memoryview]) -> None:
    """Append pieces to a file with as few calls as possible."""
    for first in range(0, len(pieces), _IOV_MAX):
        some = pieces[first : first + _IOV_MAX]
        written = os.writev(descriptor, some)
        for piece in some:
            if written < len(piece):
                rest = piece[written:]
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                written = 0
            else:
                written -= len(piece)


def write_new(root: str, relative: str, pieces: list[memoryview]) -> float | None:
    """Write a file that has no name before it is complete, and never over another.

    Parameters
    ----------
    root, relative
        Its directory must be there.
    pieces
        Its content.

    Returns
    -------
    float or None
        When it was made; None when the name is taken or the file system cannot do this.
    """
    directory = f"{root}/{relative.rpartition('/')[0]}"
    try:
        descriptor = os.open(directory, os.O_TMPFILE | os.O_WRONLY, 0o600)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            return None
        raise
    try:
        write_all(descriptor, pieces)
        # With a directory's descriptor, and only then, Python follows the link to the nameless file.
        os.link(f"/proc/self/fd/{descriptor}", f"{root}/{relative}", src_dir_fd=0, follow_symlinks=True)
        return os.fstat(descriptor).st_mtime
    except FileExistsError:
        return None
    finally:
        os.close(descriptor)


def sync_file_system(directory: Path) -> None:
    """Make everything durable that was written to a directory's file system.

    Raises
    ------
    OSError
        Something could not be written (Linux tells so since 5.8).
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)


def disk_error(error: OSError) -> SpoolError:
    """Return the error of the spool that an error of the disk means."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskReserveError("the spool's disk is full: free space on it")
    return SpoolError(f"the spool cannot be written ({os.strerror(error.errno or 0)}): look at its disk")
