"""The index: what was received, which revision each study has, what was made of it and sent.

The spool is the truth; this index can be made again from it (:meth:`Index.rebuild`). It holds
no patient data. SQLite by default, PostgreSQL by the same code; every transaction is short.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from daemon.database import open_database
from daemon.errors import SpoolError, StudyError
from daemon.intake import CLOCK_SLACK_S, record
from daemon.manifest import read_manifests
from daemon.orders import Orders, locked
from daemon.records import (
    DeliveryRecord,
    DeliveryState,
    ResultKind,
    ResultRecord,
    StudyRecord,
    StudyState,
    record_of,
)
from daemon.spool import Spool, StoredInstance
from daemon.tables import InstanceRow, StudyRow

__all__ = [
    "DeliveryRecord",
    "DeliveryState",
    "Index",
    "ResultKind",
    "ResultRecord",
    "StudyRecord",
    "StudyState",
]


class Index(Orders):
    """The database of studies, instances, results and deliveries.

    Parameters
    ----------
    database_url
        SQLAlchemy URL, such as ``sqlite:////var/lib/daemon/index.db`` or
        ``postgresql+psycopg://…``. The schema is brought to its newest version at once.
    """

    def __init__(self, database_url: str) -> None:
        super().__init__(*open_database(database_url))

    def close(self) -> None:
        """Close every connection to the database."""
        self._engine.dispose()

    # Instances

    def add_instance(self, instance: StoredInstance, spool: Spool | None = None) -> bool:
        """Record one stored instance; the same one again changes nothing.

        A new instance makes the study dirty: its next revision holds it.

        Parameters
        ----------
        instance
            What :meth:`daemon.part.Part.commit` returned.
        spool
            Where it is; given, the file is looked for while the study's row is locked.

        Returns
        -------
        bool
            Whether the instance (or this version of it) was new.

        Raises
        ------
        SpoolError
            The file is not there: it was pruned while the same instance came again.
        """
        with Session(self._writer) as session, session.begin():
            new, missing = record(session, [instance], spool)
            if missing:
                raise SpoolError("the instance was pruned while it came again: send it once more")
            return new == 1

    def add_instances(self, instances: Sequence[StoredInstance], spool: Spool) -> list[StoredInstance]:
        """Record many stored instances in one transaction.

        Returns
        -------
        list of StoredInstance
            Those whose file is not there; they are not recorded.
        """
        with Session(self._writer) as session, session.begin():
            return record(session, instances, spool)[1]

    def instances_of(self, study: str, revision: int | None = None) -> list[StoredInstance]:
        """Return the instances frozen into a revision (default: all so far), newest version of each."""
        query = select(InstanceRow).where(InstanceRow.study_instance_uid == study)
        if revision is not None:
            query = query.where(InstanceRow.revision <= revision)
        query = query.order_by(InstanceRow.sop_instance_uid, InstanceRow.version)
        with Session(self._engine) as session:
            newest = {row.sop_instance_uid: row for row in session.scalars(query)}
            return [record_of(StoredInstance, row) for row in newest.values()]

    def all_versions(self, study: str) -> list[StoredInstance]:
        """Return every version of every instance of a study."""
        query = select(InstanceRow).where(InstanceRow.study_instance_uid == study)
        with Session(self._engine) as session:
            return [record_of(StoredInstance, row) for row in session.scalars(query)]

    def rebuild(self, spool: Spool, stopped: Callable[[], bool] = lambda: False) -> int:
        """Record every instance of the spool that the index does not know, study after study.

        A study that it did not know at all gets back its revisions, results and deliveries. Reception
        and pruning may go on meanwhile.

        Parameters
        ----------
        spool
            Where the instances are.
        stopped
            Asked between studies; True ends it early.

        Returns
        -------
        int
            How many were new to the index.
        """
        added = 0
        for directory in spool.studies():
            if stopped():
                break
            added += self._complete(spool, directory)
        return added

    def _complete(self, spool: Spool, directory: Path) -> int:
        with Session(self._engine) as session:
            known = set(
                session.scalars(
                    select(InstanceRow.path).where(InstanceRow.study_instance_uid == directory.name)
                )
            )
        fresh = list(spool.scan(directory, known))
        if not fresh:
            return 0
        with Session(self._writer) as session, session.begin():
            new, _ = record(session, fresh, spool, is_live=False)
        # One study, unless its UID was none: then the directory is named by a hash.
        for study in {instance.study_instance_uid for instance in fresh} if new else ():
            if self.get_study(study).revision == 0:
                for manifest in read_manifests(spool, study):
                    self.restore(manifest)
        return new

    # Studies and revisions

    def mark_association_released(self, studies: Iterable[str]) -> None:
        """Close these studies: they are due at once, without the quiet time."""
        with Session(self._writer) as session, session.begin():
            session.execute(
                update(StudyRow)
                .where(StudyRow.study_instance_uid.in_(list(studies)), StudyRow.dirty)
                .values(closed=True)
            )

    def due_studies(self, now: float, quiet_s: float) -> list[StudyRecord]:
        """Return studies with instances in no revision yet that are closed or were quiet long enough."""
        query = (
            select(StudyRow)
            .where(
                StudyRow.dirty,
                # One that came in the future came before the clock was set back.
                StudyRow.closed
                | (StudyRow.last_received <= now - quiet_s)
                | (StudyRow.last_received > now + quiet_s + CLOCK_SLACK_S),
            )
            .order_by(StudyRow.last_received)
        )
        with Session(self._engine) as session:
            return [record_of(StudyRecord, row) for row in session.scalars(query)]

    def open_revision(self, study: str, revision: int | None = None) -> int:
        """Freeze the instances so far into the study's next revision.

        Parameters
        ----------
        study
            Study Instance UID.
        revision
            The number expected. When it is open already nothing is changed, so that a repeated
            step gets the same instances.

        Returns
        -------
        int
            The opened revision, or the current one when nothing new arrived since.

        Raises
        ------
        StudyError
            The study is unknown or the expected revision is not its next.
        """
        with Session(self._writer) as session, session.begin():
            row = locked(session, study)
            if revision is not None and revision <= row.revision:
                return revision
            if revision is not None and revision != row.revision + 1:
                raise StudyError(f"revision {revision} cannot follow revision {row.revision}")
            if not row.dirty:
                return row.revision
            row.revision += 1
            row.dirty = row.closed = False
            row.state, row.state_reason = "stable", ""
            session.execute(
                update(InstanceRow)
                .where(InstanceRow.study_instance_uid == study, InstanceRow.revision.is_(None))
                .values(revision=row.revision)
            )
            return row.revision

    def set_state(self, study: str, state: StudyState, reason: str = "") -> None:
        """Set a study's state and its reason in words an administrator understands."""
        with Session(self._writer) as session, session.begin():
            row = locked(session, study)
            row.state, row.state_reason = state, reason

    def get_study(self, study: str) -> StudyRecord:
        """Return one study.

        Raises
        ------
        StudyError
            No such study was received.
        """
        with Session(self._engine) as session:
            row = session.get(StudyRow, study)
            if row is None:
                raise StudyError("this study was never received; list what was with 'daemon studies'")
            return record_of(StudyRecord, row)

    def list_studies(
        self, states: Sequence[StudyState] | None = None, limit: int | None = None
    ) -> list[StudyRecord]:
        """Return the studies in these states (default: all), last received first."""
        query = select(StudyRow).order_by(StudyRow.last_received.desc()).limit(limit)
        if states is not None:
            query = query.where(StudyRow.state.in_(list(states)))
        with Session(self._engine) as session:
            return [record_of(StudyRecord, row) for row in session.scalars(query)]

    def count_states(self) -> dict[str, int]:
        """Return how many studies are in each state."""
        query = select(StudyRow.state, func.count()).group_by(StudyRow.state)
        with Session(self._engine) as session:
            return {row[0]: row[1] for row in session.execute(query)}
