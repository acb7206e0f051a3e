"""Geometry: where each frame lies, which frames are parallel, and in which order they follow each other.

Positions and orientations are the patient's, in mm (LPS; PS3.3 C.7.6.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from adapters.values import functional_group

Vector = tuple[float, float, float]
Orientation = tuple[float, float, float, float, float, float]
Spacing = tuple[float, float]

# Largest difference between direction cosines of one group: 0.06°, above what rounding does.
ORIENTATION_TOLERANCE = 1e-3
# Positions nearer than this, in mm, are the same.
POSITION_TOLERANCE_MM = 1e-2
# A distance that differs from the median by more than this fraction is a gap.
SPACING_TOLERANCE = 0.05
# Below this a slant is rounding, in degrees.
TILT_TOLERANCE_DEG = 0.1


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one frame lies, as far as its header says.

    Parameters
    ----------
    position, orientation
        ImagePositionPatient and ImageOrientationPatient, both or neither.
    spacing
        PixelSpacing in mm (between rows, between columns), or None.
    note
        What is odd about it, or "".
    """

    position: Vector | None
    orientation: Orientation | None
    spacing: Spacing | None
    note: str = ""


def placement(ds: Dataset, frame_number: int, frames: int) -> Placement:
    """Return where one frame lies.

    Parameters
    ----------
    ds
        Header of the instance.
    frame_number
        From 1.
    frames
        NumberOfFrames. A classic multi-frame object has one position for all frames, which is none.

    Returns
    -------
    Placement
        From the frame's functional groups (PS3.3 C.7.6.16.2.1 to .4), else from the data set itself.
    """
    plane = functional_group(ds, "PlanePositionSequence", frame_number)
    turn = functional_group(ds, "PlaneOrientationSequence", frame_number)
    measures = functional_group(ds, "PixelMeasuresSequence", frame_number)
    if plane is None and frames > 1:
        spacing, note = _flat_spacing(measures or ds)
        return Placement(None, None, spacing, note)
    position = _floats(plane if plane is not None else ds, "ImagePositionPatient", 3)
    orientation = _floats(turn if turn is not None else ds, "ImageOrientationPatient", 6)
    spacing, note = _flat_spacing(measures if measures is not None else ds)
    if position is None or orientation is None:
        return Placement(None, None, spacing, note)
    if not _is_orthonormal(orientation):
        return Placement(None, None, spacing, "its orientation is not two perpendicular directions")
    x, y, z = position
    a, b, c, d, e, f = orientation
    return Placement((x, y, z), (a, b, c, d, e, f), spacing, note)


def _flat_spacing(ds: Dataset) -> tuple[Spacing | None, str]:
    spacing = _spacing(ds, "PixelSpacing")
    if spacing is not None:
        return spacing, ""
    for keyword in ("ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        spacing = _spacing(ds, keyword)
        if spacing is not None:
            return spacing, "sizes are measured at the detector, not in the patient"
    return None, ""


def _spacing(ds: Dataset, keyword: str) -> Spacing | None:
    values = _floats(ds, keyword, 2)
    if values is None or min(values) <= 0:
        return None
    return values[0], values[1]


def _floats(ds: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    try:
        values = tuple(float(v) for v in ds.get(keyword) or ())
    # Not a list, or not numbers: as good as absent.
    except (TypeError, ValueError):
        return None
    return values if len(values) == count and all(math.isfinite(v) for v in values) else None


def _is_orthonormal(orientation: Sequence[float]) -> bool:
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = abs(np.linalg.norm(row) - 1), abs(np.linalg.norm(column) - 1)
    return bool(max(lengths) < 1e-2 and abs(float(row @ column)) < 1e-2)


def normal(orientation: Orientation) -> NDArray[np.float64]:
    """Return the unit normal of a plane: row direction × column direction (PS3.3 C.7.6.2.1.1)."""
    cross = np.cross(np.array(orientation[:3]), np.array(orientation[3:]))
    return np.asarray(cross / np.linalg.norm(cross))


def is_parallel(a: Orientation | None, b: Orientation | None) -> bool:
    """Say whether two frames have the same orientation within the tolerance."""
    if a is None or b is None:
        return a is b
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) < ORIENTATION_TOLERANCE


def depths(positions: Sequence[Vector], orientation: Orientation) -> NDArray[np.float64]:
    """Return the distance of each position along the normal, in mm."""
    return np.asarray(np.array(positions, np.float64) @ normal(orientation))


def slice_spacing_mm(sorted_depths: NDArray[np.float64]) -> float | None:
    """Return the median distance between neighbours in order, None for a single position."""
    return float(np.median(np.diff(sorted_depths))) if len(sorted_depths) > 1 else None


def repeats(sorted_depths: NDArray[np.float64]) -> bool:
    """Say whether two neighbours in order lie at the same position."""
    return bool(len(sorted_depths) > 1 and np.diff(sorted_depths).min() < POSITION_TOLERANCE_MM)


def gap_notes(sorted_depths: NDArray[np.float64]) -> tuple[str, ...]:
    """Describe missing slices and uneven distances.

    Parameters
    ----------
    sorted_depths
        (slices,) in mm along the normal, in order, without repeats.

    Returns
    -------
    tuple[str, ...]
        "2 missing slices", "uneven slice distances, 1.0 to 2.5 mm"; empty when all is even.
    """
    gaps = np.diff(sorted_depths)
    if len(gaps) < 2:
        return ()
    step = float(np.median(gaps))
    multiples = np.round(gaps / step)
    whole = np.abs(gaps - multiples * step) <= SPACING_TOLERANCE * step * np.maximum(multiples, 1)
    missing = int((multiples[whole & (multiples > 1)] - 1).sum())
    notes = []
    if missing:
        notes.append(f"{missing} missing slice{'s' if missing > 1 else ''}")
    if not whole.all():
        notes.append(f"uneven slice distances, {gaps.min():.1f} to {gaps.max():.1f} mm")
    return tuple(notes)


def tilt_notes(positions: Sequence[Vector], orientation: Orientation) -> tuple[str, ...]:
    """Describe a stack whose slices do not lie straight behind each other.

    Parameters
    ----------
    positions
        In order along the normal.
    orientation
        Of the frames.

    Returns
    -------
    tuple[str, ...]
        "gantry tilt 12.0°" when each slice is shifted alike, "slices are shifted against each other"
        when not; empty for a straight stack.
    """
    if len(positions) < 2:
        return ()
    points, axis = np.array(positions, np.float64), normal(orientation)
    steps = np.diff(points, axis=0)
    along = steps @ axis
    shift = steps - along[:, None] * axis
    angle = math.degrees(math.atan2(float(np.linalg.norm(shift.sum(axis=0))), float(along.sum())))
    slope = shift.sum(axis=0) / along.sum()
    if np.abs(shift - along[:, None] * slope).max() > 0.5:
        return ("slices are shifted against each other",)
    return (f"gantry tilt {angle:.1f}°",) if angle > TILT_TOLERANCE_DEG else ()
