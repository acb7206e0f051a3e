"""What the page shows of a scored series: its heat maps and outlines, one zip file per frame group.

Written once when a revision is scored, so that the page needs neither model nor GPU. Layout below
``data_dir/views``::

    <2 hex>/<study>/<revision>/<group key>.zip    view.json, and <frame>.png: the score × 255
    <2 hex>/<study>/<revision>/refusals.json      [[SOP Instance UID, reason], …]

UIDs, numbers and shapes; no patient data beyond what a shape is. A view can be lost without harm:
``daemon retry`` makes it again.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adapters.slices import Normalisation
from daemon.log import event
from daemon.outline import outlines
from daemon.part import study_prefix, uid_name

if TYPE_CHECKING:  # the page reads views without what findings bring along
    from daemon.findings import Finding
    from daemon.results import Analysis
    from daemon.study import Refusal

FORMAT = 1
# The model's patches are much coarser than this; a larger map would only be a larger file.
_MAP_PX = 256
_KEPT = 16
_FIXED_DATE = (1980, 1, 1, 0, 0, 0)


class Views:
    """The folder of views.

    Parameters
    ----------
    root
        Made when the first view is written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._read: dict[tuple[str, int], dict[str, Any]] = {}

    def folder(self, study: str, revision: int) -> Path:
        """Where the views of a study revision are."""
        return self.root / study_prefix(study) / uid_name(study) / str(revision)

    def write(
        self,
        study: str,
        revision: int,
        analysis: Analysis,
        maps: Sequence[NDArray[np.float32]],
        normalisation: Normalisation,
        spool: Path,
    ) -> None:
        """Write the view of one frame group, replacing one of an interrupted attempt.

        Parameters
        ----------
        study, revision
            Of the work.
        analysis
            What the bundle said.
        maps
            (rows, columns) float32 in [0, 1] per frame, on the source grid.
        normalisation
            Of the bundle: the page shows the pixels as the model saw them.
        spool
            Frames' paths are written relative to it.
        """
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            _add(archive, "view.json", json.dumps(_view(analysis, normalisation, spool)).encode())
            for number, score in enumerate(analysis.slice_scores):
                if score is not None:
                    _add(archive, f"{number}.png", _map_png(maps[number]))
        self._replace(self.folder(study, revision) / f"{analysis.key}.zip", content.getvalue())

    def write_refusals(self, study: str, revision: int, refusals: Iterable[Refusal]) -> None:
        """Write which instance was not scored, and why."""
        plain = [[refusal.sop_instance_uid, refusal.reason] for refusal in refusals]
        self._replace(self.folder(study, revision) / "refusals.json", json.dumps(plain).encode())

    def read(self, study: str, revision: int, key: str) -> dict[str, Any] | None:
        """The ``view.json`` of one frame group; None if there is none (any more)."""
        try:
            path = self.folder(study, revision) / f"{key}.zip"
            stamp = path.stat().st_mtime_ns if _is_key(key) else 0
        except OSError:
            return None
        place = (str(path), stamp)
        if place not in self._read:
            content = self._member(study, revision, key, "view.json")
            if content is None:
                return None
            # Every picture of a series asks for it again; few series are looked at at a time.
            while len(self._read) >= _KEPT:
                self._read.pop(next(iter(self._read)), None)
            self._read[place] = json.loads(content)
        return self._read.get(place)

    def read_map(self, study: str, revision: int, key: str, frame: int) -> bytes | None:
        """The heat map of one frame as an 8-bit grey PNG; None if the frame was not scored."""
        return self._member(study, revision, key, f"{frame}.png")

    def refusals(self, study: str, revision: int) -> list[tuple[str, str]]:
        """(SOP Instance UID, reason) of what was not scored; empty if it is not known."""
        try:
            plain = json.loads((self.folder(study, revision) / "refusals.json").read_bytes())
        except (OSError, ValueError):
            return []
        return [(uid, reason) for uid, reason in plain]

    def keep_only(self, studies: Iterable[str]) -> int:
        """Remove the views of every other study; returns how many studies lost theirs."""
        kept = {uid_name(study) for study in studies}
        gone = [path for path in self.root.glob("[0-9a-f][0-9a-f]/*") if path.name not in kept]
        for path in gone:
            shutil.rmtree(path, ignore_errors=True)
        return len(gone)

    def _member(self, study: str, revision: int, key: str, name: str) -> bytes | None:
        if not _is_key(key):
            return None
        try:
            with zipfile.ZipFile(self.folder(study, revision) / f"{key}.zip") as archive:
                return archive.read(name)
        except (OSError, KeyError, zipfile.BadZipFile):
            return None

    def _replace(self, path: Path, content: bytes) -> None:
        """A picture for the page is no reason to fail a study: a full disk costs the view alone."""
        part = path.with_name(f"{path.name}.part")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            event("view not written", level=logging.WARNING, error=type(error).__name__)


def _is_key(key: str) -> bool:
    """The key comes from an address that anyone can type: it must not become another path."""
    return len(key) == 16 and set(key) <= set("0123456789abcdef")


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, _FIXED_DATE), content)


def _map_png(score: NDArray[np.float32]) -> bytes:
    grey = np.round(np.clip(np.nan_to_num(score), 0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(grey)
    image.thumbnail((_MAP_PX, _MAP_PX), Image.Resampling.BOX)
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=3)
    return out.getvalue()


def _view(analysis: Analysis, normalisation: Normalisation, spool: Path) -> dict[str, Any]:
    group = analysis.group
    return {
        "format": FORMAT,
        "series_instance_uid": group.series_instance_uid,
        "group_key": group.key,
        "modality": group.modality,
        "body_part": group.body_part,
        "rows": group.rows,
        "columns": group.columns,
        "spacing_mm": group.pixel_spacing_mm,
        "notes": group.notes,
        "bundle_name": analysis.bundle_name,
        "bundle_version": analysis.bundle_version,
        "threshold": analysis.threshold,
        "normalisation": asdict(normalisation),
        "scored": analysis.scored,
        "total": analysis.total,
        "scores": [None if s is None else round(float(s), 4) for s in analysis.slice_scores],
        "frames": [
            [str(f.path.relative_to(spool)), f.frame_number, f.sop_instance_uid] for f in group.frames
        ],
        "findings": [_finding(finding) for finding in analysis.findings],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    z, y, x = finding.origin
    loops = {
        z + depth: [(loop + np.array([x, y])).astype(int).tolist() for loop in outlines(mask)]
        for depth, mask in enumerate(finding.mask)
        if mask.any()
    }
    return {
        "number": finding.number,
        "tracking_uid": finding.tracking_uid,
        "first": z,
        "last": z + finding.mask.shape[0] - 1,
        "largest": finding.largest_frame,
        "peak": round(finding.peak, 4),
        "mean": round(finding.mean, 4),
        "volume_mm3": finding.volume_mm3,
        "area_mm2": finding.area_mm2,
        "diameter_mm": finding.diameter_mm,
        "outlines": loops,
    }
