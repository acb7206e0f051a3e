"""Adapter bundles as the page shows them; each file is read once."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters import registry
from adapters.bundle import load_bundle
from adapters.errors import AdapterError


@dataclass(frozen=True, slots=True)
class BundleLine:
    """What a person wants to know of a bundle, without its weights."""

    name: str
    version: str
    modality: str
    body_part: str
    backbone: str
    threshold: float
    slice_threshold: float
    normal_scores: NDArray[np.float32]
    provenance: dict[str, Any]
    in_use: bool
    served_before: bool
    report: bool


class Bundles:
    """The bundles of the data folder.

    Parameters
    ----------
    folder
        Of the bundles.
    reports
        Of the training reports, ``NAME-VERSION/report.html`` each.
    named
        ``model.bundle`` of the settings: a file or a name that is used whatever is promoted.
    """

    def __init__(self, folder: Path, reports: Path, named: str = "") -> None:
        self.folder, self._reports, self._named = folder, reports, named
        self._known: dict[tuple[str, int], BundleLine] = {}
        self._lock = threading.Lock()

    def lines(self) -> list[BundleLine]:
        """Every readable bundle, by name, the one in use first, then the newest file."""
        current, state = self._current(), self._history()
        found = []
        for path in sorted(self._files(), key=lambda p: -p.stat().st_mtime):
            line = self._line(path)
            if line is not None:
                found.append(self._fresh(line, current, state))
        return sorted(found, key=lambda line: (line.name, not line.in_use))

    def line(self, version: str) -> BundleLine | None:
        """The bundle of a version."""
        return next((line for line in self.lines() if line.version == version), None)

    def in_use(self) -> list[BundleLine]:
        """Those that serve now."""
        return [line for line in self.lines() if line.in_use]

    def report(self, line: BundleLine) -> Path:
        """Its training report; the file may not exist."""
        return self._reports / f"{line.name}-{line.version}" / "report.html"

    def _files(self) -> list[Path]:
        named = Path(self._named)
        extra = [named] if self._named and named.is_file() else []
        return [*self.folder.glob(f"*{registry.SUFFIX}"), *extra]

    def _current(self) -> dict[str, str]:
        try:
            return registry.current(self.folder) if self.folder.is_dir() else {}
        except AdapterError:
            return {}

    def _history(self) -> dict[str, list[str]]:
        try:
            return registry.history(self.folder) if self.folder.is_dir() else {}
        except AdapterError:
            return {}

    def _line(self, path: Path) -> BundleLine | None:
        key = (str(path), path.stat().st_mtime_ns)
        with self._lock:
            if key in self._known:
                return self._known[key]
        try:
            bundle = load_bundle(path)
        except AdapterError:
            return None
        line = BundleLine(
            name=bundle.name,
            version=bundle.version,
            modality=bundle.modality,
            body_part=bundle.body_part,
            backbone=str(bundle.backbone["model"]),
            threshold=bundle.threshold,
            slice_threshold=bundle.slice_threshold,
            normal_scores=bundle.normal_scores,
            provenance=dict(bundle.provenance),
            in_use=False,
            served_before=False,
            report=False,
        )
        with self._lock:
            self._known[key] = line
        return line

    def _fresh(self, line: BundleLine, current: dict[str, str], history: dict[str, list[str]]) -> BundleLine:
        from dataclasses import replace

        used = self._named in (line.name, "") and current.get(line.name) == line.version
        if self._named and Path(self._named).is_file():
            used = False
        return replace(
            line,
            in_use=used,
            served_before=used and len(history.get(line.name, [])) > 1,
            report=self.report(line).is_file(),
        )
