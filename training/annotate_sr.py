"""Structured reports: regions as masks (PS3.16 TID 1500, 1410, 1411; PS3.3 C.18.6, C.18.9)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from pydicom import Dataset

from adapters.source import PixelSource
from training.annotate_rtstruct import nearest_plane
from training.annotate_seg import (
    LABEL_MAP_SEGMENTATION,
    SEGMENTATION,
    frame_numbers,
    outline_seg,
)
from training.annotations import Images, Outlines, SiteImage
from training.errors import AnnotationError
from training.planes import Points, fill
from training.site_dicom import is_own_result

_ELLIPSE_CORNERS = 360
# Referenced Segment, Referenced Segmentation Frame (PS3.16 TID 1411, TID 1410).
_SEGMENT_CONCEPTS = {"121191", "121214"}
# Lesion = Absent (CID 240), Normality = Normal (CID 242)
_NORMAL = {("52988006", "272519000"), ("121402", "17621005")}
_NO_AREA = {"POINT", "MULTIPOINT", "POLYLINE", "ELLIPSOID"}


def outline_sr(
    ds: Dataset,
    path: str,
    images: Images,
    outlines: Outlines,
    *,
    find_seg: Callable[[str], PixelSource | None],
    max_frame_pixels: int,
) -> None:
    """Add the regions of a report: polygons, circles and ellipses, and segments by reference.

    Coordinates of a single measurement (a calliper, a border) are no region, and points have no area.

    Parameters
    ----------
    ds
        The report.
    path
        Below the site folder, for messages.
    images, outlines
        Where the masks go.
    find_seg
        SEGs of the folder by SOP Instance UID.
    max_frame_pixels
        Limit for a frame of a SEG.

    Raises
    ------
    AnnotationError
        The report cannot be read.
    """
    if is_own_result(ds) and str(ds.get("VerificationFlag", "")) != "VERIFIED":
        outlines.skip(path, "a report of this software that no person verified")
        return
    regions = list(_regions(ds))
    if not regions:
        outlines.skip(path, "the report outlines no region of an image")
        return
    without_area = 0
    for item in regions:
        touched: list[SiteImage] = []
        try:
            if item.ValueType == "IMAGE":
                _segments(item, path, images, outlines, find_seg, max_frame_pixels)
            elif _graphic(item) in _NO_AREA:
                without_area += 1
            elif item.ValueType == "SCOORD":
                _scoord(item, images, outlines, touched)
            else:
                _scoord3d(item, images, outlines, touched)
        except AnnotationError as error:
            outlines.skip(path, f"a region of the report: {error}", touched)
    if without_area == len(regions):
        outlines.skip(path, "the report has points or open lines only, which have no area")
    elif without_area:
        outlines.skip(path, f"{without_area} points or open lines, which have no area")


def _regions(item: Dataset, depth: int = 0) -> Iterator[Dataset]:
    """Coordinates and segments that stand in a container, not those that a single measurement came from."""
    if depth > 32:
        raise AnnotationError("the report is nested too deeply")
    if _says_normal(item):
        return
    for child in item.get("ContentSequence") or ():
        kind = child.get("ValueType")
        if kind == "CONTAINER":
            yield from _regions(child, depth + 1)
        elif kind in ("SCOORD", "SCOORD3D") or (kind == "IMAGE" and _refers_to_seg(child)):
            yield child


def _says_normal(item: Dataset) -> bool:
    """True for a group that says that its lesion is absent or its image normal: a reader rejected it."""
    return any(
        (name.get("CodeValue"), value.get("CodeValue")) in _NORMAL
        for child in item.get("ContentSequence") or ()
        for name in child.get("ConceptNameCodeSequence") or ()
        for value in child.get("ConceptCodeSequence") or ()
    )


def _refers_to_seg(item: Dataset) -> bool:
    """True for a segment of a measurement group; an image library may list a SEG as well (TID 1600)."""
    concepts = {c.get("CodeValue") for c in item.get("ConceptNameCodeSequence") or ()}
    references = item.get("ReferencedSOPSequence") or ()
    return bool(concepts & _SEGMENT_CONCEPTS) and any(
        r.get("ReferencedSOPClassUID") in (SEGMENTATION, LABEL_MAP_SEGMENTATION) for r in references
    )


def _segments(
    item: Dataset,
    path: str,
    images: Images,
    outlines: Outlines,
    find_seg: Callable[[str], PixelSource | None],
    limit: int,
) -> None:
    for reference in item.ReferencedSOPSequence:
        source = find_seg(str(reference.get("ReferencedSOPInstanceUID", "")))
        if source is None:
            raise AnnotationError("it refers to a SEG that is not in the folder")
        value = reference.get("ReferencedSegmentNumber")
        numbers = [] if value in (None, "") else [int(v) for v in _listed(value)]
        outline_seg(
            source,
            path,
            images,
            outlines,
            max_frame_pixels=limit,
            segments=numbers,
            frames=frame_numbers(reference),
            name="SR",
        )


def _listed(value: object) -> list[str]:
    return [str(value)] if isinstance(value, int | str) else [str(v) for v in value]  # type: ignore[attr-defined]


def _graphic(item: Dataset) -> str:
    """GraphicType; a closed polyline is called POLYGON, as it is in three dimensions."""
    kind = str(item.get("GraphicType", ""))
    points = _points(item)
    closed = len(points) > 3 and np.allclose(points[0], points[-1], atol=1e-3)
    return "POLYGON" if kind == "POLYLINE" and closed else kind


def _points(item: Dataset) -> Points:
    size = 2 if item.ValueType == "SCOORD" else 3
    values = np.array(item.get("GraphicData") or (), dtype=np.float64).ravel()
    if values.size < size or values.size % size or not np.isfinite(values).all():
        raise AnnotationError("its coordinates are missing or not a whole number of points")
    return values.reshape(-1, size)


def _area(kind: str, points: Points) -> Points:
    """Corners of a polygon, circle or ellipse, (n, 2) or (n, 3)."""
    if kind == "POLYGON":
        return points
    turn = np.linspace(0, 2 * np.pi, _ELLIPSE_CORNERS, endpoint=False)[:, None]
    if kind == "CIRCLE" and len(points) == 2 and points.shape[1] == 2:
        centre, out = points[0], points[1] - points[0]
        return np.asarray(centre + np.cos(turn) * out + np.sin(turn) * np.array([-out[1], out[0]]))
    if kind == "ELLIPSE" and len(points) == 4:
        # The ends of the major axis, then of the minor axis (PS3.3 C.18.6.1.2).
        centre = points[:2].mean(axis=0)
        return np.asarray(
            centre + np.cos(turn) * (points[1] - centre) + np.sin(turn) * (points[3] - points[2]) / 2
        )
    raise AnnotationError("its graphic is neither a polygon, a circle nor an ellipse")


def _scoord(item: Dataset, images: Images, outlines: Outlines, touched: list[SiteImage]) -> None:
    references = [
        reference
        for child in item.get("ContentSequence") or ()
        for reference in child.get("ReferencedSOPSequence") or ()
    ]
    for r in references:
        touched += images.referenced(str(r.get("ReferencedSOPInstanceUID", "")), frame_numbers(r))
    if not touched:
        raise AnnotationError("it refers to images that are not in the folder")
    if len(touched) > 1:
        raise AnnotationError("it does not say on which of several images or frames it lies")
    image = touched[0]
    # 0\0 is the corner of the first pixel, its centre 0.5\0.5 (PS3.3 C.18.6.1.1).
    points = _area(_graphic(item), _points(item)) - 0.5
    if points.min() < -1 or (points > [image.columns, image.rows]).any():
        raise AnnotationError("its coordinates lie outside the image")
    outlines.add(image, fill([points], image.rows, image.columns), "SR", whole_volume=False)


def _scoord3d(item: Dataset, images: Images, outlines: Outlines, touched: list[SiteImage]) -> None:
    reference = str(item.get("ReferencedFrameOfReferenceUID", "") or "")
    candidates = images.of_frame_of_reference(reference)
    if not candidates:
        raise AnnotationError("no image of the folder is in its frame of reference")
    points = _area(_graphic(item), _points(item))
    image = nearest_plane(points, candidates, images)
    if image is None or image.plane is None:
        raise AnnotationError("it lies off the slices that are in the folder")
    touched.append(image)
    pixels = image.plane.to_pixels(points)[:, :2]
    outlines.add(image, fill([pixels], image.rows, image.columns), "SR", whole_volume=False)
