"""Structure sets: closed planar contours filled in the plane of the image (PS3.3 C.8.8.5, C.8.8.6)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydicom import Dataset

from training.annotations import Images, Outlines, SiteImage, is_named, slice_tolerance_mm
from training.errors import AnnotationError
from training.planes import Points, fill

RT_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"

# PS3.3 C.8.8.8.1: regions that are no lesion.
_NO_LESION = frozenset(
    "EXTERNAL SUPPORT FIXATION BOLUS MARKER REGISTRATION ISOCENTER DOSE_REGION "
    "ORGAN AVOIDANCE CAVITY IRRAD_VOLUME TREATED_VOLUME CONTROL".split()
)
_CLOSED = {"CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "INTERPOLATED_PLANAR"}


def outline_rtstruct(
    ds: Dataset, path: str, images: Images, outlines: Outlines, lesions: Sequence[str] = ()
) -> None:
    """Add the masks of a structure set, each ROI whole or not at all.

    Parameters
    ----------
    ds
        The object.
    path
        Below the site folder, for messages.
    images, outlines
        Where the masks go.
    lesions
        Patterns of the ROI Names that are lesions; where some match, they alone are used.

    Raises
    ------
    AnnotationError
        The object cannot be read.
    """
    rois = [roi for roi in ds.get("ROIContourSequence") or () if _closed(roi)]
    if not rois:
        outlines.skip(path, "the structure set has no closed contour")
        return
    frames_of_reference = {
        int(item.get("ROINumber", -1)): str(item.get("ReferencedFrameOfReferenceUID", "") or "")
        for item in ds.get("StructureSetROISequence") or ()
    }
    kinds = {
        int(item.get("ReferencedROINumber", -1)): str(item.get("RTROIInterpretedType", "") or "").upper()
        for item in ds.get("RTROIObservationsSequence") or ()
    }
    names = {
        int(item.get("ROINumber", -1)): item.get("ROIName")
        for item in ds.get("StructureSetROISequence") or ()
    }
    named = [roi for roi in rois if is_named(names.get(int(roi.get("ReferencedROINumber", -1))), lesions)]
    if named and len(named) < len(rois):
        outlines.skip(path, f"{len(rois) - len(named)} ROIs beside those that --lesion names: not used")
    for roi in named or _lesions(rois, kinds, path, outlines):
        number = int(roi.get("ReferencedROINumber", -1))
        reference = frames_of_reference.get(number, "") or str(ds.get("FrameOfReferenceUID", "") or "")
        touched: list[SiteImage] = []
        try:
            for image, polygons in _by_image(_closed(roi), reference, images, touched).values():
                outlines.add(image, fill(polygons, image.rows, image.columns), "RTSTRUCT")
        except AnnotationError as error:
            outlines.skip(path, f"ROI {number}: {error}", touched)
            outlines.unsafe_series |= {i.series for i in images.of_frame_of_reference(reference)}


def _closed(roi: Dataset) -> list[Dataset]:
    return [c for c in roi.get("ContourSequence") or () if c.get("ContourGeometricType") in _CLOSED]


def _lesions(rois: list[Dataset], kinds: dict[int, str], path: str, outlines: Outlines) -> list[Dataset]:
    """The ROIs that outline something abnormal."""

    def kind(roi: Dataset) -> str:
        return kinds.get(int(roi.get("ReferencedROINumber", -1)), "")

    used = [roi for roi in rois if kind(roi) not in _NO_LESION]
    if any(kind(roi) == "GTV" for roi in used):
        # A planning volume is the tumour with a margin: the tumour itself is better, where it is drawn.
        used = [roi for roi in used if kind(roi) not in ("PTV", "CTV")]
    if not used:
        message = "every ROI is an organ, a body outline, a support or a marker by its interpreted type: not "
        outlines.skip(path, message + "used; name those that are lesions with --lesion (ROI Name)")
        return []
    if len(used) < len(rois):
        outlines.skip(
            path, f"{len(rois) - len(used)} ROIs that are no lesion by their interpreted type: not used"
        )
    return used


def _by_image(
    contours: list[Dataset], reference: str, images: Images, touched: list[SiteImage]
) -> dict[object, tuple[SiteImage, list[Points]]]:
    """Contours in pixels, by the image in whose plane they lie."""
    found: dict[object, tuple[SiteImage, list[Points]]] = {}
    off = 0
    for contour in contours:
        points = contour_points(contour)
        image = _image_of(contour, points, reference, images, touched)
        if image is None:
            off += 1
            continue
        assert image.plane is not None  # _image_of returns none without
        polygons = found.setdefault(image.key, (image, []))[1]
        polygon = image.plane.to_pixels(points)[:, :2]
        # The same contour twice is a slip of the exporter, not an empty area.
        if not any(p.shape == polygon.shape and np.allclose(p, polygon) for p in polygons):
            polygons.append(polygon)
    if off:
        raise AnnotationError(f"{off} of {len(contours)} contours lie off the slices that are in the folder")
    return found


def contour_points(contour: Dataset) -> Points:
    """Return ContourData as (n, 3) mm."""
    try:
        values = np.array([float(v) for v in contour.get("ContourData") or ()], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise AnnotationError("a contour's coordinates are not numbers") from error
    if values.size < 9 or values.size % 3 or not np.isfinite(values).all():
        raise AnnotationError("a contour does not have three or more points of three coordinates")
    return values.reshape(-1, 3)


def _image_of(
    contour: Dataset, points: Points, reference: str, images: Images, touched: list[SiteImage]
) -> SiteImage | None:
    """The image referred to, else the nearest plane of the frame of reference; None if it is off."""
    uids = [
        str(item.get("ReferencedSOPInstanceUID", "")) for item in contour.get("ContourImageSequence") or ()
    ]
    named = [image for uid in uids for image in images.referenced(uid)]
    touched.extend(named)
    candidates = named or images.of_frame_of_reference(reference)
    if not candidates:
        raise AnnotationError("its images are not in the folder, nor any of its frame of reference")
    if reference and all(i.frame_of_reference != reference for i in candidates):
        raise AnnotationError("its frame of reference is not that of the images that it refers to")
    in_space = [image for image in candidates if image.plane is not None]
    if not in_space:
        raise AnnotationError("the images that it refers to have no position in space")
    return nearest_plane(points, in_space, images)


def nearest_plane(points: Points, candidates: list[SiteImage], images: Images) -> SiteImage | None:
    """Return the candidate in whose plane all points lie, to a quarter of the slice spacing; else None."""

    def off(image: SiteImage) -> float:
        assert image.plane is not None  # by the caller
        return float(np.abs(image.plane.to_pixels(points)[:, 2]).max())

    best = min(candidates, key=off)
    series = [i for i in images.of_frame_of_reference(best.frame_of_reference) if i.series == best.series]
    return best if off(best) <= slice_tolerance_mm(series or [best]) else None
