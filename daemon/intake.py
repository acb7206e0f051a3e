"""How instances enter the index: any number of them in one transaction, a study's row locked once."""

import itertools
from collections.abc import Sequence
from operator import attrgetter

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from daemon.records import fields_of
from daemon.spool import Spool, StoredInstance
from daemon.tables import InstanceRow, StudyRow

# Hosts' clocks may differ by this much.
CLOCK_SLACK_S = 60.0

_study = attrgetter("study_instance_uid")
_Key = tuple[str, int]


def record(
    session: Session, instances: Sequence[StoredInstance], spool: Spool | None, *, is_live: bool = True
) -> tuple[int, list[StoredInstance]]:
    """Record instances within a transaction; those that are known change nothing.

    Parameters
    ----------
    session
        Of a writer, in a transaction.
    instances
        Of any studies.
    spool
        Where they are; given, the files are looked for while the study's row is locked.
    is_live
        Whether they arrive now; what is found on disk came whenever it came.

    Returns
    -------
    tuple of int and list of StoredInstance
        How many were new, and those whose file is not there: they were pruned while they came
        again, and are not recorded.
    """
    new, missing = 0, []
    # In one order everywhere: two hosts that lock the same studies must not wait for each other.
    for _, same in itertools.groupby(sorted(instances, key=_study), _study):
        group = list(same)
        row = _study_row(session, group[0])
        if spool is not None:
            gone = [instance for instance in group if not spool.path(instance.path).is_file()]
            missing += gone
            group = [instance for instance in group if instance not in gone]
        if group:
            new += _record_group(session, row, group, is_live=is_live and spool is not None)
        elif row.instance_count == row.revision == 0:
            session.delete(row)
    return new, missing


def _record_group(session: Session, row: StudyRow, group: list[StoredInstance], *, is_live: bool) -> int:
    newest = max(instance.received_at for instance in group)
    # A clock that was set back must not keep a study waiting for its old time to come. A repeat is a
    # sign that the sender is at work, too: the quiet time starts again.
    if not is_live or newest > row.last_received - CLOCK_SLACK_S:
        row.last_received = max(row.last_received, newest)
    else:
        row.last_received = newest
    fresh = _fresh(session, row.study_instance_uid, group)
    if not fresh:
        return 0
    # The study's row may be as new as they are, and they refer to it.
    session.flush()
    session.execute(insert(InstanceRow), [fields_of(instance) for instance in fresh.values()])
    row.instance_count += sum(instance.version == 1 for instance in fresh.values())
    row.first_received = min(row.first_received, *(instance.received_at for instance in fresh.values()))
    row.dirty, row.closed, row.pruned_at = True, False, None
    if row.state in ("scored", "refused", "failed"):
        row.state, row.state_reason = "receiving", ""
    return len(fresh)


def _fresh(session: Session, study: str, group: list[StoredInstance]) -> dict[_Key, StoredInstance]:
    """Return those that the index does not know, each once."""
    wanted = {(instance.sop_instance_uid, instance.version): instance for instance in group}
    query = select(InstanceRow.sop_instance_uid, InstanceRow.version).where(
        InstanceRow.study_instance_uid == study,
        InstanceRow.sop_instance_uid.in_({uid for uid, _ in wanted}),
    )
    known = {(uid, version) for uid, version in session.execute(query)}
    return {key: instance for key, instance in wanted.items() if key not in known}


def _study_row(session: Session, instance: StoredInstance) -> StudyRow:
    """The study's row, locked; made if this is its first instance.

    Two hosts may receive the first two instances of a study at once: who comes second takes the
    other's row.
    """
    uid = instance.study_instance_uid
    row = session.get(StudyRow, uid, with_for_update=True)
    if row is not None:
        return row
    try:
        with session.begin_nested():
            row = StudyRow(
                study_instance_uid=uid,
                first_received=instance.received_at,
                last_received=instance.received_at,
                instance_count=0,
                revision=0,
                state="receiving",
                state_reason="",
                dirty=True,
                closed=False,
            )
            session.add(row)
        return row
    except IntegrityError:
        return session.get_one(StudyRow, uid, with_for_update=True)
