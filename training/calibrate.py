"""Thresholds and scales from slices that the scoring model has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.calibration import Scale, fit_scale, operating_point, smallest_p
from adapters.errors import CalibrationError
from adapters.letterbox import Letterbox
from adapters.scorer import fuse, slice_score
from training.pixels import best_threshold

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
TOP_FRACTION = 0.01


@dataclass(frozen=True, slots=True)
class Terms:
    """Raw map terms of one slice by a model that has not seen its patient.

    Parameters
    ----------
    box
        Its grid.
    text, far
        (g, g) text probability and distance.
    patient
        Key: slices of one patient are not exchangeable with another's.
    abnormal
        Its label.
    mask
        (rows, columns) bool of an outlined abnormal slice, else None.
    """

    box: Letterbox
    text: Array
    far: Array
    patient: str
    abnormal: bool
    mask: Mask | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    """What :func:`calibrate` found; fields as in :class:`~adapters.bundle.AdapterBundle`.

    ``normal_scores`` has one value per held-out patient: the highest calibrated score of its normal slices.
    """

    distance_scale: Scale
    slice_scale: Scale
    normal_scores: Array
    map_quantiles: Array
    threshold: float
    slice_threshold: float
    provenance: dict[str, Any]


def calibrate(held: Sequence[Terms], pixel_fpr: float, alpha: float) -> Calibration:
    """Fit the scales and choose both thresholds.

    The map threshold is the one of best mean Dice on the held-out abnormal slices, but never so low that
    more than ``pixel_fpr`` of the held-out normals' pixels reach it. The slice threshold flags at most
    ``alpha`` of the patients by their highest normal slice: with one unit per patient the held-out normals
    and a new patient are exchangeable. Scores come from the folds' models, the bundle holds another one
    fitted on all cases (CV+): exact for the folds' models, approximate for that one.

    Parameters
    ----------
    held
        Held-out slices.
    pixel_fpr
        In (0, 1).
    alpha
        In (0, 1), or 0 for the larger of 0.05 and what the patients support.

    Raises
    ------
    CalibrationError
        There are too few held-out normal patients for ``alpha``, or fewer than two.
    """
    normals = [t for t in held if not t.abnormal]
    patients = list(dict.fromkeys(t.patient for t in normals))
    n = len(patients)
    if n < 2:
        raise CalibrationError(f"{n} patients with held-out normal slices: at least two are needed")
    valid = [t.box.valid() for t in normals]
    distance_scale = fit_scale(np.concatenate([t.far[v] for t, v in zip(normals, valid, strict=True)]), 0.999)
    maps = [fuse(t.text, t.far, distance_scale) for t in normals]
    slices = [slice_score(m, v, TOP_FRACTION) for m, v in zip(maps, valid, strict=True)]
    raw = highest(slices, [t.patient for t in normals])
    alpha = alpha or max(0.05, smallest_p(n))
    cut = operating_point(raw, alpha)
    slice_scale = Scale(cut, max((cut - float(np.median(raw))) / 4.0, 0.02))
    scores = slice_scale(raw)
    pixels = np.concatenate([m[v] for m, v in zip(maps, valid, strict=True)])
    floor = pixel_floor(pixels, pixel_fpr)
    outlined = [(t.box.backward(fuse(t.text, t.far, distance_scale)), t.mask) for t in held if t.abnormal]
    pairs = [(values, mask) for values, mask in outlined if mask is not None]
    threshold, dice = best_threshold(pairs, floor) if pairs else (floor, None)
    return Calibration(
        distance_scale,
        slice_scale,
        scores,
        np.percentile(pixels, np.arange(101)).astype(np.float32),
        threshold,
        float(np.nextafter(np.float32(operating_point(scores, alpha)), np.float32(2))),
        {
            "held_out_normal_slices": len(normals),
            "held_out_normal_patients": n,
            "smallest_p": smallest_p(n),
            "slice_fpr": alpha,
            "pixel_fpr": float(np.mean(pixels >= threshold)),
            "held_out_dice": dice,
        },
    )


def highest(scores: Sequence[float], patients: Sequence[str]) -> NDArray[np.float64]:
    """Return each patient's highest score, in the order in which the patients first appear."""
    best: dict[str, float] = {}
    for score, patient in zip(scores, patients, strict=True):
        best[patient] = max(score, best.get(patient, -np.inf))
    return np.array(list(best.values()), dtype=np.float64)


def pixel_floor(pixels: Array, pixel_fpr: float) -> float:
    """Return the lowest map threshold that normals allow, in [0.01, 0.99]."""
    return min(max(float(np.quantile(pixels, 1 - pixel_fpr, method="higher")), 0.01), 0.99)
