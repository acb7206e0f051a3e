"""The part of the index that takes a person's orders: try again, score again, send again."""

from sqlalchemy import update
from sqlalchemy.orm import Session

from daemon.errors import SpoolError, StudyError
from daemon.records import StudyRecord, record_of
from daemon.spool import Spool
from daemon.tables import DeliveryRow, StudyRow
from daemon.upkeep import Upkeep

PRUNED = "its files were pruned; send the study again"
# In place of a bundle's name and version: score it again with what is in use.
_AGAIN = "again"


class Orders(Upkeep):
    """What people ask of a study; :class:`daemon.index.Index` is one."""

    def retry(self, study: str, expires_at: float) -> StudyRecord:
        """Make a study due again: undelivered results of a scored one, else a new revision at once.

        The deliveries get until ``expires_at``; their count of attempts goes on, it is their name
        in the queue.

        Raises
        ------
        StudyError
            No such study was received.
        SpoolError
            Its files were pruned.
        """
        with Session(self._writer) as session, session.begin():
            row = _kept(session, study)
            if row.state == "scored":
                session.execute(
                    update(DeliveryRow)
                    .where(
                        DeliveryRow.study_instance_uid == study,
                        DeliveryRow.state.in_(["failed", "dead"]),
                    )
                    .values(state="pending", next_at=0.0, expires_at=expires_at)
                )
            else:
                row.dirty = row.closed = True
                row.state, row.state_reason = "receiving", ""
            return record_of(StudyRecord, row)

    def rescore(self, study: str, bundle: str = "") -> None:
        """Make a study due for a new revision at once, whatever became of the last.

        Parameters
        ----------
        study
            Its UID.
        bundle
            "NAME VERSION" that shall score it this once; "" for what is in use.

        Raises
        ------
        StudyError
            No such study was received.
        SpoolError
            Its files were pruned.
        """
        with Session(self._writer) as session, session.begin():
            row = _kept(session, study)
            row.dirty = row.closed = True
            row.wanted_bundle = bundle or _AGAIN

    def forward(self, study: str, destination: str, expires_at: float, spool: Spool) -> None:
        """Make the newest results due for a destination, whether or not they arrived there before.

        They get until ``expires_at``.

        Raises
        ------
        StudyError
            It has no results.
        SpoolError
            Their files were pruned.
        """
        results = self.results_of(study)
        revision = max((result.revision for result in results), default=0)
        files = [spool.path(result.path) for result in results if result.revision == revision]
        if not files:
            raise StudyError("this study has no results to send yet")
        if not all(path.is_file() for path in files):
            raise SpoolError(PRUNED)
        with Session(self._writer) as session, session.begin():
            session.execute(
                update(DeliveryRow)
                .where(
                    DeliveryRow.study_instance_uid == study,
                    DeliveryRow.revision == revision,
                    DeliveryRow.destination == destination,
                )
                .values(
                    state="pending",
                    last_error="",
                    next_at=0.0,
                    expires_at=expires_at,
                    attempts=DeliveryRow.attempts + 1,
                )
            )
        self.plan_deliveries(study, revision, [destination], expires_at)

    def wanted_bundle(self, study: str) -> str:
        """Name and version of the bundle wanted for the next revision, one word for those in use, or ""."""
        with Session(self._engine) as session:
            row = session.get(StudyRow, study)
            return row.wanted_bundle if row else ""

    def want_bundle(self, study: str, bundle: str) -> None:
        """Set what the next revision shall be scored with, "" for what is in use then."""
        with Session(self._writer) as session, session.begin():
            locked(session, study).wanted_bundle = bundle


def locked(session: Session, study: str) -> StudyRow:
    """Return a study's row, locked until the transaction ends.

    Raises
    ------
    StudyError
        No such study was received.
    """
    row = session.get(StudyRow, study, with_for_update=True)
    if row is None:
        raise StudyError("this study was never received; list what was with 'daemon studies'")
    return row


def _kept(session: Session, study: str) -> StudyRow:
    """The row of a study whose files are here."""
    row = locked(session, study)
    if row.pruned_at is not None:
        raise SpoolError(PRUNED)
    return row
