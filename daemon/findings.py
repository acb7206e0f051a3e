"""Findings: score maps → connected regions with measurements, in source geometry."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from daemon.study import FrameGroup


@dataclass(frozen=True, slots=True)
class Finding:
    """One connected region above the threshold.

    Parameters
    ----------
    number
        From 1, by falling peak score: the SEG's segment number.
    tracking_id, tracking_uid
        Shared by SEG and SR.
    mask
        (frames, rows, columns) bool cropped to ``origin``; on the source grid.
    origin
        (frame index, row, column) of the crop's first voxel in the group.
    peak, mean
        Score inside the region, in [0, 1].
    voxels
        Number of voxels.
    volume_mm3, area_mm2, diameter_mm
        Volume (volumes only), area of the largest slice and largest in-plane diameter;
        None where the object has no spacing.
    largest_frame
        Index in the group of the slice with the largest area.
    """

    number: int
    tracking_id: str
    tracking_uid: str
    mask: NDArray[np.bool_]
    origin: tuple[int, int, int]
    peak: float
    mean: float
    voxels: int
    volume_mm3: float | None
    area_mm2: float | None
    diameter_mm: float | None
    largest_frame: int


def find(
    maps: Sequence[NDArray[np.float32]] | NDArray[np.float32],
    group: FrameGroup,
    *,
    threshold: float,
    minimum_voxels: int,
    minimum_volume_mm3: float,
    maximum_findings: int = 20,
    flagged: Sequence[bool] | None = None,
    uid_for: Callable[[int], str],
) -> tuple[Finding, ...]:
    """Find connected regions of high score: 26-connected in a volume, 8-connected per projection.

    Parameters
    ----------
    maps
        (frames, rows, columns) float32 in [0, 1] on the source grid, as one array or one per frame.
    group
        The frames, in the maps' order.
    threshold
        A voxel belongs to a region from this score on.
    minimum_voxels, minimum_volume_mm3
        Smaller regions are dropped; the volume counts only where the group is a volume with spacing.
    maximum_findings
        So many are kept, by peak score.
    flagged
        Per frame, whether its score reaches the slice threshold, at which the rate of false alarms was
        calibrated: a region is a finding only if it reaches into such a frame. None: all are.
    uid_for
        Gives the tracking UID of a finding's number.

    Returns
    -------
    Findings numbered from 1 by falling peak score.

    Raises
    ------
    ValueError
        If the maps do not match the group.
    """
    if len(maps) != len(group.frames) or maps[0].shape != (group.rows, group.columns):
        raise ValueError("one score map of the group's rows × columns is needed per frame")
    flags = [True] * len(maps) if flagged is None else list(flagged)
    if len(flags) != len(maps):
        raise ValueError("one flag is needed per frame")
    spans = [range(len(maps))] if group.is_volume else [range(i, i + 1) for i in range(len(maps))]
    smallest = max(1, minimum_voxels)
    voxel_mm3 = _voxel_mm3(group)
    if voxel_mm3 is not None:
        smallest = max(smallest, math.ceil(minimum_volume_mm3 / voxel_mm3 - 1e-9))
    regions = [
        region
        for span in spans
        if any(flags[i] for i in span)
        for region in _regions(maps, span, flags, threshold, smallest, maximum_findings)
    ]
    regions.sort(key=lambda region: (-region.peak, -region.voxels, region.origin))
    return tuple(
        _measured(region, group, voxel_mm3, number, uid_for(number))
        for number, region in enumerate(regions[:maximum_findings], start=1)
    )


@dataclass(frozen=True, slots=True)
class _Region:
    mask: NDArray[np.bool_]
    origin: tuple[int, int, int]
    peak: float
    mean: float
    voxels: int


def _voxel_mm3(group: FrameGroup) -> float | None:
    if not group.is_volume or group.pixel_spacing_mm is None or group.slice_spacing_mm is None:
        return None
    return group.pixel_spacing_mm[0] * group.pixel_spacing_mm[1] * abs(group.slice_spacing_mm)


def _box(
    maps: Sequence[NDArray[np.float32]] | NDArray[np.float32], span: range, threshold: float
) -> tuple[slice, slice, slice] | None:
    """Bounding box of everything at or above the threshold, None if there is nothing."""
    rows = np.zeros(maps[0].shape[0], dtype=bool)
    columns = np.zeros(maps[0].shape[1], dtype=bool)
    frames = []
    for i in span:
        above = maps[i] >= threshold
        if above.shape != (rows.size, columns.size):
            raise ValueError("every score map needs the group's rows × columns")
        in_rows = above.any(axis=1)
        if in_rows.any():
            frames.append(i)
            rows |= in_rows
            columns |= above.any(axis=0)
    if not frames:
        return None
    r, c = np.flatnonzero(rows), np.flatnonzero(columns)
    return slice(frames[0], frames[-1] + 1), slice(r[0], r[-1] + 1), slice(c[0], c[-1] + 1)


def _regions(
    maps: Sequence[NDArray[np.float32]] | NDArray[np.float32],
    span: range,
    flags: Sequence[bool],
    threshold: float,
    smallest: int,
    most: int,
) -> list[_Region]:
    """Flagged regions of one span of frames, the `most` strongest of at least `smallest` voxels."""
    box = _box(maps, span, threshold)
    if box is None:
        return []
    z, y, x = box
    above = np.stack([maps[i][y, x] >= threshold for i in range(z.start, z.stop)]).astype(np.uint8)
    itk: Any = sitk  # SimpleITK's generated functions have no types
    image = itk.ConnectedComponent(itk.GetImageFromArray(above), True)
    labels = itk.GetArrayViewFromImage(image)
    counts, sums, peaks = _statistics(labels, maps, box)
    reached = np.zeros(counts.size, dtype=bool)
    for i, plane in enumerate(labels):
        if flags[z.start + i]:
            reached[np.unique(plane)] = True
    kept = np.flatnonzero((counts >= smallest) & reached)
    kept = kept[np.lexsort((kept, -counts[kept], -peaks[kept]))][:most]
    # Boxes of the few that are kept: a noisy map has a million regions of one voxel.
    small = np.zeros(counts.size, dtype=np.uint8 if most < 256 else np.uint32)
    small[kept] = np.arange(1, kept.size + 1)
    numbered = small[labels]
    shape = itk.LabelShapeStatisticsImageFilter()
    shape.ComputePerimeterOff()
    shape.Execute(itk.GetImageFromArray(numbered))
    regions = []
    for number, label in enumerate(kept, start=1):
        c0, r0, f0, width, height, depth = shape.GetBoundingBox(number)
        crop = numbered[f0 : f0 + depth, r0 : r0 + height, c0 : c0 + width] == number
        origin = (z.start + f0, int(y.start) + r0, int(x.start) + c0)
        count = int(counts[label])
        regions.append(_Region(crop, origin, float(peaks[label]), float(sums[label] / count), count))
    return regions


def _statistics(
    labels: NDArray[np.uint32],
    maps: Sequence[NDArray[np.float32]] | NDArray[np.float32],
    box: tuple[slice, slice, slice],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float32]]:
    """Voxels, sum and maximum per label, 0 for the background.

    Slice by slice: a stacked copy of the scores of 300 slices would cost 300 MB.
    """
    z, y, x = box
    size = int(labels.max()) + 1
    counts, sums, peaks = np.zeros(size, np.int64), np.zeros(size), np.zeros(size, np.float32)
    for i, plane in enumerate(labels):
        inside = plane > 0
        label, score = plane[inside], maps[z.start + i][y, x][inside]
        counts += np.bincount(label, minlength=size)
        sums += np.bincount(label, weights=score, minlength=size)
        np.maximum.at(peaks, label, score)
    return counts, sums, peaks


def _measured(region: _Region, group: FrameGroup, voxel_mm3: float | None, number: int, uid: str) -> Finding:
    areas = region.mask.sum(axis=(1, 2))
    spacing = group.pixel_spacing_mm
    return Finding(
        number=number,
        tracking_id=f"Anomaly {number}",
        tracking_uid=uid,
        mask=region.mask,
        origin=region.origin,
        peak=region.peak,
        mean=min(region.mean, region.peak),
        voxels=region.voxels,
        volume_mm3=None if voxel_mm3 is None else region.voxels * voxel_mm3,
        area_mm2=None if spacing is None else float(areas.max()) * spacing[0] * spacing[1],
        diameter_mm=None if spacing is None else max(_diameter_mm(m, spacing) for m in region.mask),
        largest_frame=region.origin[0] + int(areas.argmax()),
    )


def _diameter_mm(mask: NDArray[np.bool_], spacing_mm: tuple[float, float]) -> float:
    """Largest distance between two pixel corners of a mask (Feret), 0 for an empty one."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return 0.0
    # Only the first and last pixel of each row can be a corner of the convex hull.
    first = mask[rows].argmax(axis=1)
    last = mask.shape[1] - mask[rows, ::-1].argmax(axis=1)
    y = np.concatenate([rows, rows, rows + 1, rows + 1])
    x = np.concatenate([first, last, first, last])
    hull = np.array(_hull(sorted(zip(y.tolist(), x.tolist(), strict=True)))) * spacing_mm
    return float(np.sqrt(((hull[:, None] - hull) ** 2).sum(axis=2).max()))


def _hull(points: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Corners of the convex hull of sorted points, by monotone chain: only their distances count."""
    hull: list[tuple[int, int]] = []
    for way in (points, points[::-1]):
        chain: list[tuple[int, int]] = []
        for y, x in way:
            while len(chain) > 1:
                (y0, x0), (y1, x1) = chain[-2:]
                if (y1 - y0) * (x - x0) > (x1 - x0) * (y - y0):
                    break
                chain.pop()
            chain.append((y, x))
        hull += chain[:-1]
    return hull
