"""Patch maps: what the model said of frames of a study whose revision is not closed yet.

A map on the patch grid is all that scoring needs the model for, and it is small (2 kB). It is kept
beside the results, so that slices are scored while their study still arrives, and so that scoring
which was interrupted goes on where it stopped. Layout below the spool's root::

    early/<2 hex>/<study>/<bundle version>/<hash of path and frame>

A map can be lost without harm; one that is damaged counts as lost. Numbers only, no patient data.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from daemon.errors import SpoolError
from daemon.files import create, part_name
from daemon.part import study_prefix, uid_name
from daemon.spool import Spool

if TYPE_CHECKING:
    from adapters.bundle import AdapterBundle
    from daemon.study import Frame

_DIGEST_BYTES = 16


class PatchMaps:
    """The known maps of one study.

    Parameters
    ----------
    spool
        Below whose root they are kept; hosts that share it share them.
    study
        Study Instance UID.
    """

    def __init__(self, spool: Spool, study: str) -> None:
        self._spool = spool
        self._folder = spool.root / "early" / study_prefix(study) / uid_name(study)

    def get(self, bundle: AdapterBundle, frame: Frame) -> NDArray[np.float32] | None:
        """Return the (grid, grid) float32 map that this bundle version made of a frame, or None."""
        name = self._name(frame)
        try:
            content = (self._folder / bundle.version / name).read_bytes()
        except OSError:
            return None
        grid = bundle.image_size_px // bundle.patch_px
        data = content[_DIGEST_BYTES:]
        if content[:_DIGEST_BYTES] != _digest(name, data) or len(data) != 4 * grid * grid:
            return None
        return np.frombuffer(data, dtype="<f4").reshape(grid, grid).astype(np.float32)

    def put(self, bundle: AdapterBundle, frame: Frame, patches: NDArray[np.float32]) -> None:
        """Keep the map of a frame; a disk that takes it not costs the repeat alone."""
        name = self._name(frame)
        folder = self._folder / bundle.version
        data = patches.astype("<f4").tobytes()
        part = self._spool.root / "tmp" / part_name()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with create(part) as stream:
                stream.write(_digest(name, data) + data)
            part.replace(folder / name)
        except (OSError, SpoolError):
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove the maps of the study: its revision is closed."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _name(self, frame: Frame) -> str:
        # The path names the instance's version as well: a changed instance has another one.
        path = frame.path.relative_to(self._spool.root)
        return hashlib.sha256(f"{path}\n{frame.frame_number}".encode()).hexdigest()[:32]


def _digest(name: str, data: bytes) -> bytes:
    return hashlib.sha256(name.encode() + data).digest()[:_DIGEST_BYTES]
