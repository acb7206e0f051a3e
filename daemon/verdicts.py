"""What people said of findings: accepted, rejected or corrected; the newest verdict of each counts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from daemon.tables_web import VerdictRow

Verdict = Literal["accept", "reject", "correct"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True, slots=True)
class VerdictRecord:
    """One verdict; ``correction`` is JSON, frame index → polygons of [column, row], or empty."""

    study_instance_uid: str
    tracking_uid: str
    given_at: float
    given_by: str
    verdict: str
    correction: str
    revision: int
    group_key: str
    series_instance_uid: str
    bundle_version: str
    peak: float


class Verdicts:
    """The table of verdicts.

    Parameters
    ----------
    reader, writer
        The database, to read with and to write with.
    """

    def __init__(self, reader: Engine, writer: Engine) -> None:
        self._reader, self._writer = reader, writer

    def give(self, verdict: VerdictRecord) -> None:
        """Record a verdict; earlier ones on the same finding stay as history."""
        with Session(self._writer) as session, session.begin():
            session.merge(VerdictRow(**{f.name: getattr(verdict, f.name) for f in fields(verdict)}))

    def newest(self, study: str | None = None) -> dict[str, VerdictRecord]:
        """Tracking UID → newest verdict, of one study if it is given; oldest first."""
        query = select(VerdictRow).order_by(VerdictRow.given_at)
        if study is not None:
            query = query.where(VerdictRow.study_instance_uid == study)
        with Session(self._reader) as session:
            rows = session.scalars(query)
            return {
                row.tracking_uid: VerdictRecord(
                    **{f.name: getattr(row, f.name) for f in fields(VerdictRecord)}
                )
                for row in rows
            }
