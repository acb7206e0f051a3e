"""CSV labels: which study, series, instance or file is normal or abnormal, and whose it is."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

from training.annotations import SiteImage
from training.cases import Label
from training.errors import AnnotationError
from training.site_dicom import Pseudonyms
from training.site_roots import Roots

Level = Literal["instance", "file", "series", "study"]

_ALIASES = {
    "studyinstanceuid": "study", "study_uid": "study", "study_instance_uid": "study",
    "seriesinstanceuid": "series", "series_uid": "series", "series_instance_uid": "series",
    "sopinstanceuid": "instance", "sop_instance_uid": "instance", "instance_uid": "instance",
    "filename": "file", "path": "file", "image": "file", "id": "file",
    "patientid": "patient", "patient_id": "patient", "class": "label", "diagnosis": "label",
}  # fmt: skip
_LABELS: dict[str, Label] = {
    "normal": "normal", "0": "normal", "good": "normal", "negative": "normal", "healthy": "normal",
    "abnormal": "abnormal", "1": "abnormal", "ungood": "abnormal", "positive": "abnormal",
    "anomaly": "abnormal",
}  # fmt: skip
_LIMIT_BYTES = 64 * 2**20


class Labels:
    """What the CSV files say, the most specific first: instance, file, series, study.

    Parameters
    ----------
    roots
        Of the site: a CSV names files of its own folder.

    Attributes
    ----------
    skipped
        (path, reason) of rows that can't be used.
    """

    def __init__(self, roots: Roots) -> None:
        self._prefix = roots.prefix
        self.skipped: list[tuple[str, str]] = []
        self._labels: dict[tuple[Level, str], set[Label]] = {}
        self._patients: dict[tuple[Level, str], str] = {}
        self._used: set[tuple[Level, str]] = set()
        self._ambiguous: set[str] = set()
        self._rows: dict[str, list[tuple[int, list[tuple[Level, str]]]]] = {}

    def read(self, file: Path, path: str, pseudonyms: Pseudonyms) -> None:
        """Read one CSV file.

        Parameters
        ----------
        file, path
            The file, and its path below the site folder.
        pseudonyms
            Hashes of the site.

        Raises
        ------
        AnnotationError
            It can't be read, or has none of the columns.
        """
        rows = _rows(file)
        columns = set(rows[0][1]) if rows else set()
        levels = [level for level in get_args(Level) if level in columns]
        if not levels:
            raise AnnotationError("the CSV needs a column study, series, instance or file; one row each")
        if not columns & {"label", "patient", "group"}:
            raise AnnotationError("the CSV needs a column label (normal or abnormal) or patient")
        unknown = []
        for line, row in rows:
            # The most specific column names what the row is about; the others only say where it belongs.
            level = next((name for name in levels if row.get(name)), None)
            if level is None:
                unknown.append(line)
                continue
            name = row[level].replace("\\", "/").removeprefix("./")
            name = self._prefix(path) + name if level == "file" else name
            self._rows.setdefault(path, []).append((line, [(level, name)]))
            patient = row.get("patient") or row.get("group") or ""
            if patient:
                self._patients[level, name] = pseudonyms.patient(patient)
            text = row.get("label", "").lower()
            if text and text not in _LABELS:
                unknown.append(line)
            elif text:
                self._labels.setdefault((level, name), set()).add(_LABELS[text])
        if unknown:
            self.skipped.append(
                (path, f"{_lines(unknown)}: names nothing, or a label that is neither normal nor abnormal")
            )

    def know(self, images: Iterable[SiteImage]) -> None:
        """Learn which file names are of several files, and so tell nothing, before labels are asked for."""
        files: dict[str, set[str]] = {}
        for image in images:
            for _, name in self._keys(image)[2:4]:
                files.setdefault(name, set()).add(image.path)
        self._ambiguous = {name for name, paths in files.items() if len(paths) > 1}

    def of(self, image: SiteImage) -> tuple[Level | None, set[Label], str]:
        """Return the level that labels an image, its labels (two if they contradict), and its patient."""
        level, labels, patient = None, set[Label](), ""
        for key in self._keys(image):
            if key[0] == "file" and key[1] != image.path and key[1] in self._ambiguous:
                continue
            if key in self._labels or key in self._patients:
                self._used.add(key)
            if not labels and key in self._labels:
                level, labels = key[0], self._labels[key]
            patient = patient or self._patients.get(key, "")
        return level, labels, patient

    def unused(self) -> Iterable[tuple[str, str]]:
        """Yield (path, reason) of files whose rows named no image, after every image was asked for."""
        for path, rows in self._rows.items():
            lost = [line for line, keys in rows if not any(key in self._used for key in keys)]
            if lost:
                yield path, f"{_lines(lost)}: names no image that is in the folder, or several"

    def _keys(self, image: SiteImage) -> list[tuple[Level, str]]:
        prefix, name = self._prefix(image.path), image.path.rsplit("/", 1)[-1]
        stem = name.removesuffix(".gz").rsplit(".", 1)[0]
        return [
            ("instance", image.key[0]), ("file", image.path), ("file", prefix + name),
            ("file", prefix + stem), ("series", image.series), ("study", image.study),
        ]  # fmt: skip


def _lines(lines: list[int]) -> str:
    return f"row {lines[0]}" if len(lines) == 1 else f"{len(lines)} rows, the first in line {lines[0]}"


def _rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    """(line, values by column) with the columns' usual names."""
    try:
        if file.stat().st_size > _LIMIT_BYTES:
            raise AnnotationError(f"the CSV is larger than {_LIMIT_BYTES // 2**20} MiB")
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AnnotationError("the CSV is not UTF-8 text; save it as CSV UTF-8") from error
    except OSError as error:
        raise AnnotationError("the file cannot be opened; look at its permissions") from error
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise AnnotationError(f"the CSV is damaged ({error})") from error
    if not lines:
        raise AnnotationError("the CSV is empty")
    names = [name.strip().lower() for name in lines[0]]
    names = [alias if (alias := _ALIASES.get(name, name)) not in names else name for name in names]
    return [
        (number, {name: value.strip() for name, value in zip(names, line, strict=False)})
        for number, line in enumerate(lines[1:], start=2)
        if any(line)
    ]
