"""Storage commitment in the index: what was asked of whom, and what is committed (PS3.4 Annex J)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, and_, delete, exists, func, select, update
from sqlalchemy.orm import Session, aliased
from sqlalchemy.sql import ColumnElement

from daemon.tables import CommitmentRow, DeliveryRow, InstanceRow, ResultRow, StudyRow

# Requests that nobody accepted stay for an answer that comes late, this many of each revision.
_KEPT_UNACCEPTED = 20


@dataclass(frozen=True, slots=True)
class Delivered:
    """One result at a destination that has not committed itself to keep it."""

    study_instance_uid: str
    revision: int
    destination: str
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True)
class Asked:
    """How often commitment was asked for.

    Parameters
    ----------
    accepted
        Requests that the destination took (N-ACTION answered with Success).
    failed
        Requests since then that it did not take, or that did not reach it.
    last
        When the last one was made; 0 for never.
    """

    accepted: int
    failed: int
    last: float


@dataclass(frozen=True, slots=True)
class Held:
    """One received instance as the index knows it."""

    sop_class_uid: str
    path: str
    size_bytes: int


def not_committed(destinations: Iterable[str]) -> ColumnElement[bool]:
    """Match the deliveries that arrived at these destinations and to which they did not commit.

    What was pruned before its destination was asked to commit could not be sent again: it is left out.
    """
    study = aliased(StudyRow)
    return and_(
        DeliveryRow.destination.in_(list(destinations)),
        DeliveryRow.state == "sent",
        DeliveryRow.committed_at.is_(None),
        exists().where(study.study_instance_uid == DeliveryRow.study_instance_uid, study.pruned_at.is_(None)),
    )


class Pledges:
    """Requests for commitment, and their outcome on deliveries.

    Parameters
    ----------
    reader, writer
        The index's database.
    """

    def __init__(self, reader: Engine, writer: Engine) -> None:
        self._reader = reader
        self._writer = writer

    # As SCU: what we delivered

    def uncommitted(self, destinations: Sequence[str]) -> dict[tuple[str, int, str], list[Delivered]]:
        """Return what these destinations have and did not commit to, by study, revision and destination."""
        query = (
            select(DeliveryRow, ResultRow.sop_class_uid)
            .join(
                ResultRow,
                (ResultRow.study_instance_uid == DeliveryRow.study_instance_uid)
                & (ResultRow.revision == DeliveryRow.revision)
                & (ResultRow.sop_instance_uid == DeliveryRow.sop_instance_uid),
            )
            .where(not_committed(destinations))
        )
        found: dict[tuple[str, int, str], list[Delivered]] = {}
        with Session(self._reader) as session:
            for row, sop_class in session.execute(query):
                key = (row.study_instance_uid, row.revision, row.destination)
                found.setdefault(key, []).append(Delivered(*key, sop_class, row.sop_instance_uid))
        return found

    def asked(self, study: str, revision: int, destination: str) -> Asked:
        """Return how often commitment was asked for since a person last had it asked anew."""
        query = select(CommitmentRow.asked_at, CommitmentRow.state).where(
            CommitmentRow.study_instance_uid == study,
            CommitmentRow.revision == revision,
            CommitmentRow.destination == destination,
            CommitmentRow.state != "past",
        )
        with Session(self._reader) as session:
            rows = session.execute(query).all()
        accepted = [row.asked_at for row in rows if row.state == "accepted"]
        since = max(accepted, default=0.0)
        failed = [row for row in rows if row.state == "asked" and row.asked_at > since]
        return Asked(len(accepted), len(failed), max((row.asked_at for row in rows), default=0.0))

    def ask(self, transaction_uid: str, study: str, revision: int, destination: str, at: float) -> None:
        """Record a request before it is made: its answer may come at once, and to another process."""
        unaccepted = (
            select(CommitmentRow.transaction_uid)
            .where(
                CommitmentRow.study_instance_uid == study,
                CommitmentRow.revision == revision,
                CommitmentRow.destination == destination,
                CommitmentRow.state == "asked",
            )
            .order_by(CommitmentRow.asked_at.desc())
        )
        with Session(self._writer) as session, session.begin():
            # An outage of weeks shall not fill the table.
            old = list(session.scalars(unaccepted))[_KEPT_UNACCEPTED - 1 :]
            session.execute(delete(CommitmentRow).where(CommitmentRow.transaction_uid.in_(old)))
            session.add(
                CommitmentRow(
                    transaction_uid=transaction_uid,
                    study_instance_uid=study,
                    revision=revision,
                    destination=destination,
                    asked_at=at,
                )
            )

    def accepted(self, transaction_uid: str) -> None:
        """Record that the destination took a request: it counts from now on."""
        with Session(self._writer) as session, session.begin():
            session.execute(
                update(CommitmentRow)
                .where(CommitmentRow.transaction_uid == transaction_uid, CommitmentRow.state == "asked")
                .values(state="accepted")
            )

    def ask_anew(self, destinations: Iterable[str], study: str = "") -> int:
        """Have commitment asked for as if it never was; answers to earlier requests are still taken.

        Parameters
        ----------
        destinations
            Those that are asked to commit.
        study
            "" for every study.

        Returns
        -------
        int
            How many results are delivered to them and not committed.
        """
        names = list(destinations)
        change = update(CommitmentRow).where(CommitmentRow.destination.in_(names))
        count = select(func.count()).select_from(DeliveryRow).where(not_committed(names))
        if study:
            change = change.where(CommitmentRow.study_instance_uid == study)
            count = count.where(DeliveryRow.study_instance_uid == study)
        with Session(self._writer) as session, session.begin():
            session.execute(change.values(state="past"))
            return session.scalar(count) or 0

    def settle(
        self, transaction_uid: str, committed: Iterable[str], failed: dict[str, str], at: float
    ) -> tuple[str, int, int] | None:
        """Record an answer: committed results are so from now on, failed ones will be sent again.

        Parameters
        ----------
        transaction_uid
            Of our request.
        committed
            SOP Instance UIDs.
        failed
            Reason in words by SOP Instance UID.
        at
            Now.

        Returns
        -------
        tuple of str and int and int, or None
            The destination and how many results are committed and failed; None for a transaction
            that is not ours.
        """
        with Session(self._writer) as session, session.begin():
            request = session.get(CommitmentRow, transaction_uid)
            if request is None:
                return None
            counts = [0, 0]
            for uid in committed:
                counts[0] += self._set(session, request, uid, committed_at=at)
            for uid, reason in failed.items():
                again = {"state": "failed", "next_at": 0.0, "last_error": f"not committed: {reason}"}
                counts[1] += self._set(session, request, uid, **again)
            return request.destination, counts[0], counts[1]

    @staticmethod
    def _set(session: Session, request: CommitmentRow, uid: str, **values: object) -> int:
        done = session.execute(
            update(DeliveryRow)
            .where(
                DeliveryRow.study_instance_uid == request.study_instance_uid,
                DeliveryRow.revision == request.revision,
                DeliveryRow.destination == request.destination,
                DeliveryRow.sop_instance_uid == uid,
                DeliveryRow.committed_at.is_(None),
                DeliveryRow.state == "sent",
            )
            .values(**values)
        )
        return int(getattr(done, "rowcount", 0))

    # As SCP: what we received

    def held(self, sop_instance_uids: Sequence[str]) -> dict[str, list[Held]]:
        """Return every version of these instances that was received, by SOP Instance UID."""
        found: dict[str, list[Held]] = {}
        with Session(self._reader) as session:
            for start in range(0, len(sop_instance_uids), 500):  # below SQLite's bound on parameters
                some = sop_instance_uids[start : start + 500]
                for row in session.scalars(select(InstanceRow).where(InstanceRow.sop_instance_uid.in_(some))):
                    item = Held(row.sop_class_uid, row.path, row.size_bytes)
                    found.setdefault(row.sop_instance_uid, []).append(item)
        return found
