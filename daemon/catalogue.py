"""What the page asks of the database: studies page by page, counts and ages, figures for metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from sqlalchemy import Engine, Select, and_, case, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from daemon.pledges import not_committed
from daemon.records import ScoreCounts, ScoreRecord, StudyRecord, record_of
from daemon.tables import DeliveryRow, InstanceRow, ScoreRow, StudyRow

STATES = ("receiving", "stable", "scoring", "scored", "refused", "failed")
PAGE_SIZE = 50


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for among the studies; empty fields match everything.

    Parameters
    ----------
    text
        Part of the Study Instance UID, of the reason, or of a calling AE title.
    state
        Of the study.
    delivery
        A state that at least one delivery has.
    uncommitted
        Destinations of which at least one has not committed itself to what it got; None for all studies.
    modality
        That at least one scored series has.
    findings
        True: with at least one finding; False: scored and without.
    since, until
        Last received, seconds since the epoch.
    """

    text: str = ""
    state: str = ""
    delivery: str = ""
    uncommitted: tuple[str, ...] | None = None
    modality: str = ""
    findings: bool | None = None
    since: float | None = None
    until: float | None = None


@dataclass(frozen=True, slots=True)
class StudyLine:
    """One study of a list: its record, deliveries by state, findings and highest score in its revision."""

    study: StudyRecord
    deliveries: Mapping[str, int]
    findings: int | None
    maximum: float | None
    modalities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SeriesLine:
    """One received series: how many instances came, how many bytes, and when the last one did."""

    series_instance_uid: str
    instances: int
    size_bytes: int
    last_received: float
    calling_ae: str
    sop_class_uid: str
    path: str


class Catalogue:
    """Reads the index for the page.

    Parameters
    ----------
    engine
        To read with.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def studies(self, query: Query, page: int = 1, size: int = PAGE_SIZE) -> tuple[list[StudyLine], int]:
        """One page of the studies that match, last received first, and how many match in all."""
        matching = _matching(query)
        with Session(self._engine) as session:
            total = session.scalar(select(func.count()).select_from(matching.subquery())) or 0
            rows = session.scalars(
                matching.order_by(StudyRow.last_received.desc(), StudyRow.study_instance_uid)
                .limit(size)
                .offset(max(page - 1, 0) * size)
            )
            records = [record_of(StudyRecord, row) for row in rows]
            return self._lines(session, records), total

    def _lines(self, session: Session, records: list[StudyRecord]) -> list[StudyLine]:
        uids = [record.study_instance_uid for record in records]
        deliveries: dict[str, dict[str, int]] = {}
        counted = select(DeliveryRow.study_instance_uid, DeliveryRow.state, func.count()).group_by(
            DeliveryRow.study_instance_uid, DeliveryRow.state
        )
        for uid, state, count in session.execute(counted.where(DeliveryRow.study_instance_uid.in_(uids))):
            deliveries.setdefault(uid, {})[state] = count
        scores: dict[str, list[ScoreRow]] = {}
        for row in session.scalars(
            select(ScoreRow).where(ScoreRow.study_instance_uid.in_(uids), ~ScoreRow.shadow)
        ):
            scores.setdefault(row.study_instance_uid, []).append(row)
        lines = []
        for record in records:
            found = scores.get(record.study_instance_uid, [])
            last = max((s.revision for s in found), default=0)
            newest = [s for s in found if s.revision == last]
            lines.append(
                StudyLine(
                    record,
                    deliveries.get(record.study_instance_uid, {}),
                    sum(s.findings for s in newest) if newest else None,
                    max((s.maximum for s in newest), default=None),
                    tuple(sorted({s.modality for s in newest})),
                )
            )
        return lines

    def series(self, study: str) -> list[SeriesLine]:
        """The received series of a study, in order of arrival."""
        query = (
            select(
                InstanceRow.series_instance_uid,
                func.count(InstanceRow.sop_instance_uid.distinct()),
                func.sum(InstanceRow.size_bytes),
                func.max(InstanceRow.received_at),
                func.min(InstanceRow.calling_ae),
                func.min(InstanceRow.sop_class_uid),
                func.min(InstanceRow.path),
            )
            .where(InstanceRow.study_instance_uid == study)
            .group_by(InstanceRow.series_instance_uid)
            .order_by(func.min(InstanceRow.received_at))
        )
        with Session(self._engine) as session:
            return [SeriesLine(*row) for row in session.execute(query)]

    def first_paths(self, studies: Sequence[str]) -> dict[str, str]:
        """Study → the spool path of one of its instances."""
        query = (
            select(InstanceRow.study_instance_uid, func.min(InstanceRow.path))
            .where(InstanceRow.study_instance_uid.in_(list(studies)))
            .group_by(InstanceRow.study_instance_uid)
        )
        with Session(self._engine) as session:
            return dict(session.execute(query).all())

    def series_of_instances(self, study: str) -> dict[str, str]:
        """SOP Instance UID → Series Instance UID of a study."""
        query = select(InstanceRow.sop_instance_uid, InstanceRow.series_instance_uid)
        with Session(self._engine) as session:
            found = session.execute(query.where(InstanceRow.study_instance_uid == study))
            return dict(found.all())

    def states(self) -> dict[str, int]:
        """How many studies are in each state, every state named."""
        query = select(StudyRow.state, func.count()).group_by(StudyRow.state)
        with Session(self._engine) as session:
            return dict.fromkeys(STATES, 0) | dict(session.execute(query).all())

    def oldest(self) -> dict[str, float]:
        """When the longest waiting study of each unfinished state was last received."""
        query = (
            select(StudyRow.state, func.min(StudyRow.last_received))
            .where(StudyRow.state.in_(["receiving", "stable", "scoring"]))
            .group_by(StudyRow.state)
        )
        with Session(self._engine) as session:
            return dict(session.execute(query).all())

    def deliveries(self) -> dict[str, dict[str, int]]:
        """Destination → state → number of result objects."""
        query = select(DeliveryRow.destination, DeliveryRow.state, func.count()).group_by(
            DeliveryRow.destination, DeliveryRow.state
        )
        found: dict[str, dict[str, int]] = {}
        with Session(self._engine) as session:
            for destination, state, count in session.execute(query):
                found.setdefault(destination, {})[state] = count
        return found

    def uncommitted(self, destinations: Sequence[str]) -> dict[str, tuple[int, float]]:
        """Destination → number of results that it got and did not commit to, and when it got the first."""
        # An index that was made again does not know when.
        since = func.min(func.nullif(DeliveryRow.next_at, 0.0))
        query = (
            select(DeliveryRow.destination, func.count(), func.coalesce(since, time.time()))
            .where(not_committed(destinations))
            .group_by(DeliveryRow.destination)
        )
        with Session(self._engine) as session:
            return {name: (count, since) for name, count, since in session.execute(query)}

    def recent_scores(self, since: float, limit: int = 20_000, *, shadows: bool = True) -> list[ScoreRecord]:
        """The newest of what bundles said since then, with shadows or without; oldest first."""
        columns = [getattr(ScoreRow, field.name) for field in fields(ScoreRecord)]
        query = select(*columns).where(ScoreRow.scored_at >= since)
        if not shadows:
            query = query.where(~ScoreRow.shadow)
        with Session(self._engine) as session:
            rows = session.execute(query.order_by(ScoreRow.scored_at.desc()).limit(limit)).all()
            return [ScoreRecord(*row) for row in reversed(rows)]

    def score_counts(self, since: float, bounds: Sequence[float]) -> list[ScoreCounts]:
        """Count what each bundle said since then, shadows left out.

        Parameters
        ----------
        since
            Seconds since the epoch.
        bounds
            Upper bounds of the highest slice score.

        Returns
        -------
        One record for each bundle; the database counts, however many scores there are.
        """
        below = [func.sum(case((ScoreRow.maximum <= bound, 1), else_=0)) for bound in bounds]
        query = (
            select(
                ScoreRow.bundle_name,
                ScoreRow.bundle_version,
                func.count(),
                func.sum(ScoreRow.maximum),
                *below,
            )
            .where(ScoreRow.scored_at >= since, ~ScoreRow.shadow)
            .group_by(ScoreRow.bundle_name, ScoreRow.bundle_version)
        )
        with Session(self._engine) as session:
            rows = session.execute(query).all()
        return [
            ScoreCounts(name, version, count, total, tuple(map(int, counts)))
            for name, version, count, total, *counts in rows
        ]

    def modalities(self) -> list[str]:
        """Every modality that was scored."""
        with Session(self._engine) as session:
            return sorted(filter(None, session.scalars(select(ScoreRow.modality).distinct())))

    def study_uids(self) -> list[str]:
        """Every study."""
        with Session(self._engine) as session:
            return list(session.scalars(select(StudyRow.study_instance_uid)))


def _matching(query: Query) -> Select[StudyRow]:
    found = select(StudyRow)
    key = StudyRow.study_instance_uid
    if query.text:
        text = query.text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        by_sender = exists().where(
            and_(InstanceRow.study_instance_uid == key, InstanceRow.calling_ae == query.text)
        )
        like = [c.ilike(f"%{text}%", escape="\\") for c in (key, StudyRow.state_reason)]
        found = found.where(or_(*like, by_sender))
    if query.state:
        found = found.where(StudyRow.state == query.state)
    if query.delivery:
        found = found.where(
            exists().where(and_(DeliveryRow.study_instance_uid == key, DeliveryRow.state == query.delivery))
        )
    if query.uncommitted is not None:
        found = found.where(
            exists().where(DeliveryRow.study_instance_uid == key, not_committed(query.uncommitted))
        )
    scored = and_(ScoreRow.study_instance_uid == key, ~ScoreRow.shadow)
    if query.modality:
        found = found.where(exists().where(and_(scored, ScoreRow.modality == query.modality)))
    # A revision in which nothing but results and annotations came has no scores of its own.
    other = aliased(ScoreRow)
    newest = (
        select(func.max(other.revision))
        .where(other.study_instance_uid == key, ~other.shadow)
        .correlate(StudyRow)
        .scalar_subquery()
    )
    current = and_(scored, ScoreRow.revision == newest, ScoreRow.findings > 0)
    if query.findings is True:
        found = found.where(exists().where(current))
    elif query.findings is False:
        found = found.where(StudyRow.state == "scored", ~exists().where(current))
    if query.since is not None:
        found = found.where(StudyRow.last_received >= query.since)
    if query.until is not None:
        found = found.where(StudyRow.last_received < query.until)
    return found
