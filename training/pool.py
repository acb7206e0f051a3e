"""All images of a site, read once: on the model's square, with label, patient and trivial cues."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.backbone import Backbone
from adapters.errors import AdapterError
from training.cases import Case, Shot, SiteData
from training.cues import Cues, cues_of
from training.errors import DataError
from training.prepared import Image, Mask, Prepared


@dataclass(frozen=True, slots=True)
class Pool:
    """What a fit and an evaluation look at; one entry per usable image, in the order of the cases.

    Parameters
    ----------
    data
        Images and masks on the model's square.
    labels
        (n,) 0 normal, 1 abnormal.
    shots, cases
        Where each image came from.
    cues
        Trivial facts of each image, for leakage checks.
    unreadable
        Key and reason of images that could not be used.
    """

    data: Prepared
    labels: NDArray[np.intp]
    shots: tuple[Shot, ...]
    cases: tuple[Case, ...]
    cues: tuple[Cues, ...]
    unreadable: Mapping[str, str]

    @property
    def patients(self) -> list[str]:
        """Return (n,) patient keys."""
        return [case.patient_key or case.key for case in self.cases]

    def count(self) -> dict[str, Any]:
        """Return how much there is of each class: slices, patients, masks."""
        out: dict[str, Any] = {"cases": len({case.key for case in self.cases})}
        owners = np.array(self.patients)
        for word, label in (("normal", 0), ("abnormal", 1)):
            out[f"{word}_slices"] = int((self.labels == label).sum())
            out[f"{word}_patients"] = len(set(owners[self.labels == label].tolist()))
        out["masks"] = sum(mask is not None for mask in self.data.masks)
        return out


def read_pool(site: SiteData, backbone: Backbone) -> Pool:
    """Read every annotated image of a site.

    Raises
    ------
    DataError
        Nothing can be used.
    """
    kept: list[tuple[Case, Shot]] = []
    cues: list[Cues] = []
    unreadable: dict[str, str] = {}

    def pairs() -> Iterator[tuple[Image, Mask | None]]:
        for case in site.cases:
            for shot in case.shots:
                try:
                    image = _load(shot)
                except (AdapterError, DataError, OSError, ValueError) as error:
                    unreadable[shot.key] = str(error)
                    continue
                kept.append((case, shot))
                cues.append(cues_of(image, shot.attributes))
                yield image, shot.mask if shot.label == "abnormal" else None

    if not any(case.shots for case in site.cases):
        raise DataError("no annotated image was found: label cases normal or abnormal, or add masks")
    stream = pairs()
    first = next(stream, None)
    if first is None:
        raise DataError(f"none of the {len(unreadable)} annotated images can be read")

    def chained() -> Iterator[tuple[Image, Mask | None]]:
        yield first
        yield from stream

    data = Prepared(backbone, chained())
    labels = np.array([int(shot.label == "abnormal") for _, shot in kept], dtype=np.intp)
    cases, shots = tuple(case for case, _ in kept), tuple(shot for _, shot in kept)
    return Pool(data, labels, shots, cases, tuple(cues), unreadable)


def _load(shot: Shot) -> Image:
    image = np.asarray(shot.load(), dtype=np.float32)
    if image.ndim != 2 or min(image.shape) < 2:
        raise DataError(f"an image has shape {image.shape}, not (rows, columns)")
    if not np.isfinite(image).all():
        raise DataError("an image has values that are no numbers")
    if shot.mask is not None and shot.mask.shape != image.shape:
        raise DataError(f"a mask of {shot.mask.shape} belongs to an image of {image.shape}")
    if shot.label == "abnormal" and shot.mask is not None and not shot.mask.any():
        raise DataError("an abnormal image has an empty mask")
    return image
