"""Corrections that came back over DICOM: a SEG, SR or RTSTRUCT of a received study that we did not make.

They are stored like any instance, matched to the study by its UID and to findings by their tracking
UID (PS3.16 TID 300, PS3.3 C.8.20.2), and offered to training with the page's verdicts. Until they were
exported, retention leaves the study alone. What came with the images, such as an ultrasound device's own
report, a planning RTSTRUCT or another vendor's SEG, is nobody's word on our findings.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, Select, exists, func, or_, select, union
from sqlalchemy.orm import Session, aliased

from daemon.attributes import attributes
from daemon.tables import InstanceRow, ResultRow
from daemon.tables_web import FeedbackExportRow, VerdictRow

# What can outline a lesion and come from a person's workstation.
ANNOTATIONS = {
    "1.2.840.10008.5.1.4.1.1.66.4": "SEG",
    "1.2.840.10008.5.1.4.1.1.66.7": "SEG",
    "1.2.840.10008.5.1.4.1.1.88.22": "SR",
    "1.2.840.10008.5.1.4.1.1.88.33": "SR",
    "1.2.840.10008.5.1.4.1.1.88.34": "SR",
    "1.2.840.10008.5.1.4.1.1.481.3": "RTSTRUCT",
}


@dataclass(frozen=True, slots=True)
class Correction:
    """One annotation that came back."""

    study_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    path: str
    received_at: float
    calling_ae: str

    @property
    def kind(self) -> str:
        """``SEG``, ``SR`` or ``RTSTRUCT``."""
        return ANNOTATIONS[self.sop_class_uid]


class Corrections:
    """What came back, and which feedback was exported.

    Parameters
    ----------
    reader, writer
        The database, to read with and to write with.
    """

    def __init__(self, reader: Engine, writer: Engine) -> None:
        self._reader, self._writer = reader, writer

    def received(self, study: str | None = None) -> list[Correction]:
        """Every annotation that is not our own result come back, the last one first."""
        query = _foreign(
            select(
                InstanceRow.study_instance_uid,
                InstanceRow.sop_instance_uid,
                InstanceRow.sop_class_uid,
                InstanceRow.path,
                InstanceRow.received_at,
                InstanceRow.calling_ae,
            )
        ).order_by(InstanceRow.received_at.desc(), InstanceRow.version.desc())
        if study is not None:
            query = query.where(InstanceRow.study_instance_uid == study)
        found: dict[str, Correction] = {}
        with Session(self._reader) as session:
            for row in session.execute(query):
                correction = Correction(*row)
                found.setdefault(correction.sop_instance_uid, correction)  # the newest version counts
        return list(found.values())

    def exported(self) -> dict[str, float]:
        """Study → when its feedback was exported."""
        query = select(FeedbackExportRow.study_instance_uid, FeedbackExportRow.exported_at)
        with Session(self._reader) as session:
            return dict(session.execute(query).tuples().all())

    def note_export(self, studies: Iterable[str], at: float) -> None:
        """Note that the feedback on these studies until then was exported, or said nothing."""
        with Session(self._writer) as session, session.begin():
            for study in studies:
                session.merge(FeedbackExportRow(study_instance_uid=study, exported_at=at))

    def waiting(self) -> int:
        """How many studies have feedback that was not exported."""
        with Session(self._reader) as session:
            return session.scalar(select(func.count()).select_from(waiting_for_export().subquery())) or 0


def waiting_for_export() -> Select[tuple[str]]:
    """Studies with a verdict or correction that is newer than the last export."""
    given = select(VerdictRow.study_instance_uid, VerdictRow.given_at.label("at"))
    came = _foreign(select(InstanceRow.study_instance_uid, InstanceRow.received_at.label("at")))
    feedback = union(given, came).subquery()
    return (
        select(feedback.c.study_instance_uid)
        .distinct()
        .outerjoin(FeedbackExportRow, FeedbackExportRow.study_instance_uid == feedback.c.study_instance_uid)
        .where(or_(FeedbackExportRow.exported_at.is_(None), FeedbackExportRow.exported_at < feedback.c.at))
    )


def corrected_segments(path: Path) -> set[str]:
    """The tracking UIDs that a SEG names.

    Raises
    ------
    SpoolError
        The file is not there, or cannot be read within bounds.
    """
    with attributes(path, ("SegmentSequence",)) as ds:
        return {str(item.get("TrackingUID", "")) for item in ds.get("SegmentSequence") or ()} - {""}


def _foreign(query: Any) -> Any:
    """Annotations that came after what they can speak of: a result made of images that are still here."""
    image = aliased(InstanceRow)
    # Results of images that were pruned do not count: the study came again as a whole, reports included.
    of_what_is_here = exists().where(
        image.study_instance_uid == ResultRow.study_instance_uid, image.revision <= ResultRow.revision
    )
    result_before = exists().where(
        ResultRow.study_instance_uid == InstanceRow.study_instance_uid,
        or_(InstanceRow.revision.is_(None), InstanceRow.revision > ResultRow.revision),
        of_what_is_here,
    )
    return query.where(
        InstanceRow.sop_class_uid.in_(list(ANNOTATIONS)),
        InstanceRow.sop_instance_uid.not_in(select(ResultRow.sop_instance_uid)),
        result_before,
    )
