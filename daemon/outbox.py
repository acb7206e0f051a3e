"""The half of the index that goes out: results of each revision, and their deliveries."""

from collections.abc import Iterable, Sequence

from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from daemon.pledges import Pledges
from daemon.records import (
    DeliveryRecord,
    DeliveryState,
    DueDelivery,
    ResultRecord,
    ScoreRecord,
    fields_of,
    record_of,
)
from daemon.tables import DeliveryRow, ResultRow, ScoreRow


class Outbox:
    """Results and deliveries; :class:`daemon.index.Index` is one.

    Parameters
    ----------
    reader, writer
        The database, to read with and to write with.
    """

    def __init__(self, reader: Engine, writer: Engine) -> None:
        self._engine = reader
        self._writer = writer

    @property
    def pledges(self) -> Pledges:
        """Storage commitment: what was asked and what is committed."""
        return Pledges(self._engine, self._writer)

    def add_results(self, results: Iterable[ResultRecord]) -> None:
        """Record result objects; the same ones again change nothing."""
        with Session(self._writer) as session, session.begin():
            for result in results:
                session.merge(ResultRow(**fields_of(result)))

    def add_scores(self, scores: Iterable[ScoreRecord]) -> None:
        """Record what bundles said; the same again changes nothing."""
        with Session(self._writer) as session, session.begin():
            for score in scores:
                session.merge(ScoreRow(**fields_of(score)))

    def scores(self, study: str | None = None, bundle: str | None = None) -> list[ScoreRecord]:
        """Return what bundles said, oldest first, of one study and by one bundle if these are given."""
        query = select(ScoreRow).order_by(ScoreRow.scored_at, ScoreRow.group_key, ScoreRow.shadow)
        if study is not None:
            query = query.where(ScoreRow.study_instance_uid == study)
        if bundle is not None:
            query = query.where(ScoreRow.bundle_name == bundle)
        with Session(self._engine) as session:
            return [record_of(ScoreRecord, row) for row in session.scalars(query)]

    def results_of(self, study: str, revision: int | None = None) -> list[ResultRecord]:
        """Return the result objects of one revision (default: of all, in order)."""
        query = select(ResultRow).where(ResultRow.study_instance_uid == study)
        if revision is not None:
            query = query.where(ResultRow.revision == revision)
        query = query.order_by(ResultRow.revision, ResultRow.kind, ResultRow.sop_instance_uid)
        with Session(self._engine) as session:
            return [record_of(ResultRecord, row) for row in session.scalars(query)]

    def is_own_result(self, sop_instance_uid: str) -> bool:
        """Say whether this instance is one of our own results (come back from the PACS)."""
        query = select(ResultRow.sop_instance_uid).where(ResultRow.sop_instance_uid == sop_instance_uid)
        with Session(self._engine) as session:
            return session.scalars(query.limit(1)).first() is not None

    def plan_deliveries(
        self, study: str, revision: int, destinations: Sequence[str], expires_at: float
    ) -> None:
        """Add a pending delivery of each result that is meant for a destination to it, if absent.

        A destination that was not there when the results were made gets what one of the others gets.
        One that is still not delivered at ``expires_at`` becomes a dead letter.
        """
        results = self.results_of(study, revision)
        with Session(self._writer) as session, session.begin():
            for destination in destinations:
                for result in _meant_for(destination, results):
                    key = (study, revision, destination, result.sop_instance_uid)
                    if session.get(DeliveryRow, key) is None:
                        session.add(_pending(*key, expires_at))

    def deliveries(
        self,
        study: str | None = None,
        revision: int | None = None,
        destination: str | None = None,
        states: Sequence[DeliveryState] | None = None,
    ) -> list[DeliveryRecord]:
        """Return the deliveries that match every given condition."""
        query = select(DeliveryRow).order_by(
            DeliveryRow.study_instance_uid, DeliveryRow.revision, DeliveryRow.destination
        )
        if study is not None:
            query = query.where(DeliveryRow.study_instance_uid == study)
        if revision is not None:
            query = query.where(DeliveryRow.revision == revision)
        if destination is not None:
            query = query.where(DeliveryRow.destination == destination)
        if states is not None:
            query = query.where(DeliveryRow.state.in_(list(states)))
        with Session(self._engine) as session:
            return [record_of(DeliveryRecord, row) for row in session.scalars(query)]

    def first_expiry(self) -> dict[str, float]:
        """Return by destination when the time to give up of what waits longest for it is over."""
        query = (
            select(DeliveryRow.destination, func.min(DeliveryRow.expires_at))
            .where(DeliveryRow.state.in_(["pending", "failed"]))
            .group_by(DeliveryRow.destination)
        )
        with Session(self._engine) as session:
            return dict(session.execute(query).all())

    def due_deliveries(self, now: float, far: float) -> list[DueDelivery]:
        """Return what is to be sent now.

        What waits for a time after ``far`` was put off before the clock was set back, and is due, too.
        """
        key = (
            DeliveryRow.study_instance_uid,
            DeliveryRow.revision,
            DeliveryRow.destination,
            DeliveryRow.attempts,
        )
        query = (
            select(*key)
            .where(
                DeliveryRow.state.in_(["pending", "failed"]),
                (DeliveryRow.next_at <= now) | (DeliveryRow.next_at > far),
            )
            .distinct()
            .order_by(*key)
        )
        with Session(self._engine) as session:
            return [DueDelivery(*row) for row in session.execute(query)]

    def skip_attempt(self, due: DueDelivery) -> None:
        """Count an attempt that came to no outcome."""
        with Session(self._writer) as session, session.begin():
            session.execute(
                update(DeliveryRow)
                .where(
                    DeliveryRow.study_instance_uid == due.study,
                    DeliveryRow.revision == due.revision,
                    DeliveryRow.destination == due.destination,
                    DeliveryRow.attempts == due.attempts,
                    DeliveryRow.state.in_(["pending", "failed"]),
                )
                .values(attempts=DeliveryRow.attempts + 1)
            )

    def update_delivery(
        self, delivery: DeliveryRecord, state: DeliveryState, error: str = "", next_at: float = 0.0
    ) -> None:
        """Record the outcome of one attempt: its state, the error in words, when to try again."""
        with Session(self._writer) as session, session.begin():
            session.execute(
                update(DeliveryRow)
                .where(
                    DeliveryRow.study_instance_uid == delivery.study_instance_uid,
                    DeliveryRow.revision == delivery.revision,
                    DeliveryRow.destination == delivery.destination,
                    DeliveryRow.sop_instance_uid == delivery.sop_instance_uid,
                )
                .values(state=state, last_error=error, next_at=next_at, attempts=DeliveryRow.attempts + 1)
            )


def _meant_for(destination: str, results: Sequence[ResultRecord]) -> list[ResultRecord]:
    """Results that this destination gets."""
    named = sorted({name for result in results for name in result.destinations.split()})
    if named and destination not in named:
        destination = named[0]
    return [
        result for result in results if not result.destinations or destination in result.destinations.split()
    ]


def _pending(
    study: str, revision: int, destination: str, sop_instance_uid: str, expires_at: float
) -> DeliveryRow:
    return DeliveryRow(
        study_instance_uid=study,
        revision=revision,
        destination=destination,
        sop_instance_uid=sop_instance_uid,
        state="pending",
        expires_at=expires_at,
    )
