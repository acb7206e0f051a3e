"""Pixels to per-patient counts: bins of equal mass, connected regions, Dice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from training.metrics import Floats, Tally, strata

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]
Kind = TypeVar("Kind", bound=np.generic)
BINS = 2048
# Bigger grids are thinned by a whole factor: their maps are interpolated from a few hundred patches anyway.
SIDE_PX = 512


@dataclass(frozen=True, slots=True)
class PixelCase:
    """One image with its truth.

    Parameters
    ----------
    patient
        Key.
    map
        (rows, columns) float32, higher is more abnormal.
    mask
        (rows, columns) bool on the same grid; all False for a normal image.
    """

    patient: str
    map: Map
    mask: Mask


def thin(array: NDArray[Kind]) -> NDArray[Kind]:
    """Return every s-th row and column, s the least that leaves at most ``SIDE_PX`` a side."""
    step = -(-max(array.shape) // SIDE_PX)
    return array[::step, ::step] if step > 1 else array


def edges_of(samples: Sequence[Map], positives: Sequence[Map], bins: int = BINS) -> Floats:
    """Return increasing bin edges: quantiles of all pixels, and as many of the pixels inside masks.

    Lesions are a percent of all pixels: bins of equal mass over all of them alone would be coarse there.
    """
    parts = [_quantiles(samples, bins)]
    if positives:
        parts.append(_quantiles(positives, bins))
    return np.unique(np.concatenate(parts))


def pixel_tally(cases: Iterable[PixelCase], edges: Floats, patients: Sequence[str]) -> Tally:
    """Count pixels and regions per patient.

    Parameters
    ----------
    cases
        Images, in any order; each is looked at once.
    edges
        (bins,) increasing lower edges.
    patients
        Keys in the order of the result; every case's patient is among them.
    """
    row = {key: i for i, key in enumerate(patients)}
    shape = (len(patients), len(edges))
    positive, negative, region = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    regions = np.zeros(len(patients))
    for case in cases:
        i = row[case.patient]
        index = np.clip(np.searchsorted(edges, case.map, side="right") - 1, 0, None)
        negative[i] += np.bincount(index[~case.mask], minlength=len(edges))
        if not case.mask.any():
            continue
        positive[i] += np.bincount(index[case.mask], minlength=len(edges))
        labels = components(case.mask)
        sizes = np.bincount(labels.ravel())
        regions[i] += len(sizes) - 1
        inside = labels[case.mask]
        region[i] += np.bincount(index[case.mask], 1 / sizes[inside], minlength=len(edges))
    return Tally(tuple(patients), strata(positive, negative), edges, positive, negative, region, regions)


def components(mask: Mask) -> NDArray[np.intp]:
    """Return (rows, columns) labels of the 8-connected regions, 0 outside."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(mask, dtype=np.uint8))
    labels = sitk.ConnectedComponent(image, True)  # type: ignore[no-untyped-call]
    return np.asarray(sitk.GetArrayFromImage(labels), dtype=np.intp)


def dice(found: Mask, mask: Mask) -> float:
    """Return 2 |A and B| / (|A| + |B|), 1 if both are empty."""
    total = int(found.sum()) + int(mask.sum())
    return 2 * int((found & mask).sum()) / total if total else 1.0


def best_threshold(pairs: Sequence[tuple[Map, Mask]], floor: float) -> tuple[float, float]:
    """Return the threshold of best mean Dice at or above ``floor``, and that Dice.

    Parameters
    ----------
    pairs
        Map in [0, 1] and mask of abnormal images, at least one.
    floor
        In (0, 1): what normals allow.
    """
    candidates = np.linspace(floor, 0.99, 60)
    total = np.zeros(len(candidates))
    for values, mask in pairs:
        # Pixels at or above each candidate: count once, then sum from the top.
        index = np.searchsorted(candidates, values, side="right")
        all_, hit = (
            np.bincount(index[m], minlength=61)[::-1].cumsum()[::-1][1:] for m in (np.ones_like(mask), mask)
        )
        size = all_ + int(mask.sum())
        total += np.where(size > 0, 2 * hit / np.maximum(size, 1), 1.0)
    best = int(np.argmax(total))
    return float(candidates[best]), float(total[best] / len(pairs))


def _quantiles(maps: Sequence[Map], bins: int) -> Floats:
    step = max(1, sum(m.size for m in maps) // 2_000_000)
    values = np.concatenate([m.ravel()[::step] for m in maps]) if maps else np.zeros(1)
    # Finer at the top, where thresholds and false-positive rates of a percent live.
    q = np.concatenate([np.linspace(0, 0.9, bins // 2), 1 - np.geomspace(0.1, 1e-6, bins // 2), [1.0]])
    return np.unique(np.quantile(values.astype(np.float64), q, method="lower"))
