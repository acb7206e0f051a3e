"""The index: revisions that freeze, deliveries, rebuilding, and a schema that leaves others alone."""

import contextlib
import resource
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from test_spool import data_set, store

from daemon.database import wait_out_full_disk
from daemon.errors import DatabaseError, StudyError
from daemon.index import Index, ResultRecord
from daemon.spool import Spool, StoredInstance
from daemon.tables import Base
from daemon.tables_web import UserRow, VerdictRow


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """Give an empty index in SQLite."""
    index = Index(f"sqlite:///{tmp_path}/index.db")
    yield index
    index.close()


def instance(sop: str = "1.2.3.1", at: float = 100.0, study: str = "1.2", version: int = 1) -> StoredInstance:
    """Make an instance as the spool reports it."""
    path = f"00/{study}/{sop}.v{version}.dcm"
    return StoredInstance(study, "1.2.3", sop, "1.2.840", "1.2.1", path, 10, at, "MODALITY", version)


def result(sop: str = "1.9.1", revision: int = 1, kind: str = "SEG") -> ResultRecord:
    """Make a result of study 1.2."""
    return ResultRecord("1.2", revision, kind, "1.2.840", sop, "1.9", f"results/{sop}", "0" * 64)


def test_the_same_instance_again_changes_nothing(index: Index) -> None:
    """A repeated instance is not counted twice and makes no new revision."""
    assert index.add_instance(instance())
    index.open_revision("1.2")
    assert not index.add_instance(instance(at=200.0))
    study = index.get_study("1.2")
    assert (study.instance_count, study.dirty, study.revision) == (1, False, 1)


def test_a_study_is_due_after_its_quiet_time(index: Index) -> None:
    """A study is due once nothing arrived for the quiet time, and not before."""
    index.add_instance(instance(at=100.0))
    index.add_instance(instance("1.2.3.2", at=130.0))
    assert index.due_studies(139.0, 10.0) == []
    assert [study.study_instance_uid for study in index.due_studies(140.0, 10.0)] == ["1.2"]


def test_a_released_association_makes_its_studies_due_at_once(index: Index) -> None:
    """A closed study needs no quiet time; a late instance opens it again."""
    index.add_instance(instance())
    index.mark_association_released(["1.2"])
    assert len(index.due_studies(100.0, 60.0)) == 1
    index.add_instance(instance("1.2.3.2", at=101.0))
    assert index.due_studies(101.0, 60.0) == []


def test_a_revision_freezes_its_instances(index: Index) -> None:
    """What arrives after a revision was opened belongs to the next one."""
    index.add_instance(instance("1.2.3.1"))
    assert index.open_revision("1.2", 1) == 1
    index.add_instance(instance("1.2.3.2"))
    assert index.open_revision("1.2", 1) == 1
    assert len(index.instances_of("1.2", 1)) == 1
    assert index.open_revision("1.2", 2) == 2
    assert len(index.instances_of("1.2", 2)) == 2
    assert len(index.instances_of("1.2", 1)) == 1


def test_a_changed_instance_is_seen_by_the_next_revision_only(index: Index) -> None:
    """A revision keeps the version it was opened with; the next one has the newest."""
    index.add_instance(instance(version=1))
    index.open_revision("1.2")
    index.add_instance(instance(version=2))
    assert index.open_revision("1.2") == 2
    assert [i.version for i in index.instances_of("1.2", 1)] == [1]
    assert [i.version for i in index.instances_of("1.2", 2)] == [2]
    assert index.get_study("1.2").instance_count == 1


def test_a_revision_cannot_be_skipped(index: Index) -> None:
    """Opening a revision that is not the next one is an error."""
    index.add_instance(instance())
    with pytest.raises(StudyError):
        index.open_revision("1.2", 2)


def test_a_late_instance_makes_a_scored_study_receive_again(index: Index) -> None:
    """A new instance of a finished study makes it due for a new revision."""
    index.add_instance(instance())
    index.open_revision("1.2")
    index.set_state("1.2", "scored")
    index.add_instance(instance("1.2.3.2", at=150.0))
    assert index.get_study("1.2").state == "receiving"
    assert len(index.due_studies(200.0, 10.0)) == 1


def test_an_unknown_study_is_named_as_such(index: Index) -> None:
    """Asking for, or changing, a study that never came raises StudyError."""
    for ask in (index.get_study, lambda uid: index.set_state(uid, "scored"), index.open_revision):
        with pytest.raises(StudyError):
            ask("1.9")


def test_deliveries_are_planned_once_and_keep_their_outcome(index: Index) -> None:
    """Planning again neither doubles a delivery nor forgets that it was made."""
    index.add_instance(instance())
    index.open_revision("1.2")
    index.add_results([result("1.9.1"), result("1.9.2", kind="SR")])
    index.add_results([result("1.9.1")])
    index.plan_deliveries("1.2", 1, ["pacs", "archive"], 500.0)
    first = index.deliveries("1.2", 1, "pacs")[0]
    index.update_delivery(first, "sent")
    index.plan_deliveries("1.2", 1, ["pacs", "archive"], 900.0)
    assert len(index.deliveries("1.2")) == 4
    assert [d.attempts for d in index.deliveries(states=["sent"])] == [1]
    assert len(index.results_of("1.2", 1)) == 2


def test_our_own_results_are_recognised(index: Index) -> None:
    """A result that comes back is known by its SOP Instance UID."""
    index.add_instance(instance())
    index.add_results([result("1.9.1")])
    assert index.is_own_result("1.9.1")
    assert not index.is_own_result("1.2.3.1")


def test_retry_sends_what_a_scored_study_could_not(index: Index) -> None:
    """Retrying a scored study revives its dead deliveries without a new revision."""
    index.add_instance(instance())
    index.open_revision("1.2")
    index.add_results([result()])
    index.plan_deliveries("1.2", 1, ["pacs"], 10.0)
    index.update_delivery(index.deliveries()[0], "dead", "rejected")
    index.set_state("1.2", "scored")
    index.retry("1.2", 99.0)
    delivery = index.deliveries()[0]
    assert (delivery.state, delivery.expires_at, index.get_study("1.2").dirty) == ("pending", 99.0, False)


def test_retry_makes_a_failed_study_due_at_once(index: Index) -> None:
    """Retrying a failed study opens a new revision with the same instances."""
    index.add_instance(instance())
    index.open_revision("1.2")
    index.set_state("1.2", "failed", "out of memory")
    index.retry("1.2", 99.0)
    assert len(index.due_studies(0.0, 60.0)) == 1
    assert index.open_revision("1.2") == 2
    assert len(index.instances_of("1.2", 2)) == 1


def test_the_index_is_made_again_from_the_spool(tmp_path: Path, index: Index) -> None:
    """A lost index is rebuilt with every instance and version; rebuilding again adds nothing."""
    spool = Spool(tmp_path / "spool")
    stored = [store(spool, data_set(t, sop=u), sop=u) for t, u in [("a", "1.5"), ("b", "1.5"), ("c", "1.6")]]
    assert index.rebuild(spool) == 3
    assert index.rebuild(spool) == 0
    found = index.instances_of("1.2")
    assert {(i.path, i.size_bytes) for i in found} == {(s.path, s.size_bytes) for s in stored[1:]}


def test_an_index_that_knows_some_studies_is_completed(tmp_path: Path, index: Index) -> None:
    """What has no row gets one, and a study that is complete already does not become due."""
    spool = Spool(tmp_path / "spool")
    index.add_instance(store(spool, data_set(sop="1.5"), sop="1.5"))
    index.open_revision("1.2")
    store(spool, data_set(sop="1.7", study="1.3"), sop="1.7", study="1.3")
    assert index.rebuild(spool) == 1
    assert not index.get_study("1.2").dirty
    assert index.get_study("1.3").instance_count == 1


def test_a_rebuild_ends_when_it_is_told_to(tmp_path: Path, index: Index) -> None:
    """A daemon that stops does not wait until millions of files were looked at."""
    spool = Spool(tmp_path / "spool")
    for study in ("1.3", "1.4", "1.5"):
        store(spool, data_set(study=study), study=study)
    assert index.rebuild(spool, iter((False, False, True)).__next__) == 2


def test_parallel_writers_lose_nothing(tmp_path: Path) -> None:
    """Two indexes on one file, four threads each: every instance is counted."""
    url = f"sqlite:///{tmp_path}/index.db"
    indexes = [Index(url), Index(url)]

    def add(which: int) -> None:
        for number in range(10):
            indexes[which % 2].add_instance(instance(f"1.2.{which}.{number}"))

    threads = [threading.Thread(target=add, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert indexes[0].get_study("1.2").instance_count == 40
    for index in indexes:
        index.close()


@contextlib.contextmanager
def small_disk(size_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size: SQLite takes that for a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_an_outage_of_the_database(index: Index) -> None:
    """What the disk cannot take is a DatabaseError, which is waited for; afterwards it goes on."""
    with small_disk(1024), pytest.raises(DatabaseError, match="free space on its disk"):
        index.add_instance(instance())
    assert index.add_instance(instance())


def test_the_queue_repeats_what_a_full_disk_refused(tmp_path: Path) -> None:
    """The queue's library takes a full disk for a lock, and does not blame the study in work."""
    from dbos._utils import retriable_sqlite_exception
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import OperationalError

    engine = create_engine(f"sqlite:///{tmp_path}/queue.db")
    wait_out_full_disk(engine)
    with small_disk(1024), pytest.raises(OperationalError) as raised, engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (a TEXT)"))
    assert retriable_sqlite_exception(raised.value)
    engine.dispose()


def test_the_migrations_make_the_tables_that_the_code_expects(index: Index) -> None:
    """Alembic finds no difference between its schema and the classes."""
    with index._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": "pacs_alembic_version"})
        assert compare_metadata(context, Base.metadata) == []
        assert {UserRow.__tablename__, VerdictRow.__tablename__} <= set(Base.metadata.tables)


def test_tables_of_others_are_left_alone(tmp_path: Path) -> None:
    """The engine's tables in the same database survive, and all of ours carry the prefix."""
    path = tmp_path / "index.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE workflow_status (id TEXT)")
    connection.close()
    Index(f"sqlite:///{path}").close()
    Index(f"sqlite:///{path}").close()
    connection = sqlite3.connect(path)
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
    connection.close()
    assert mode == "wal"
    assert {name for name in tables if not name.startswith("pacs_")} == {"workflow_status"}


def test_records_carry_no_patient_data() -> None:
    """No column of any table could hold a name, an ID, a date or a description."""
    columns = {column.name for table in Base.metadata.tables.values() for column in table.columns}
    forbidden = ("patient", "name", "birth", "descr", "date")
    suspects = {column for column in columns if any(word in column for word in forbidden)}
    # The site's own word for its adapters, and who may sign in to the page.
    assert suspects == {"bundle_name", "name"}
