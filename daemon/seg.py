"""Findings → Segmentation (PS3.3 A.51, C.8.20) on the source grid, one segment per finding."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from daemon import codes
from daemon.encoding import finish, identity, making, pixel_measures, to_bytes
from daemon.errors import EncodeError
from daemon.findings import Finding
from daemon.profiles import Profile
from daemon.results import Analysis, Job, ResultObject, SegmentReference
from daemon.source import Source, open_source

SERIES_NUMBER = 9001
# Above so many frames a viewer may refuse an object that keeps its empty frames (Weasis: 400).
MAXIMUM_KEPT_FRAMES = 400


def encode_seg(
    analysis: Analysis, job: Job, *, profile: Profile = Profile(), series_number: int = SERIES_NUMBER
) -> tuple[ResultObject, ...]:
    """Encode the findings of one frame group.

    Parameters
    ----------
    analysis
        Findings on the source grid.
    job
        Gives every date and UID, so that a repeat gives the same bytes.
    profile
        Of the destinations that get it; where two profiles make the same object it has the same UID.
    series_number
        Of the SEG's series.

    Returns
    -------
    Nothing without findings, or where the profile wants none; one object for frames in space; else
    one single-frame object, in a series of its own, per frame with findings: PS3.3 C.7.6.17 allows no
    more without a frame of reference. A plane that the profile assumes is in one of its own per object.

    Raises
    ------
    EncodeError
        If the source cannot be read, or the object would not be safe to display.
    """
    if not analysis.findings or profile.seg == "none":
        return ()
    source = open_source(analysis.group)
    if source.is_in_space:
        every = range(len(analysis.group.frames))
        return (_encode(analysis, job, source, every, analysis.findings, profile, series_number),)
    frames = sorted({finding.origin[0] for finding in analysis.findings})
    objects = []
    for i in frames:
        here = [finding for finding in analysis.findings if finding.origin[0] == i]
        place = source
        if profile.projection == "plane":
            place = source.on_planes(job.uid(f"seg-frame-of-reference-{i}", analysis))
        objects.append(_encode(analysis, job, place, range(i, i + 1), here, profile, series_number))
    return tuple(objects)


def label_map(analysis: Analysis, frames: range, findings: Sequence[Finding]) -> NDArray[np.uint8]:
    """Paint findings into one label map, the strongest on top.

    Parameters
    ----------
    analysis
        Gives the grid.
    frames
        Which frames of the group.
    findings
        Label n is the n-th of these; at most 255.

    Returns
    -------
    (frames, rows, columns) uint8.
    """
    labels = np.zeros((len(frames), analysis.group.rows, analysis.group.columns), dtype=np.uint8)
    for label in range(len(findings), 0, -1):
        finding = findings[label - 1]
        f, r, c = finding.origin
        depth, height, width = finding.mask.shape
        first, last = max(f, frames.start), min(f + depth, frames.stop)
        crop = labels[first - frames.start : last - frames.start, r : r + height, c : c + width]
        crop[finding.mask[first - f : last - f]] = label
    return labels


def _encode(
    analysis: Analysis,
    job: Job,
    source: Source,
    frames: range,
    findings: Sequence[Finding],
    profile: Profile,
    series_number: int,
) -> ResultObject:
    in_space = source.is_in_space
    suffix = seg_variant(analysis, profile) + ("" if analysis.group.is_in_space else f"-{frames.start}")
    version = job.algorithm_version(analysis)
    kind, keep = _form(analysis, profile)
    with making("SEG"):
        seg = Segmentation(
            source_images=[source.stand_in(i, in_space=in_space) for i in frames],
            pixel_array=label_map(analysis, frames, findings),
            segmentation_type=kind.upper(),
            fractional_type="OCCUPANCY",
            max_fractional_value=1,
            segment_descriptions=_descriptions(findings, job, version, source),
            **identity(job, analysis, source, "seg", series_number, suffix),
            pixel_measures=pixel_measures(source) if in_space else None,
            omit_empty_frames=not keep,
            content_label="ANOMALY",
            content_description="Anomaly findings (research)",
            content_qualification="RESEARCH",
            coding_schemes=[codes.private_scheme()],
            series_description="Anomaly findings (research)",
        )
    if kind == "labelmap":
        _hide_background(seg)
    _complete(seg, source, job, analysis, suffix)
    _check(seg, source)
    return ResultObject(
        sop_class_uid=str(seg.SOPClassUID),
        sop_instance_uid=str(seg.SOPInstanceUID),
        series_instance_uid=str(seg.SeriesInstanceUID),
        content=to_bytes(seg),
        segments=_segments(seg, findings),
    )


def seg_variant(analysis: Analysis, profile: Profile) -> str:
    """What tells this profile's SEG from another's: "" for binary with its empty frames, part of the UIDs."""
    if profile.seg == "none":
        return "-none"
    kind, keep = _form(analysis, profile)
    place = "-plane" if profile.projection == "plane" and not analysis.group.is_in_space else ""
    return place if kind == "binary" and keep else f"-{kind}-{'keep' if keep else 'omit'}{place}"


def _form(analysis: Analysis, profile: Profile) -> tuple[str, bool]:
    """SegmentationType, and whether empty frames are kept."""
    group = analysis.group
    frames = len(group.frames) * len(analysis.findings)
    return profile.seg_type(group.rows, group.columns), (
        profile.empty_frames == "keep" and frames <= MAXIMUM_KEPT_FRAMES
    )


def _descriptions(
    findings: Sequence[Finding], job: Job, version: str, source: Source
) -> list[SegmentDescription]:
    """Segment descriptions (PS3.3 C.8.20.4), each with its own colour."""
    algorithm = AlgorithmIdentificationSequence(
        name=job.algorithm_name,
        family=codes.ARTIFICIAL_INTELLIGENCE,
        version=version,
        source=job.manufacturer,
    )
    regions = source.header.get("AnatomicRegionSequence")
    descriptions = []
    for number, finding in enumerate(findings, start=1):
        description = SegmentDescription(
            segment_number=number,
            segment_label=f"{finding.tracking_id} (score {finding.peak:.2f})"[:64],
            segmented_property_category=codes.ABNORMAL_STRUCTURE,
            segmented_property_type=codes.LESION,
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
            tracking_uid=finding.tracking_uid,
            tracking_id=finding.tracking_id,
            display_color=CIELabColor.from_rgb(*colour(finding.number)),
        )
        if regions:
            description.AnatomicRegionSequence = regions
        descriptions.append(description)
    return descriptions


def colour(number: int) -> tuple[int, int, int]:
    """Colour of a finding's number as 8-bit RGB: red first, neighbours far apart in hue."""
    hue = (number - 1) * 0.381966 % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def _complete(seg: Segmentation, source: Source, job: Job, analysis: Analysis, suffix: str) -> None:
    """Set what highdicom leaves out or draws at random."""
    source.restore(seg)
    finish(seg, job, source.timezone_offset)
    seg.BurnedInAnnotation = "NO"
    organization = job.uid(f"seg-dimensions{suffix}", analysis)
    seg.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    for index in seg.DimensionIndexSequence:
        index.DimensionOrganizationUID = organization
    if analysis.group.body_part:
        seg.BodyPartExamined = analysis.group.body_part
    if source.header.get("Laterality"):
        seg.Laterality = source.header.Laterality
    if not source.is_in_space:
        # Type 2C without ImageOrientationPatient (PS3.3 C.7.6.1).
        seg.PatientOrientation = source.header.get("PatientOrientation")


def _hide_background(seg: Segmentation) -> None:
    """Leave the background undescribed: it is the padding value, and viewers would shift every colour."""
    if seg.get("PixelPaddingValue") == 0:
        seg.SegmentSequence = [item for item in seg.SegmentSequence if item.SegmentNumber != 0]


def _segments(seg: Segmentation, findings: Sequence[Finding]) -> tuple[SegmentReference, ...]:
    """Frames of each segment that are not empty, in the order of the SEG."""
    frames: dict[int, list[int]] = {number: [] for number in range(1, len(findings) + 1)}
    shared = seg.SharedFunctionalGroupsSequence[0]
    planes = _planes(seg)
    for i, item in enumerate(seg.PerFrameFunctionalGroupsSequence):
        if seg.SegmentationType == "LABELMAP":
            numbers = [int(value) for value in np.unique(planes[i]) if value]
        else:
            holder = item if "SegmentIdentificationSequence" in item else shared
            number = int(holder.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
            numbers = [number] if planes[i].any() else []
        for number in numbers:
            frames[number].append(i + 1)
    return tuple(
        SegmentReference(finding.tracking_uid, number, tuple(frames[number]))
        for number, finding in enumerate(findings, start=1)
    )


def _planes(seg: Segmentation) -> NDArray[np.uint8]:
    """Pixels as (frames, rows × columns)."""
    pixels = np.frombuffer(seg.PixelData, dtype=np.uint8)
    if seg.BitsAllocated == 1:
        pixels = np.unpackbits(pixels, bitorder="little")
    count, size = int(seg.NumberOfFrames), int(seg.Rows) * int(seg.Columns)
    return pixels[: count * size].reshape(count, size)


def _check(seg: Segmentation, source: Source) -> None:
    """Refuse an object that a viewer would lay on the wrong slices, or show in the wrong space."""
    expected = source.group.frame_of_reference_uid if source.is_in_space else None
    if seg.get("FrameOfReferenceUID") != expected:
        raise EncodeError("the SEG's frame of reference is not the source's")
    if not seg.get("ReferencedSeriesSequence"):
        raise EncodeError("the SEG does not reference its source series")
    known = {frame.sop_instance_uid for frame in source.group.frames}
    for item in seg.PerFrameFunctionalGroupsSequence:
        derivation = item.get("DerivationImageSequence") or [Dataset()]
        images = derivation[0].get("SourceImageSequence") or ()
        if not images or any(image.ReferencedSOPInstanceUID not in known for image in images):
            raise EncodeError("a frame of the SEG does not reference its source frame")
