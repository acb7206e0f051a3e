"""Site data as cases: who, which images, which of them are normal or abnormal, and where the mask is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Label = Literal["normal", "abnormal"]


@dataclass(frozen=True, slots=True)
class Shot:
    """One annotated image: a slice, a frame or a picture.

    Parameters
    ----------
    key
        Tells it from every other of the site; no patient data (a hash, or a path below the site folder).
    label
        What the annotation says of it.
    load
        Reads and normalises the pixels: (rows, columns) float32 in [0, 1] on the source grid.
    mask
        (rows, columns) bool on the same grid, or None where the abnormal region is not outlined;
        always None for a normal shot.
    attributes
        Trivial facts that could give the label away, such as manufacturer, rows, window: for leakage checks.
    """

    key: str
    label: Label
    load: Callable[[], NDArray[np.float32]]
    mask: NDArray[np.bool_] | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Case:
    """One study of one patient with its annotated images.

    Parameters
    ----------
    key
        Of the study: a keyed hash or a folder name below the site folder.
    patient_key
        Cases with the same key never stand on both sides of a split; the case's own key if unknown.
    modality, body_part
        As in DICOM; "" if unknown.
    shots
        In order of position.
    unused
        Images of the case that are neither known normal nor outlined, and so are not used.
    sources
        What the labels came from: "SEG", "RTSTRUCT", "SR", "NIfTI", "PNG", "folder", "CSV".
    """

    key: str
    patient_key: str
    modality: str
    body_part: str
    shots: tuple[Shot, ...]
    unused: int = 0
    sources: tuple[str, ...] = ()

    @property
    def abnormal(self) -> bool:
        """True if any image of the case is abnormal."""
        return any(shot.label == "abnormal" for shot in self.shots)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was not used, and why; ``path`` is relative to the site folder."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class SiteData:
    """What was understood of a site folder."""

    cases: tuple[Case, ...]
    skipped: tuple[Skipped, ...]
