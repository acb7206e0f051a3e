"""Findings → Comprehensive 3D SR, TID 1500 (PS3.16): one document per study revision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from highdicom.base_content import ContributingEquipment
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    Comprehensive3DSR,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    LanguageOfContentItemAndDescendants,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.uid import Comprehensive3DSRStorage, ExplicitVRLittleEndian

from daemon import codes
from daemon.encoding import equipment, finish, to_bytes
from daemon.errors import EncodeError
from daemon.header import read_header, restore_attributes
from daemon.results import RESEARCH_USE, Analysis, Job, ResultObject
from daemon.source import Source, open_source, reference_items
from daemon.sr_evidence import evidence_of, predecessors
from daemon.sr_groups import MeasurementGroup, finding_groups, series_measurement
from daemon.sr_library import image_library
from daemon.study import Refusal
from daemon.uids import result_uid

SERIES_NUMBER = 9000


def encode_sr(
    analyses: Sequence[Analysis],
    segs: Sequence[ResultObject],
    job: Job,
    *,
    refusals: Sequence[Refusal] = (),
    template: Path | None = None,
    series_number: int = SERIES_NUMBER,
    coordinates: bool = True,
    variant: str = "",
) -> ResultObject:
    """Encode what was found, what was not, and what could not be looked at.

    Parameters
    ----------
    analyses
        One per frame group; may be empty if nothing of the study could be scored.
    segs
        The SEGs of these analyses; a finding without one is described by its outline alone.
    job
        Gives every date and UID, so that a repeat gives the same bytes.
    refusals
        What was not scored; their reasons are counted in a comment.
    template
        Any instance of the study, read where there is no analysis.
    series_number
        Of the SR's series.
    coordinates
        With outlines (SCOORD), or with references to segments and images alone.
    variant
        What tells this SR from another of the same analyses; part of its UIDs.

    Returns
    -------
    The SR.

    Raises
    ------
    EncodeError
        If there is neither an analysis nor a template, or a source cannot be read.
    """
    sources = [open_source(analysis.group) for analysis in analyses]
    if not sources and template is None:
        raise EncodeError("a study without scorable images needs a template instance for its SR")
    header = sources[0].header if sources or template is None else read_header(template)
    evidence, classes = evidence_of(header, analyses, segs, job)
    report = _report(analyses, sources, segs, job, refusals, coordinates)
    timezone = str(header.get("TimezoneOffsetFromUTC", "") or "")
    created = job.local_time(timezone)
    try:
        sr = Comprehensive3DSR(
            evidence=evidence,
            content=report[0],
            series_instance_uid=_uid(f"sr-series{variant}", analyses, job, refusals),
            series_number=series_number,
            sop_instance_uid=_uid(f"sr{variant}", analyses, job, refusals),
            instance_number=1,
            manufacturer=job.manufacturer,
            manufacturer_model_name=job.algorithm_name,
            software_versions=_algorithm_version(analyses, job),
            device_serial_number=job.device_serial_number,
            is_complete=True,
            is_verified=False,
            is_final=False,
            previous_versions=predecessors(job) or None,
            content_qualification="RESEARCH",
            coding_schemes=[codes.private_scheme()],
            series_description="Anomaly report (research)",
            transfer_syntax_uid=ExplicitVRLittleEndian,
            contributing_equipment=_equipment(analyses, job),
            content_date=created.date(),
            content_time=created.time(),
            series_date=created.date(),
            series_time=created.time(),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise EncodeError("highdicom refused to make an SR of this study") from error
    restore_attributes(header, sr)
    for item in reference_items(sr):
        item.ReferencedSOPClassUID = classes.get(
            str(item.ReferencedSOPInstanceUID), item.ReferencedSOPClassUID
        )
    finish(sr, job, timezone)
    return ResultObject(
        sop_class_uid=str(Comprehensive3DSRStorage),
        sop_instance_uid=str(sr.SOPInstanceUID),
        series_instance_uid=str(sr.SeriesInstanceUID),
        content=to_bytes(sr),
    )


def _uid(kind: str, analyses: Sequence[Analysis], job: Job, refusals: Sequence[Refusal]) -> str:
    frames = (frame.sop_instance_uid for a in analyses for frame in a.group.frames)
    return result_uid(
        kind,
        study_instance_uid=job.study_instance_uid,
        group_key="\n".join(a.key for a in analyses),
        sop_instance_uids=[*frames, *(r.sop_instance_uid for r in refusals)],
        model="\n".join(a.model for a in analyses),
        parameters=f"{job.parameters} thresholds={[a.threshold for a in analyses]}",
        revision=job.revision,
    )


def _algorithm_version(analyses: Sequence[Analysis], job: Job) -> str:
    """Version of the one algorithm that ran, of the software alone where several did or none."""
    versions = {job.algorithm_version(a) for a in analyses}
    return versions.pop() if len(versions) == 1 else job.software_version


def _equipment(analyses: Sequence[Analysis], job: Job) -> list[ContributingEquipment]:
    by_version = {a.bundle_version: equipment(job, a) for a in analyses}
    return [by_version[version] for version in sorted(by_version)]


def _report(
    analyses: Sequence[Analysis],
    sources: Sequence[Source],
    segs: Sequence[ResultObject],
    job: Job,
    refusals: Sequence[Refusal],
    coordinates: bool,
) -> MeasurementReport:
    """TID 1500 with a compact image library: descriptors once per group, not per image."""
    groups: list[MeasurementGroup] = []
    for analysis, source in zip(analyses, sources, strict=True):
        remarks = () if groups else (RESEARCH_USE, *_reasons(refusals))
        groups.append(_series_group(analysis, source, job, remarks, coordinates))
        for finding in analysis.findings:
            groups.extend(finding_groups(finding, analysis, source, segs, job, coordinates))
    if not groups:
        groups.append(_nothing_scored(job, refusals))
    modalities = dict.fromkeys(codes.procedure(a.group.modality) for a in analyses)
    report = MeasurementReport(
        observation_context=_observer(analyses, job),
        procedure_reported=list(modalities) or [codes.IMAGING_PROCEDURE],
        imaging_measurements=groups,
        title=codes.IMAGING_MEASUREMENT_REPORT,
        language_of_content_item_and_descendants=LanguageOfContentItemAndDescendants(codes.ENGLISH_US),
    )
    if sources:
        content = report[0].ContentSequence
        content.insert(len(content) - 1, image_library(sources))
    return report


def _observer(analyses: Sequence[Analysis], job: Job) -> ObservationContext:
    """Device observer (TID 1004)."""
    versions = ",".join(sorted({a.bundle_version for a in analyses}))
    return ObservationContext(
        observer_device_context=ObserverContext(
            observer_type=codes.DEVICE,
            observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
                uid=job.algorithm_device_uid(versions),
                manufacturer_name=job.manufacturer,
                model_name=job.algorithm_name,
                serial_number=job.device_serial_number,
            ),
        )
    )


def _series_group(
    analysis: Analysis, source: Source, job: Job, remarks: Iterable[str], coordinates: bool
) -> MeasurementsAndQualitativeEvaluations:
    """TID 1501: what is said of a whole frame group."""
    if not analysis.scored:
        lesion, normality = codes.UNDETERMINED, codes.NORMALITY_UNDETERMINED
    elif analysis.findings:
        lesion, normality = codes.PRESENT, codes.ABNORMAL
    elif analysis.scored < analysis.total:
        # Nothing was found where it looked; of the rest nothing can be said.
        lesion, normality = codes.UNDETERMINED, codes.NORMALITY_UNDETERMINED
    else:
        lesion, normality = codes.ABSENT, codes.NORMAL
    identifier = f"Series {source.group.modality}".strip()
    group = _statement(
        job.uid("sr-group", analysis),
        identifier,
        lesion,
        normality,
        _algorithm(analysis, job),
        [series_measurement(analysis, source, coordinates)],
    )
    _comment(group, [*remarks, _scored(analysis), *analysis.group.notes])
    return group


def _algorithm(analysis: Analysis, job: Job) -> AlgorithmIdentification:
    """Algorithm identification (TID 4019) with the bundle's hash."""
    return AlgorithmIdentification(
        name=job.algorithm_name,
        version=job.algorithm_version(analysis),
        manufacturer=job.manufacturer,
        family=codes.ARTIFICIAL_INTELLIGENCE,
        parameters=[
            f"bundle={analysis.bundle_name}",
            f"bundle_version={analysis.bundle_version}",
            f"backbone={analysis.backbone_name}",
            f"threshold={analysis.threshold:.6g}",
            f"slice_threshold={analysis.slice_threshold:.6g}",
        ],
    )


def _statement(
    uid: str,
    identifier: str,
    lesion: CodedConcept,
    normality: CodedConcept,
    algorithm: AlgorithmIdentification | None,
    measurements: list[Measurement],
) -> MeasurementsAndQualitativeEvaluations:
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=uid, identifier=identifier),
        algorithm_id=algorithm,
        qualitative_evaluations=[
            QualitativeEvaluation(codes.LESION, lesion),
            QualitativeEvaluation(codes.NORMALITY, normality),
        ],
        measurements=measurements or None,
    )


def _nothing_scored(job: Job, refusals: Sequence[Refusal]) -> MeasurementsAndQualitativeEvaluations:
    """TID 1501 for a study of which nothing could be scored."""
    group = _statement(
        _uid("sr-group", (), job, refusals),
        "Study",
        codes.UNDETERMINED,
        codes.NORMALITY_UNDETERMINED,
        None,
        [],
    )
    _comment(group, [RESEARCH_USE, "Nothing of this study could be scored", *_reasons(refusals)])
    return group


def _comment(group: ContentSequence, sentences: Iterable[str]) -> None:
    """Add one comment (121106, DCM); own text is ASCII, right in any character set."""
    text = ". ".join(sentences).replace("°", " degrees").encode("ascii", "replace").decode("ascii")
    group[0].ContentSequence.append(
        TextContentItem(name=codes.COMMENT, value=f"{text}.", relationship_type="CONTAINS")
    )


def _scored(analysis: Analysis) -> str:
    scores = [score for score in analysis.slice_scores if score is not None]
    highest = f", highest slice score {max(scores):.3f}" if scores else ""
    return f"Scored {analysis.scored} of {analysis.total} images{highest}"


def _reasons(refusals: Sequence[Refusal]) -> list[str]:
    """How often each reason for not scoring was met; reasons hold no patient data."""
    counts = Counter(refusal.reason.rstrip(".") for refusal in refusals)
    return [f"Not scored: {count} x {reason}" for reason, count in sorted(counts.items())]
