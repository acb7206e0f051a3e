"""Files and folders that somebody names on the command line, by study.

Apart from the model: who mistypes a path must not wait until torch is loaded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from pydicom import dcmread

from daemon.errors import StudyError
from daemon.study import Refusal


def find_studies(paths: Iterable[Path]) -> tuple[dict[str, list[Path]], list[Refusal]]:
    """Group files by study.

    Parameters
    ----------
    paths
        Files and folders; folders are searched through.

    Returns
    -------
    tuple
        Study Instance UID → files, and a refusal for each file that is no DICOM object of a study.

    Raises
    ------
    StudyError
        A path does not exist.
    """
    studies: dict[str, list[Path]] = defaultdict(list)
    refusals = []
    for path in paths:
        if not path.exists():
            raise StudyError(f"{path} does not exist")
        for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            try:
                header = dcmread(file, stop_before_pixels=True, specific_tags=["StudyInstanceUID"])
                studies[str(header.StudyInstanceUID)].append(file)
            except Exception:  # any reader's error means the same here: not a DICOM object of a study
                refusals.append(Refusal(file.name, "not a DICOM object with a Study Instance UID"))
    return dict(studies), refusals
