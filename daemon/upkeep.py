"""The part of the index that keeps the work going: who is alive, what is paused, what may be pruned."""

import shutil
import time
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Float, cast, delete, extract, func, literal_column, select, update
from sqlalchemy.orm import Session
from sqlalchemy.sql import ColumnElement

from daemon.arrivals import Arrivals
from daemon.corrections import waiting_for_export
from daemon.manifest import Manifest
from daemon.records import ResultRecord, ScoreRecord
from daemon.spool import Spool
from daemon.tables import DeliveryRow, ExecutorRow, InstanceRow, PauseRow, StudyRow


@dataclass(frozen=True, slots=True)
class Prunable:
    """A study whose files may go: nothing of it waits for anybody."""

    study_instance_uid: str
    last_received: float
    size_bytes: int
    revision: int


class Upkeep(Arrivals):
    """Executors, pauses and pruning; :class:`daemon.index.Index` is one."""

    # Executors

    def heartbeat(self, executor_id: str) -> None:
        """Note that this executor is alive, on the database's clock: hosts' clocks differ."""
        with Session(self._writer) as session, session.begin():
            row = session.get(ExecutorRow, executor_id, with_for_update=True)
            now = session.scalar(select(self._now()))
            if row is None:
                session.add(ExecutorRow(executor_id=executor_id, last_seen=now))
            else:
                row.last_seen = now or 0.0

    def alive_executors(self, dead_after_s: float) -> set[str]:
        """Return the executors that were heard of within this time."""
        query = select(ExecutorRow.executor_id).where(ExecutorRow.last_seen > self._now() - dead_after_s)
        with Session(self._engine) as session:
            return set(session.scalars(query))

    def forget_executor(self, executor_id: str) -> None:
        """Remove one that stopped in order, or is dead and relieved of its work."""
        with Session(self._writer) as session, session.begin():
            session.execute(delete(ExecutorRow).where(ExecutorRow.executor_id == executor_id))

    def _now(self) -> ColumnElement[float]:
        if self._engine.dialect.name == "sqlite":
            return literal_column("(julianday('now') - 2440587.5) * 86400.0", Float)
        return cast(extract("epoch", func.clock_timestamp()), Float)

    # Destinations

    def pause(self, destination: str) -> None:
        """Send nothing to this destination until it is resumed; what is due stays due."""
        with Session(self._writer) as session, session.begin():
            session.merge(PauseRow(destination=destination, since=time.time()))

    def resume(self, destination: str) -> None:
        """Send to this destination again; what waited is due at once."""
        with Session(self._writer) as session, session.begin():
            session.execute(delete(PauseRow).where(PauseRow.destination == destination))
            session.execute(
                update(DeliveryRow)
                .where(DeliveryRow.destination == destination, DeliveryRow.state == "failed")
                .values(next_at=0.0)
            )

    def paused(self) -> set[str]:
        """Return the names of the paused destinations."""
        with Session(self._engine) as session:
            return set(session.scalars(select(PauseRow.destination)))

    def retry_dead(self, expires_at: float, destination: str | None = None) -> int:
        """Send every dead letter again (of one destination, if given); return how many."""
        change = update(DeliveryRow).where(DeliveryRow.state == "dead")
        if destination is not None:
            change = change.where(DeliveryRow.destination == destination)
        with Session(self._writer) as session, session.begin():
            found = session.execute(change.values(state="pending", next_at=0.0, expires_at=expires_at))
            return int(found.rowcount)  # type: ignore[attr-defined]

    def discard(self, destination: str) -> int:
        """Forget what a destination did not get, and its pause; return how many results that are.

        What it got stays recorded. To be called for a destination that is gone for good alone.
        """
        with Session(self._writer) as session, session.begin():
            session.execute(delete(PauseRow).where(PauseRow.destination == destination))
            gone = session.execute(
                delete(DeliveryRow).where(DeliveryRow.destination == destination, DeliveryRow.state != "sent")
            )
            return int(gone.rowcount)  # type: ignore[attr-defined]

    # Rebuilding

    def restore(self, manifest: Manifest) -> None:
        """Bring back one revision of a study whose instances are recorded, with what became of it."""
        job, outcome = manifest.job, manifest.outcome
        with Session(self._writer) as session, session.begin():
            row = session.get(StudyRow, job.study, with_for_update=True)
            if row is None or row.revision >= job.revision:
                return
            session.execute(
                update(InstanceRow)
                .where(
                    InstanceRow.study_instance_uid == job.study,
                    InstanceRow.revision.is_(None),
                    InstanceRow.path.in_(manifest.instances),
                )
                .values(revision=job.revision)
            )
            left = select(InstanceRow.path).where(
                InstanceRow.study_instance_uid == job.study, InstanceRow.revision.is_(None)
            )
            row.revision, row.dirty = job.revision, session.scalars(left).first() is not None
            row.state, row.state_reason = (
                ("stable", "") if outcome is None else (outcome.state, outcome.reason)
            )
            if row.dirty and outcome is not None:
                row.state, row.state_reason = "receiving", ""
        if outcome is not None:
            self.add_results(ResultRecord(**result) for result in outcome.results)
            self.add_scores(ScoreRecord(**score) for score in outcome.scores)
        self.plan_deliveries(job.study, job.revision, manifest.destinations, manifest.expires_at)
        for delivery in self.deliveries(job.study, job.revision):
            if delivery.sop_instance_uid in manifest.sent.get(delivery.destination, ()):
                self.update_delivery(delivery, "sent")

    # Pruning

    def prunable(self, committing: Collection[str] = ()) -> list[Prunable]:
        """Return the studies whose files may be removed, oldest first.

        These are scored or refused, have nothing new, and each of their results arrived at each of
        its destinations; at those in ``committing`` it is committed to storage, too. What people said
        of their findings was exported.
        """
        open_delivery = select(DeliveryRow.study_instance_uid).where(DeliveryRow.state != "sent")
        size = (
            select(func.coalesce(func.sum(InstanceRow.size_bytes), 0))
            .where(InstanceRow.study_instance_uid == StudyRow.study_instance_uid)
            .scalar_subquery()
        )
        query = (
            select(StudyRow.study_instance_uid, StudyRow.last_received, size, StudyRow.revision)
            .where(
                StudyRow.pruned_at.is_(None),
                StudyRow.state.in_(["scored", "refused"]),
                ~StudyRow.dirty,
                StudyRow.study_instance_uid.not_in(open_delivery),
                StudyRow.study_instance_uid.not_in(waiting_for_export()),
            )
            .order_by(StudyRow.last_received)
        )
        if committing:
            uncommitted = select(DeliveryRow.study_instance_uid).where(
                DeliveryRow.destination.in_(list(committing)), DeliveryRow.committed_at.is_(None)
            )
            query = query.where(StudyRow.study_instance_uid.not_in(uncommitted))
        with Session(self._engine) as session:
            return [Prunable(*row) for row in session.execute(query)]

    def prune(self, candidate: Prunable, spool: Spool, now: float) -> bool:
        """Remove the files of a study and the rows of its instances, unless something came meanwhile.

        The study's row is locked while the files go, and :meth:`daemon.index.Index.add_instance`
        waits for it: an instance that arrives again meanwhile finds its file gone and is not
        answered with Success.

        Returns
        -------
        bool
            False when the study changed since it was found to be prunable.
        """
        uid = candidate.study_instance_uid
        with Session(self._writer) as session, session.begin():
            row = session.get(StudyRow, uid, with_for_update=True)
            unchanged = (candidate.revision, candidate.last_received)
            if row is None or row.dirty or (row.revision, row.last_received) != unchanged:
                return False
            for path in session.scalars(
                select(InstanceRow.path).where(InstanceRow.study_instance_uid == uid)
            ):
                spool.path(path).unlink(missing_ok=True)
            shutil.rmtree(spool.results_dir(uid), ignore_errors=True)
            session.execute(delete(InstanceRow).where(InstanceRow.study_instance_uid == uid))
            row.pruned_at = now
        spool.remove_empty(uid)
        return True
