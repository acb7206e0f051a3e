"""Who a study is of, read from its first file when a signed-in person looks; nothing is stored."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset

from daemon.attributes import attributes
from daemon.errors import SpoolError

_TAGS = [
    "PatientName",
    "PatientID",
    "StudyDate",
    "StudyDescription",
    "Modality",
    "SeriesDescription",
    "SeriesNumber",
    "StationName",
    "BodyPartExamined",
    "SpecificCharacterSet",
]
_KEPT = 20_000


@dataclass(frozen=True, slots=True)
class Header:
    """What a person sees of a file's header; names are empty where the settings hide them."""

    patient_name: str = ""
    patient_id: str = ""
    study_date: str = ""
    study_description: str = ""
    modality: str = ""
    series_description: str = ""
    series_number: str = ""
    station: str = ""
    body_part: str = ""

    @property
    def patient(self) -> str:
        """Name and ID in one line."""
        return ", ".join(text for text in (self.patient_name, self.patient_id) if text)


class Patients:
    """Headers of files, kept in memory for a while.

    Parameters
    ----------
    root
        Of the spool.
    show
        False: names, IDs and descriptions stay hidden.
    """

    def __init__(self, root: Path, *, show: bool) -> None:
        self._root, self.show = root, show
        self._known: OrderedDict[str, Header] = OrderedDict()
        self._lock = threading.Lock()

    def header(self, path: str) -> Header:
        """What a person may see of this file, by its path in the spool."""
        with self._lock:
            if path in self._known:
                self._known.move_to_end(path)
                return self._known[path]
        header = self._read(self._root / path)
        with self._lock:
            self._known[path] = header
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return header

    def first(self, paths: Sequence[str]) -> Header:
        """Of the first file; empty if there is none."""
        return self.header(paths[0]) if paths else Header()

    def _read(self, path: Path) -> Header:
        try:
            with attributes(path, _TAGS) as ds:
                return self._shown(ds)
        except SpoolError:
            return Header()  # what is damaged, hostile or pruned has no header to show

    def _shown(self, ds: Dataset) -> Header:
        def text(keyword: str) -> str:
            try:
                return str(ds.get(keyword) or "")[:128]
            except Exception:  # a value that its reader chokes on is shown as absent
                return ""

        plain = Header(modality=text("Modality"), series_number=text("SeriesNumber"))
        if not self.show:
            return plain
        date = text("StudyDate")
        return Header(
            patient_name=text("PatientName").replace("^", " ").strip(),
            patient_id=text("PatientID"),
            study_date=f"{date[:4]}-{date[4:6]}-{date[6:8]}" if len(date) == 8 else date,
            study_description=text("StudyDescription"),
            modality=plain.modality,
            series_description=text("SeriesDescription"),
            series_number=plain.series_number,
            station=text("StationName"),
            body_part=text("BodyPartExamined"),
        )
