"""A small disk of its own, that can be filled and emptied: a tmpfs, which only root may mount."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SmallDisk:
    """A mounted disk; anybody may write into its folder."""

    folder: Path

    @property
    def _filler(self) -> Path:
        return self.folder / "filler"

    def fill(self, leave_bytes: int = 0) -> None:
        """Take all room but this; the last page, too, if nothing is to be left."""
        space = os.statvfs(self.folder)
        size = max(0, space.f_bavail * space.f_frsize - leave_bytes)
        with self._filler.open("wb") as stream, suppress(OSError):
            os.posix_fallocate(stream.fileno(), 0, max(size, 1))

    def empty(self) -> None:
        """Give the room back."""
        self._filler.unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(size: str) -> Iterator[SmallDisk | None]:
    """Mount a disk for a while.

    Parameters
    ----------
    size
        As ``mount -o size=`` takes it.

    Yields
    ------
    SmallDisk or None
        None when nothing can be mounted here.
    """
    if os.getuid() != 0:
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="disk-"))
    folder.chmod(0o755)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0777", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
        yield None if done.returncode else SmallDisk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)
        folder.rmdir()
