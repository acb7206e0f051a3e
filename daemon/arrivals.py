"""The part of the index that looks at studies while they still arrive."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from daemon.outbox import Outbox
from daemon.tables import InstanceRow, StudyRow


class Arrivals(Outbox):
    """What came and is in no revision yet; :class:`daemon.index.Index` is one."""

    def arriving(self) -> list[tuple[str, float]]:
        """Return the studies with instances in no revision, each with the time of its last instance."""
        query = select(StudyRow.study_instance_uid, StudyRow.last_received).where(StudyRow.dirty)
        with Session(self._engine) as session:
            return [(row[0], row[1]) for row in session.execute(query)]

    def arrived(self, study: str, after: float) -> list[tuple[str, float]]:
        """Return (path, received at) of a study's instances in no revision that came after a time."""
        query = (
            select(InstanceRow.path, InstanceRow.received_at)
            .where(
                InstanceRow.study_instance_uid == study,
                InstanceRow.revision.is_(None),
                InstanceRow.received_at > after,
            )
            .order_by(InstanceRow.received_at)
        )
        with Session(self._engine) as session:
            return [(row[0], row[1]) for row in session.execute(query)]
