"""Segmentations: SEG frames as masks on the images that they refer to (PS3.3 A.51, A.94, C.8.20)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from adapters.decode import decode_frame
from adapters.errors import DecodeError
from adapters.source import PixelSource
from adapters.values import functional_group
from training.annotations import Images, Outlines, SiteImage, is_named, onto_grid
from training.errors import AnnotationError
from training.planes import Plane
from training.site_dicom import is_own_result, plane_of

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"

# CID 7150, each as SCT and as the SRT code that older software writes.
_ANATOMY = {"123037004", "T-D000A"}
_TISSUE = {"85756007", "T-D0050"}


def outline_seg(
    source: PixelSource,
    path: str,
    images: Images,
    outlines: Outlines,
    *,
    max_frame_pixels: int,
    segments: Iterable[int] = (),
    frames: Iterable[int] = (),
    name: str = "SEG",
    lesions: Sequence[str] = (),
) -> None:
    """Add the masks of a SEG: binary, fractional (at least half) or label map.

    Parameters
    ----------
    source
        The object.
    path
        Below the site folder, for messages.
    images, outlines
        Where the masks go.
    max_frame_pixels
        Limit for a frame.
    segments, frames
        Only these, as an SR asks for; else every segment that is no plain anatomy, of any frame.
    name
        What the mask is said to come from.
    lesions
        Patterns of the Segment Labels that are lesions; where some match, they alone are used.

    Raises
    ------
    AnnotationError
        Nothing of the object can be used.
    """
    ds = source.header
    asked = set(segments)
    only = set(frames)
    if not asked and not only and is_own_result(ds) and _automatic(ds):
        message = (
            "a result of this software that no person corrected: a corrected one says so by the segments' "
        )
        outlines.skip(path, message + "SegmentAlgorithmType MANUAL or SEMIAUTOMATIC")
        return
    wanted = asked or _abnormal_segments(ds, path, outlines, lesions)
    if not wanted:
        return
    problems: dict[str, list[SiteImage]] = {}
    drawn = 0
    for number in range(1, int(ds.get("NumberOfFrames", 1) or 1) + 1):
        if only and number not in only:
            continue
        if not _is_label_map(ds) and _segment_of(ds, number) not in wanted:
            continue
        try:
            mask = _mask(source, number, wanted, max_frame_pixels)
        except DecodeError as error:
            raise AnnotationError(f"frame {number} cannot be decoded: {error}") from error
        if not mask.any():
            continue
        drawn += 1
        touched: list[SiteImage] = []
        try:
            image = _image_of(ds, number, images, touched)
            drawn_here = onto_grid(mask, plane_of(ds, number), image)
            # A report that names one frame says nothing of how far the lesion reaches.
            outlines.add(image, drawn_here, name, whole_volume=not only)
        except AnnotationError as error:
            problems.setdefault(str(error), []).extend(touched)
    for message, touched in problems.items():
        outlines.skip(path, message, touched)
    if not drawn:
        outlines.skip(path, "it outlines nothing, and so says nothing of any image")


def _is_label_map(ds: Dataset) -> bool:
    return bool(ds.SOPClassUID == LABEL_MAP_SEGMENTATION or ds.get("SegmentationType") == "LABELMAP")


def _automatic(ds: Dataset) -> bool:
    return all(s.get("SegmentAlgorithmType") == "AUTOMATIC" for s in ds.get("SegmentSequence") or ())


def _abnormal_segments(ds: Dataset, path: str, outlines: Outlines, lesions: Sequence[str]) -> set[int]:
    """Segments to use: the named ones, else all but the anatomy (PS3.3 C.8.20.4)."""
    sequence = [s for s in ds.get("SegmentSequence") or () if s.get("SegmentNumber")]
    numbers = {int(s.SegmentNumber) for s in sequence}
    if not numbers:
        raise AnnotationError("the SEG describes no segment")
    named = {int(s.SegmentNumber) for s in sequence if is_named(s.get("SegmentLabel"), lesions)}
    used = named or numbers - {int(s.SegmentNumber) for s in sequence if _is_anatomy(s)}
    if not used:
        message = "every segment is plain anatomy: not used; name those that are lesions with --lesion "
        outlines.skip(path, message + "(Segment Label), or give them another category")
    elif named and used != numbers:
        outlines.skip(path, f"{len(numbers - used)} segments beside those that --lesion names: not used")
    elif used != numbers:
        outlines.skip(path, f"{len(numbers - used)} segments of plain anatomy beside the others: not used")
    return used


def _is_anatomy(segment: Dataset) -> bool:
    """True for an organ; "tissue" of type "tissue" is what 3D Slicer writes of anything, lesions too."""
    category, kind = (
        {c.get("CodeValue") for c in segment.get(keyword) or ()}
        for keyword in ("SegmentedPropertyCategoryCodeSequence", "SegmentedPropertyTypeCodeSequence")
    )
    return bool(category & _ANATOMY or (category & _TISSUE and not kind & _TISSUE))


def _segment_of(ds: Dataset, number: int) -> int:
    group = functional_group(ds, "SegmentIdentificationSequence", number)
    value = None if group is None else group.get("ReferencedSegmentNumber")
    if value is None:
        raise AnnotationError(f"frame {number} does not say of which segment it is")
    return int(value[0] if isinstance(value, list) else value)


def _mask(source: PixelSource, number: int, wanted: set[int], limit: int) -> NDArray[np.bool_]:
    """(rows, columns) bool of a frame."""
    ds = source.header
    values: NDArray[Any] = decode_frame(source, number, max_frame_pixels=limit)
    if _is_label_map(ds):
        return np.isin(values, sorted(wanted))
    if ds.get("SegmentationType") == "FRACTIONAL":
        return np.asarray(values * 2.0 >= float(ds.get("MaximumFractionalValue", 255)), dtype=np.bool_)
    return np.asarray(values > 0, dtype=np.bool_)


def _image_of(ds: Dataset, number: int, images: Images, touched: list[SiteImage]) -> SiteImage:
    """Find the image that a frame lies on: the one referred to, else the one in its plane."""
    reference = str(ds.get("FrameOfReferenceUID", "") or "")
    plane = plane_of(ds, number)
    named = _named(ds, number)
    found = [image for uid, frames in named for image in images.referenced(uid, frames)]
    touched.extend(found)
    if named and not found:
        raise AnnotationError("it refers to images that are not in the folder")
    if found and reference and all(i.frame_of_reference not in ("", reference) for i in found):
        raise AnnotationError("its frame of reference is not that of the images that it refers to")
    if not found and plane is not None:
        found = [i for i in images.of_frame_of_reference(reference) if _coplanar(plane, i)]
    if len(found) > 1 and plane is not None:
        found = [i for i in found if _coplanar(plane, i)]
    if not found:
        raise AnnotationError("no image of the folder lies in its plane and frame of reference")
    if len(found) > 1:
        raise AnnotationError("it does not say on which of several images its mask lies")
    return found[0]


def _named(ds: Dataset, number: int) -> list[tuple[str, list[int]]]:
    """Source images of a frame (PS3.3 C.7.6.16.2.6), or of the whole object if it has one frame."""
    derivation = functional_group(ds, "DerivationImageSequence", number)
    items = [] if derivation is None else list(derivation.get("SourceImageSequence") or ())
    if not items and int(ds.get("NumberOfFrames", 1) or 1) == 1:
        items = list(ds.get("SourceImageSequence") or ())
        for series in ds.get("ReferencedSeriesSequence") or ():
            instances = list(series.get("ReferencedInstanceSequence") or ())
            items += instances if not items and len(instances) == 1 else []
    return [(str(item.get("ReferencedSOPInstanceUID", "")), frame_numbers(item)) for item in items]


def frame_numbers(item: Dataset) -> list[int]:
    """Return ReferencedFrameNumber of a reference, [] if it names none."""
    value = item.get("ReferencedFrameNumber")
    if value is None or value == "":
        return []
    return [int(v) for v in ([value] if isinstance(value, int | str) else value)]


def _coplanar(plane: Plane, image: SiteImage) -> bool:
    if image.plane is None or not np.allclose(np.abs(plane.normal @ image.plane.normal), 1, atol=1e-4):
        return False
    return bool(abs(image.plane.to_pixels(plane.position[None])[0, 2]) < 0.1)
