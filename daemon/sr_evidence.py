"""Instances that an SR refers to, in the form that highdicom's constructor wants."""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage

from daemon.header import TYPE_2
from daemon.results import Analysis, Job, ResultObject
from daemon.source import SECONDARY_CAPTURE_STORAGE


def predecessors(job: Job) -> list[Dataset]:
    """Name the SRs of the last revision as Predecessor Documents (PS3.3 C.17.2.3).

    Parameters
    ----------
    job
        Whose predecessors.

    Returns
    -------
    One dataset per SR; other objects are no documents.
    """
    items = []
    for predecessor in job.predecessors:
        if predecessor.sop_class_uid == Comprehensive3DSRStorage:
            items.append(
                _instance(
                    job,
                    predecessor.sop_class_uid,
                    predecessor.sop_instance_uid,
                    predecessor.series_instance_uid,
                )
            )
    return items


def _instance(job: Job, sop_class_uid: str, sop_instance_uid: str, series_instance_uid: str) -> Dataset:
    ds = Dataset()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = job.study_instance_uid, series_instance_uid
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class_uid, sop_instance_uid
    return ds


def evidence_of(
    header: Dataset, analyses: Sequence[Analysis], segs: Sequence[ResultObject], job: Job
) -> tuple[list[Dataset], dict[str, str]]:
    """List the evidence for the constructor, and the true SOP class of each instance.

    The first item gives the patient's attributes: blank here, restored later, and of a class that
    highdicom knows, because it looks up the attributes to copy by class.

    Parameters
    ----------
    header
        Of the first instance.
    analyses, segs
        Whose instances are evidence.
    job
        Gives the study.

    Returns
    -------
    One dataset per instance, and SOP class by SOP Instance UID.
    """
    first = _blank(header)
    first.StudyInstanceUID = job.study_instance_uid
    evidence = {str(first.SOPInstanceUID): first}
    classes = {str(first.SOPInstanceUID): str(header.get("SOPClassUID", SECONDARY_CAPTURE_STORAGE))}
    for analysis in analyses:
        for frame in analysis.group.frames:
            classes[frame.sop_instance_uid] = frame.sop_class_uid
            if frame.sop_instance_uid not in evidence:
                evidence[frame.sop_instance_uid] = _instance(
                    job, frame.sop_class_uid, frame.sop_instance_uid, analysis.group.series_instance_uid
                )
    for seg in segs:
        evidence[seg.sop_instance_uid] = _instance(
            job, seg.sop_class_uid, seg.sop_instance_uid, seg.series_instance_uid
        )
    return list(evidence.values()), classes


def _blank(header: Dataset) -> Dataset:
    """Stand-in for the instance of a header, without any of the patient's attributes."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = SECONDARY_CAPTURE_STORAGE, header.SOPInstanceUID
    ds.SeriesInstanceUID = header.SeriesInstanceUID
    for keyword in TYPE_2:
        setattr(ds, keyword, None)
    return ds
