"""One image scored by a model that has not seen its patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from adapters.letterbox import Letterbox
from adapters.scorer import fuse, slice_score
from training.calibrate import TOP_FRACTION, Calibration, Terms, pixel_floor
from training.cases import Case, Shot
from training.pixels import best_threshold, thin

Maps = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Record:
    """One image scored by a model that has not seen its patient.

    Parameters
    ----------
    case, shot
        Which image.
    score
        Calibrated slice score in [0, 1].
    box, map
        Grid and (g, g) float32 map in [0, 1].
    fold
        By whose model, from 0.
    threshold
        On the map, chosen without this image's fold: where its Dice is measured.
    """

    case: Case
    shot: Shot
    score: float
    box: Letterbox
    map: Maps
    fold: int
    threshold: float

    @property
    def patient(self) -> str:
        """Return the patient's key."""
        return self.case.patient_key or self.case.key

    @property
    def abnormal(self) -> bool:
        """Return the label."""
        return self.shot.label == "abnormal"

    def full_map(self) -> Maps:
        """Return the (rows, columns) float32 map on the source grid."""
        return self.box.backward(self.map)

    def full_mask(self) -> Mask:
        """Return the (rows, columns) bool mask, all False where there is none."""
        if self.shot.mask is not None and self.abnormal:
            return self.shot.mask
        return np.zeros((self.box.rows, self.box.columns), dtype=bool)


def records_of(
    held: Sequence[Terms],
    where: Sequence[tuple[Case, Shot, int]],
    calibration: Calibration,
    pixel_fpr: float,
) -> list[Record]:
    """Turn raw terms into records; the map threshold of each fold is chosen on the other folds.

    Parameters
    ----------
    held
        Held-out terms.
    where
        Case, shot and fold of each.
    calibration
        Whose scales apply.
    pixel_fpr
        As in :class:`~training.options.Options`.
    """
    records = []
    for terms, (case, shot, fold) in zip(held, where, strict=True):
        fused = fuse(terms.text, terms.far, calibration.distance_scale)
        raw = slice_score(fused, terms.box.valid(), TOP_FRACTION)
        score = float(calibration.slice_scale(raw))
        records.append(Record(case, shot, score, terms.box, fused, fold, calibration.threshold))
    return cross_fitted(records, pixel_fpr)


def cross_fitted(records: Sequence[Record], pixel_fpr: float) -> list[Record]:
    """Give each record the map threshold that the other folds' records choose."""
    chosen = {}
    for fold in {r.fold for r in records}:
        others = [r for r in records if r.fold != fold]
        normals = [r.map[r.box.valid()] for r in others if not r.abnormal]
        pairs = [
            (thin(r.full_map()), thin(r.full_mask()))
            for r in others
            if r.abnormal and r.shot.mask is not None
        ]
        if normals and pairs:
            chosen[fold] = best_threshold(pairs, pixel_floor(np.concatenate(normals), pixel_fpr))[0]
    return [replace(r, threshold=chosen.get(r.fold, r.threshold)) for r in records]
