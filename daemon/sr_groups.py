"""Measurement groups of the SR: of one finding (TID 1410, 1411), and of a series as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    CoordinatesForMeasurement,
    ImageRegion,
    Measurement,
    MeasurementsAndQualitativeEvaluations,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    ReferencedSegment,
    ReferencedSegmentationFrame,
    SourceImageForMeasurementGroup,
    SourceImageForRegion,
    SourceImageForSegmentation,
    SourceSeriesForSegmentation,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from numpy.typing import NDArray

from daemon import codes
from daemon.findings import Finding
from daemon.outline import outline
from daemon.results import Analysis, Job, ResultObject, SegmentReference
from daemon.source import SECONDARY_CAPTURE_STORAGE, Source

_MOST_CORNERS = 8_191

MeasurementGroup = (
    PlanarROIMeasurementsAndQualitativeEvaluations
    | VolumetricROIMeasurementsAndQualitativeEvaluations
    | MeasurementsAndQualitativeEvaluations
)


def finding_groups(
    finding: Finding,
    analysis: Analysis,
    source: Source,
    segs: Sequence[ResultObject],
    job: Job,
    coordinates: bool = True,
) -> list[MeasurementGroup]:
    """Measurement groups of one finding, tied by its tracking UID: its outline and its segment.

    TID 1410 and 1411 allow a group either coordinates or a segment. A viewer that knows no segments
    needs the outline, and OHIF, which joins groups by tracking UID, shows no SR at all without one.

    Parameters
    ----------
    finding
        Of `analysis`.
    analysis, source
        Where it is.
    segs
        The SEGs; the finding is looked up by its tracking UID.
    job
        Which software.
    coordinates
        False: without outlines.

    Returns
    -------
    TID 1410 with the outline and size of the largest slice; and, where there is a SEG, TID 1411
    (in a volume) or TID 1410 (in a single image) with the segment, score and volume. With neither,
    TID 1501 with the image of the largest slice.
    """
    reference = _find_segment(segs, finding.tracking_uid)
    context = _context(finding, analysis, job)
    scores, size = [*_scores(finding), *_volume(finding)], _plane_size(finding)
    if reference is None:
        one = _outlined if coordinates else _imaged
        return [one(finding, source, context, [*scores, *size])]
    if not coordinates:
        return [_segmented(finding, source, context, [*scores, *size], *reference)]
    outlined = _outlined(finding, source, context, size)
    return [
        outlined,
        _segmented(finding, source, _context(finding, analysis, job), scores, *reference),
    ]


def _segmented(
    finding: Finding,
    source: Source,
    context: dict[str, Any],
    measurements: list[Measurement],
    seg: ResultObject,
    segment: SegmentReference,
) -> MeasurementGroup:
    if source.group.is_volume and source.is_in_space:
        return VolumetricROIMeasurementsAndQualitativeEvaluations(
            referenced_segment=_segment(seg, segment, source), measurements=measurements, **context
        )
    return PlanarROIMeasurementsAndQualitativeEvaluations(
        referenced_segment=_segmentation_frame(seg, segment, finding, source),
        measurements=measurements,
        **context,
    )


def _imaged(
    finding: Finding, source: Source, context: dict[str, Any], measurements: list[Measurement]
) -> MeasurementsAndQualitativeEvaluations:
    """What has neither outline nor segment is said of the image of its largest slice (TID 1501)."""
    frame = source.group.frames[finding.largest_frame]
    image = SourceImageForMeasurementGroup(
        SECONDARY_CAPTURE_STORAGE, frame.sop_instance_uid, source.frame_numbers(frame)
    )
    return MeasurementsAndQualitativeEvaluations(measurements=measurements, source_images=[image], **context)


def _context(finding: Finding, analysis: Analysis, job: Job) -> dict[str, Any]:
    """What every measurement group of a finding says alike."""
    return {
        "tracking_identifier": TrackingIdentifier(finding.tracking_uid, finding.tracking_id),
        "finding_type": codes.LESION,
        "finding_category": codes.ABNORMAL_STRUCTURE,
        "algorithm_id": AlgorithmIdentification(
            name=job.algorithm_name,
            version=job.algorithm_version(analysis),
            manufacturer=job.manufacturer,
            family=codes.ARTIFICIAL_INTELLIGENCE,
        ),
    }


def _outlined(
    finding: Finding, source: Source, context: dict[str, Any], measurements: list[Measurement]
) -> PlanarROIMeasurementsAndQualitativeEvaluations:
    return PlanarROIMeasurementsAndQualitativeEvaluations(
        referenced_region=_region(finding, source), measurements=measurements or None, **context
    )


def series_measurement(analysis: Analysis, source: Source, coordinates: bool = True) -> Measurement:
    """Measure a frame group as a whole: its highest slice score, inferred from where it is.

    Its coordinates are a mark in the corner of an image, that of the strongest finding, else that with
    the highest score: OHIF stops at a measurement group without any and shows nothing of the whole SR.
    It writes the text of a group at the right of its coordinates: of the image's border it would be
    outside the picture, of the finding's outline on top of the finding's own text.

    Parameters
    ----------
    analysis, source
        The frame group.
    coordinates
        False: without.

    Returns
    -------
    The highest slice score; the number of scored images, 0, where there is no score.
    """
    scored = [(score, -i) for i, score in enumerate(analysis.slice_scores) if score is not None]
    places = [_place(analysis, source, -max(scored)[1] if scored else 0)] if coordinates else None
    if not scored:
        return Measurement(codes.IMAGES_SCORED, 0, codes.IMAGES, referenced_coordinates=places)
    score = round(max(scored)[0], 4)
    return Measurement(codes.ANOMALY_SCORE, score, codes.NO_UNITS, referenced_coordinates=places)


def _place(analysis: Analysis, source: Source, highest: int) -> CoordinatesForMeasurement:
    """Upper left corner of the frame of the strongest finding, or of that with the highest score."""
    height, width = max(source.group.rows // 8, 1), max(source.group.columns // 64, 1)
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height], [0, 0]], dtype=np.float64)
    frame = source.group.frames[analysis.findings[0].largest_frame if analysis.findings else highest]
    return CoordinatesForMeasurement(
        graphic_type="POLYLINE",
        graphic_data=corners,
        source_image=SourceImageForRegion(
            frame.sop_class_uid, frame.sop_instance_uid, source.frame_numbers(frame)
        ),
    )


def _find_segment(
    segs: Sequence[ResultObject], tracking_uid: str
) -> tuple[ResultObject, SegmentReference] | None:
    for seg in segs:
        for segment in seg.segments:
            if segment.tracking_uid == tracking_uid and segment.frame_numbers:
                return seg, segment
    return None


def _segment(seg: ResultObject, segment: SegmentReference, source: Source) -> ReferencedSegment:
    """Segment of a volume; a reference has frames or segments, not both (PS3.3 10.3)."""
    return ReferencedSegment(
        sop_class_uid=seg.sop_class_uid,
        sop_instance_uid=seg.sop_instance_uid,
        segment_number=segment.segment_number,
        source_series=SourceSeriesForSegmentation(source.group.series_instance_uid),
    )


def _segmentation_frame(
    seg: ResultObject, segment: SegmentReference, finding: Finding, source: Source
) -> ReferencedSegmentationFrame:
    """Frame of a single-frame SEG; a reference has frames or segments, not both (PS3.3 10.3)."""
    frame = source.group.frames[finding.largest_frame]
    reference = ReferencedSegmentationFrame(
        sop_class_uid=seg.sop_class_uid,
        sop_instance_uid=seg.sop_instance_uid,
        frame_number=segment.frame_numbers[0],
        segment_number=segment.segment_number,
        source_image=SourceImageForSegmentation(
            frame.sop_class_uid, frame.sop_instance_uid, source.frame_numbers(frame)
        ),
    )
    del reference[0].ReferencedSOPSequence[0].ReferencedSegmentNumber
    return reference


def _region(finding: Finding, source: Source) -> ImageRegion:
    """Outline of the finding's largest slice as an SCOORD polyline (PS3.3 C.18.6)."""
    frame = source.group.frames[finding.largest_frame]
    # A class that highdicom does not know would raise; the caller puts the true class back.
    return ImageRegion(
        graphic_type="POLYLINE",
        graphic_data=_corners(finding),
        source_image=SourceImageForRegion(
            SECONDARY_CAPTURE_STORAGE, frame.sop_instance_uid, source.frame_numbers(frame)
        ),
    )


def _corners(finding: Finding) -> NDArray[np.float64]:
    """Outline of the largest slice on the full grid; traced in the crop, then moved.

    An outline of more corners than Graphic Data can hold (two FL each in a length of 16 bits, PS3.5 7.1.2) is
    that of ever coarser pixels, which cover the finding.
    """
    mask = finding.mask[finding.largest_frame - finding.origin[0]]
    pixel, corners = 1, outline(mask)
    while len(corners) > _MOST_CORNERS:
        pixel *= 2
        corners = np.minimum(outline(_coarse(mask, pixel)) * pixel, mask.shape[::-1])
    return corners + np.array([finding.origin[2], finding.origin[1]], dtype=np.float64)


def _coarse(mask: NDArray[np.bool_], pixel: int) -> NDArray[np.bool_]:
    """Mask of pixels ``pixel`` times as large that have any part of it."""
    rows, columns = (-(-side // pixel) * pixel for side in mask.shape)
    padded = np.zeros((rows, columns), dtype=bool)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    blocks = padded.reshape(rows // pixel, pixel, columns // pixel, pixel)
    return np.asarray(blocks.any(axis=(1, 3)))


def _scores(finding: Finding) -> list[Measurement]:
    """Peak and mean score (private code, derivation of CID 3488)."""
    return [_score(finding.peak, codes.MAXIMUM), _score(finding.mean, codes.MEAN)]


def _volume(finding: Finding) -> list[Measurement]:
    if finding.volume_mm3 is None:
        return []
    volume = _rounded(finding.volume_mm3)
    return [Measurement(codes.VOLUME, volume, codes.MM3, method=codes.VOXEL_SUMMATION)]


def _plane_size(finding: Finding) -> list[Measurement]:
    """Area of the largest slice and largest diameter in a slice (TID 1419)."""
    items = []
    if finding.area_mm2 is not None:
        items.append(Measurement(codes.AREA, _rounded(finding.area_mm2), codes.MM2))
    if finding.diameter_mm is not None:
        items.append(Measurement(codes.DIAMETER, _rounded(finding.diameter_mm), codes.MM))
    return items


def _score(value: float, derivation: CodedConcept) -> Measurement:
    return Measurement(codes.ANOMALY_SCORE, round(value, 4), codes.NO_UNITS, derivation=derivation)


def _rounded(value: float) -> float:
    """Six significant digits: fits DS and hides no size."""
    return float(f"{value:.6g}")
