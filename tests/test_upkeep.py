"""Keeping order: pruning after delivery alone, pauses, dead letters, a rebuilt index, old schemas."""

import contextlib
import dataclasses
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import commands
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from peers import free_port
from pynetdicom import AE, evt
from sqlalchemy import create_engine
from test_spool import data_set, store

import daemon
from daemon.deliveries import Courier
from daemon.errors import SpoolError
from daemon.index import Index
from daemon.jobs import JobRecord, ResultRef
from daemon.manifest import keep_job, keep_outcome, keep_sent
from daemon.pledges import Asked
from daemon.prune import Pruner
from daemon.records import ResultRecord
from daemon.requestor import Destination
from daemon.sections import DeliverySettings
from daemon.settings import Settings, load_settings
from daemon.spool import Spool
from daemon.tables import Base
from daemon.tables_web import UserRow, VerdictRow

MIGRATIONS = Path(daemon.__file__).parent / "migrations"
DAY_S = 86_400.0
SR = "1.2.840.10008.5.1.4.1.1.88.34"
NOW = 1_800_000_000.0


class Desk:
    """Settings, index and spool of a daemon that is not running."""

    def __init__(self, folder: Path, retention: str = "", commitment: bool = False) -> None:
        self.folder = folder
        self.path = folder / "settings.toml"
        self.path.write_text(
            f'[service]\ndata_dir = "data"\n[retention]\nprune_below_bytes = 0\n{retention}\n'
            '[[destinations]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = 1\n'
            f"commitment = {str(commitment).lower()}\n"
        )
        self.settings: Settings = load_settings(self.path)
        self.settings.service.data_dir.mkdir()
        self.spool = Spool(self.settings.spool_dir)
        self.index = Index(self.settings.database_url)

    def scored(self, study: str, age_days: float = 0.0, state: str = "sent") -> None:
        """Receive a study, and take it through the steps of its first revision as the daemon does."""
        sop = f"{study}.1.1"
        stored = store(self.spool, data_set(study=study, sop=sop), sop=sop, study=study)
        stored = dataclasses.replace(stored, received_at=NOW - age_days * DAY_S)
        self.index.add_instance(stored)
        self.index.open_revision(study)
        job = keep_job(self.spool, JobRecord(study, 1, "2026-01-01T00:00:00+00:00", {}), [stored.path])
        uid = f"{study}.9"
        path = self.spool.write_result(study, 1, f"SR.{uid}.dcm", b"result")
        result = ResultRecord(
            study, 1, "SR", "1.2.840.10008.5.1.4.1.1.88.34", uid, f"{study}.8", path, "0" * 64
        )
        outcome = ResultRef("scored", "", [dataclasses.asdict(result)])
        keep_outcome(self.spool, job, outcome, ["pacs"], NOW)
        self.index.add_results([result])
        self.index.plan_deliveries(study, 1, ["pacs"], NOW)
        self.index.set_state(study, "scored")
        if state == "sent":
            keep_sent(self.spool, study, 1, "pacs", [uid])
        if state != "pending":
            (delivery,) = self.index.deliveries(study)
            self.index.update_delivery(delivery, state)  # type: ignore[arg-type]

    def pruner(self) -> Pruner:
        """At the time ``NOW``."""
        return Pruner(self.settings, self.index, self.spool, clock=lambda: NOW)

    def daemon(self, *arguments: str) -> str:
        """Run a command of ``daemon`` with these settings and return what it says."""
        done = commands.run(*arguments, "--settings", self.path)
        done.check_returncode()
        return done.stdout

    def files(self) -> list[str]:
        """Instances and results on disk."""
        return sorted(str(f.relative_to(self.spool.root)) for f in self.spool.root.rglob("*.dcm"))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """Give a desk with the settings as shipped, but nothing pruned for space."""
    found = Desk(tmp_path)
    yield found
    found.index.close()


def planned(desk: Desk) -> list[str]:
    """Studies that would go by age."""
    return [item.study_instance_uid for item in desk.pruner().plan().by_age]


@pytest.mark.parametrize("state", ["pending", "failed", "dead"])
def test_what_is_not_delivered_is_never_pruned(desk: Desk, state: str) -> None:
    """However old a study is: until each destination has its results it stays."""
    desk.scored("1.5", age_days=1000.0, state=state)
    desk.scored("1.6", age_days=1000.0)
    assert planned(desk) == ["1.6"]


def test_a_delivered_study_is_pruned_by_age(desk: Desk) -> None:
    """Older than retention.maximum_age_days: its files go, its row stays, and a younger one is untouched."""
    desk.scored("1.5", age_days=31.0)
    desk.scored("1.6", age_days=29.0)
    pruner = desk.pruner()
    assert pruner.prune(pruner.plan()) == 1
    assert [name for name in desk.files() if "/1.5/" in name] == []
    assert len(desk.files()) == 2
    assert desk.index.get_study("1.5").pruned_at == NOW
    assert desk.index.instances_of("1.5") == []


def test_a_pruned_study_that_comes_again_gets_a_new_revision(desk: Desk) -> None:
    """Its number goes on, so that no result UID is used twice."""
    desk.scored("1.5", age_days=31.0)
    pruner = desk.pruner()
    pruner.prune(pruner.plan())
    desk.index.add_instance(store(desk.spool, data_set(study="1.5"), study="1.5"), desk.spool)
    assert desk.index.open_revision("1.5") == 2
    assert desk.index.get_study("1.5").pruned_at is None


def test_a_study_that_gets_something_new_meanwhile_is_not_pruned(desk: Desk) -> None:
    """Between plan and removal an instance arrived: nothing goes."""
    desk.scored("1.5", age_days=31.0)
    pruner = desk.pruner()
    plan = pruner.plan()
    desk.index.add_instance(store(desk.spool, data_set("late", study="1.5"), study="1.5"), desk.spool)
    assert pruner.prune(plan) == 0
    assert len(desk.files()) == 3


def test_an_instance_whose_file_was_pruned_is_not_answered_with_success(desk: Desk) -> None:
    """The same instance came again while its file went: the index refuses it, the sender repeats it."""
    stored = store(desk.spool, data_set(study="1.5"), study="1.5")
    desk.spool.path(stored.path).unlink()
    with pytest.raises(SpoolError, match="send it once more"):
        desk.index.add_instance(stored, desk.spool)


def test_a_destination_that_commits_is_waited_for(tmp_path: Path) -> None:
    """Where the destination offers storage commitment, delivered is not enough."""
    desk = Desk(tmp_path, commitment=True)
    desk.scored("1.5", age_days=1000.0)
    assert planned(desk) == []
    desk.index.pledges.ask("2.25.1", "1.5", 1, "pacs", NOW)
    desk.index.pledges.settle("2.25.1", ["1.5.9"], {}, NOW)
    assert planned(desk) == ["1.5"]
    desk.index.close()


def test_a_short_disk_prunes_the_oldest_first(tmp_path: Path) -> None:
    """Below retention.prune_below_bytes delivered studies go whatever their age, the oldest first."""
    desk = Desk(tmp_path)
    for study, age in (("1.5", 1.0), ("1.6", 3.0), ("1.7", 2.0)):
        desk.scored(study, age_days=age)
    assert desk.pruner().plan().by_space == ()
    retention = desk.settings.retention.model_copy(update={"prune_below_bytes": desk.spool.free_bytes() * 2})
    desk.settings = desk.settings.model_copy(update={"retention": retention})
    found = desk.pruner().plan().by_space
    assert [item.study_instance_uid for item in found] == ["1.6", "1.7", "1.5"]
    desk.index.close()


def test_a_dry_run_says_what_would_go_and_removes_nothing(desk: Desk) -> None:
    """``daemon prune --dry-run`` counts; ``daemon prune`` then removes just that."""
    desk.scored("1.5", age_days=31.0 + (NOW / DAY_S))
    before = desk.files()
    said = desk.daemon("prune", "--dry-run")
    assert "by age: 1 studies" in said and "nothing was removed" in said
    assert desk.files() == before
    assert "1 studies removed" in desk.daemon("prune")
    assert desk.files() == []


def test_pause_and_resume_by_command(desk: Desk) -> None:
    """A paused destination keeps what is due; resumed, what had failed is due at once."""
    desk.scored("1.5", state="failed")
    assert "pacs: paused" in desk.daemon("pause", "pacs")
    assert desk.index.paused() == {"pacs"}
    (delivery,) = desk.index.deliveries("1.5")
    desk.index.update_delivery(delivery, "failed", "no answer", next_at=NOW + DAY_S)
    assert desk.index.due_deliveries(NOW, NOW + 2 * DAY_S) == []
    assert "pacs: resumed" in desk.daemon("resume", "pacs")
    assert desk.index.paused() == set()
    assert [due.study for due in desk.index.due_deliveries(NOW, NOW + 2 * DAY_S)] == ["1.5"]


def test_a_destination_that_is_not_configured_cannot_be_paused(desk: Desk) -> None:
    """The error names those that are."""
    with pytest.raises(subprocess.CalledProcessError) as raised:
        desk.daemon("pause", "nobody")
    assert raised.value.returncode == 2
    assert "pacs" in raised.value.stderr


def test_every_dead_letter_is_requeued_at_once(desk: Desk) -> None:
    """``daemon retry --all-dead`` makes each due again and leaves what was sent alone."""
    for number in range(3):
        desk.scored(f"1.5.{number}", state="dead")
    desk.scored("1.6")
    assert "3 dead letters" in desk.daemon("retry", "--all-dead")
    states = {delivery.study_instance_uid: delivery.state for delivery in desk.index.deliveries()}
    assert states == {"1.5.0": "pending", "1.5.1": "pending", "1.5.2": "pending", "1.6": "sent"}


def test_what_a_destination_that_is_gone_did_not_get_is_discarded(desk: Desk) -> None:
    """``daemon discard``: its dead letters and its pause go, its study can be pruned, all else stays."""
    desk.scored("1.5", age_days=31.0)
    desk.scored("1.6", age_days=31.0, state="dead")
    desk.index.plan_deliveries("1.5", 1, ["old-pacs"], NOW)
    (waiting,) = desk.index.deliveries("1.5", destination="old-pacs")
    desk.index.update_delivery(waiting, "dead", "no answer")
    desk.index.pause("old-pacs")
    assert planned(desk) == []
    assert "1 undelivered results were given up" in desk.daemon("discard", "old-pacs")
    assert planned(desk) == ["1.5"]
    assert desk.index.paused() == set()
    assert [d.state for d in desk.index.deliveries()] == ["sent", "dead"]
    assert "0 undelivered" in desk.daemon("discard", "never-there")


def test_what_a_destination_of_the_settings_did_not_get_is_not_discarded(desk: Desk) -> None:
    """The error says how it gets its results, and they stay."""
    desk.scored("1.5", state="dead")
    with pytest.raises(subprocess.CalledProcessError) as raised:
        desk.daemon("discard", "pacs")
    assert "daemon retry" in raised.value.stderr
    assert [d.state for d in desk.index.deliveries()] == ["dead"]


@pytest.mark.parametrize(
    ("content", "said"), [(None, "cannot read the file"), (b"", "no DICOM"), (b"\0" * 200, "no DICOM")]
)
def test_a_result_that_cannot_be_read_is_named_as_the_reason(
    desk: Desk, content: bytes | None, said: str
) -> None:
    """A missing or damaged file is no silence of the destination; the object beside it is sent."""
    desk.scored("1.5", state="pending")
    (bad,) = desk.index.results_of("1.5")
    sop = "1.5.10"
    good = store(desk.spool, data_set(sop=sop, study="1.5"), sop=sop, study="1.5")
    desk.index.add_results([dataclasses.replace(bad, sop_instance_uid=sop, path=good.path)])
    desk.index.plan_deliveries("1.5", 1, ["pacs"], NOW)
    path = desk.spool.path(bad.path)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with anything_goes() as target:
        courier = Courier(desk.index, desk.spool, [target], DeliverySettings(quick_attempts=1), b"key")
        assert courier.deliver("1.5", 1, "pacs") == 1
    found = {d.sop_instance_uid: d for d in desk.index.deliveries("1.5")}
    assert (found[sop].state, found[bad.sop_instance_uid].state) == ("sent", "failed")
    assert said in found[bad.sop_instance_uid].last_error


@contextlib.contextmanager
def anything_goes() -> Iterator[Destination]:
    """A PACS that takes everything."""
    port = free_port()
    ae = AE(ae_title="PACS")
    ae.add_supported_context("1.2.840.10008.5.1.4.1.1.2")
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda _: 0)])
    try:
        yield Destination("pacs", "PACS", "127.0.0.1", port)
    finally:
        server.shutdown()


def test_what_is_not_committed_is_shown_and_asked_for_again(tmp_path: Path) -> None:
    """``daemon show`` says so, with the requests; ``daemon retry`` asks anew, for one study and for all."""
    desk = Desk(tmp_path, commitment=True)
    desk.scored("1.5")
    desk.index.pledges.ask("2.25.1", "1.5", 1, "pacs", NOW)
    desk.index.pledges.accepted("2.25.1")
    assert "not committed (1 requests accepted, then 0 not)" in desk.daemon("show", "1.5")
    for arguments in (["1.5"], ["--all-dead"]):
        assert "commitment of 1 delivered results" in desk.daemon("retry", *arguments)
        assert desk.index.pledges.asked("1.5", 1, "pacs") == Asked(0, 0, 0.0)
        desk.index.pledges.ask(f"2.25.{arguments[0]}", "1.5", 1, "pacs", NOW)
    assert desk.index.pledges.settle("2.25.1", ["1.5.9"], {}, NOW) == ("pacs", 1, 0)
    assert "attempts, committed" in desk.daemon("show", "1.5")
    assert "commitment of" not in desk.daemon("retry", "1.5")
    desk.index.close()


def picture(index: Index) -> dict[str, Any]:
    """What an index says, but for times and attempts."""
    studies = sorted(study.study_instance_uid for study in index.list_studies())
    return {
        uid: (
            [getattr(index.get_study(uid), key) for key in ("revision", "state", "instance_count", "dirty")],
            sorted(index.all_versions(uid), key=lambda item: item.path),
            [len(index.instances_of(uid, 1))],
            index.results_of(uid),
            [(d.destination, d.sop_instance_uid, d.state) for d in index.deliveries(uid)],
        )
        for uid in studies
    }


def test_a_lost_index_is_the_same_when_it_is_made_again(desk: Desk) -> None:
    """``daemon index rebuild``: revisions, states, results and deliveries come back from the spool."""
    desk.scored("1.5")
    desk.scored("1.6", state="pending")
    late = data_set("late", study="1.5", sop="1.5.1.2")
    desk.index.add_instance(store(desk.spool, late, sop="1.5.1.2", study="1.5"), desk.spool)
    desk.index.add_instance(store(desk.spool, data_set(study="1.7"), study="1.7"), desk.spool)
    before = picture(desk.index)
    assert [before[uid][0][:2] for uid in before] == [[1, "receiving"], [1, "scored"], [0, "receiving"]]
    desk.index.close()
    for file in desk.settings.service.data_dir.glob("daemon.sqlite*"):
        file.unlink()
    assert "4 instances added; the index has 3 studies" in desk.daemon("index", "rebuild")
    desk.index = Index(desk.settings.database_url)
    after = picture(desk.index)
    stamped = {item.path: item.received_at for uid in before for item in before[uid][1]}
    for uid in after:  # a file's own time is what a rebuilt index knows; the fixture made its times up
        found = [dataclasses.replace(i, received_at=stamped[i.path]) for i in after[uid][1]]
        after[uid] = (after[uid][0], found, *after[uid][2:])
    assert after == before


def revisions() -> list[str]:
    """Every schema that a site may have, oldest first."""
    return [item.revision for item in ScriptDirectory(str(MIGRATIONS)).walk_revisions()][::-1]


@pytest.mark.parametrize("revision", revisions())
def test_every_earlier_schema_is_upgraded_with_its_rows(tmp_path: Path, revision: str) -> None:
    """A database of an earlier version becomes today's, and says the same of its study."""
    url = f"sqlite:///{tmp_path}/old.db"
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    engine = create_engine(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, revision)
    engine.dispose()
    with sqlite3.connect(tmp_path / "old.db") as old:
        fill(old)
    old.close()
    index = Index(url)
    study = index.get_study("1.2")
    assert (study.revision, study.state, study.pruned_at) == (1, "scored", None)
    assert [item.sop_instance_uid for item in index.instances_of("1.2", 1)] == ["1.2.1.1"]
    assert [item.sop_instance_uid for item in index.results_of("1.2")] == ["1.2.9"]
    assert [item.state for item in index.deliveries("1.2")] == ["dead"]
    assert len(index.scores("1.2")) == 1
    assert index.due_studies(NOW, 1.0) == []
    with index._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": "pacs_alembic_version"})
        assert {UserRow.__tablename__, VerdictRow.__tablename__} <= set(Base.metadata.tables)
        assert compare_metadata(context, Base.metadata) == []
    index.close()


def fill(old: sqlite3.Connection) -> None:
    """Put one scored study with a dead letter into tables of any version."""
    rows: dict[str, dict[str, Any]] = {
        "pacs_studies": {
            "first_received": 1.0, "last_received": 2.0, "instance_count": 1, "revision": 1,
            "state": "scored", "state_reason": "", "dirty": 0, "closed": 0,
        },
        "pacs_instances": {
            "sop_instance_uid": "1.2.1.1", "version": 1, "series_instance_uid": "1.2.1",
            "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2", "transfer_syntax_uid": "1.2.840.10008.1.2.1",
            "path": "00/1.2/1.2.1/1.2.1.1.dcm", "size_bytes": 10, "sha256": "0" * 64, "received_at": 1.0,
            "calling_ae": "CT1", "revision": 1,
        },
        "pacs_results": {
            "revision": 1, "sop_instance_uid": "1.2.9", "series_instance_uid": "1.2.8",
            "sop_class_uid": SR, "kind": "SR", "path": "results/x", "sha256": "0" * 64,
        },
        "pacs_deliveries": {
            "revision": 1, "destination": "pacs", "sop_instance_uid": "1.2.9", "state": "dead", "attempts": 9,
            "last_error": "rejected", "next_at": 0.0, "expires_at": 3.0,
        },
        "pacs_scores": {
            "revision": 1, "group_key": "0123456789abcdef", "bundle_version": "0123456789ab",
            "series_instance_uid": "1.2.1", "modality": "CT", "bundle_name": "ct", "shadow": 0, "slices": 3,
            "maximum": 0.9, "mean": 0.2, "findings": 1, "scored_at": 2.0,
        },
    }  # fmt: skip
    for table, values in rows.items():
        row = {"study_instance_uid": "1.2", **values}
        columns = {name for _, name, *_ in old.execute(f"PRAGMA table_info({table})")}
        row = {name: value for name, value in row.items() if name in columns}
        places = ", ".join("?" for _ in row)
        old.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})", list(row.values()))
