"""Nothing lost: a shorter set of the runs of ``python -m benchmarks.faults``."""

import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from test_upkeep import picture
from warm_daemon import WarmDaemon, roles

from adapters import registry
from adapters.bundle import AdapterBundle
from benchmarks import postgres
from benchmarks.fault_scenarios import database_full, destination, disk_full
from benchmarks.fault_site import Site
from benchmarks.faults import kills
from daemon.index import Index
from daemon.settings import load_settings

pytestmark = [pytest.mark.peer, pytest.mark.slow]


@pytest.fixture
def bundles(tmp_path: Path, phantom_bundle: AdapterBundle) -> Path:
    """Give a registry in which the bundle of the phantoms is promoted."""
    folder = tmp_path / "bundles"
    registry.store(folder, phantom_bundle)
    registry.promote(folder, phantom_bundle.name, phantom_bundle.version)
    return folder


@pytest.fixture(autouse=True)
def _warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Daemons begin where the libraries are loaded, but for one in a namespace of its own."""
    cold = Site._start_daemon

    def start(site: Site) -> None:
        if site.prefix:
            cold(site)
        else:
            environment = {"OMP_NUM_THREADS": "1", **site.environment}
            site.daemon = WarmDaemon(site.path, site.log, **environment)  # type: ignore[assignment]
            site.processes.append(site.daemon)

    def found(site: Site) -> dict[str, int]:
        supervisor = {"supervisor": site.daemon.pid} if site.daemon.poll() is None else {}
        return {**roles(site.daemon.pid, site.log), **supervisor}

    monkeypatch.setattr(Site, "_start_daemon", start)
    monkeypatch.setattr(Site, "roles", found)


def look(url: str) -> dict[str, Any]:
    """Return what the index says of each study."""
    with closing(Index(url)) as index:
        return picture(index)


def assert_nothing_lost(found: dict[str, Any]) -> None:
    """Skip what cannot run here; otherwise nothing is lost, doubled, left behind or unfinished."""
    if "skipped" in found:
        pytest.skip(found["skipped"])
    assert found["problems"] == ()
    assert found["finished"]
    assert (found["lost"], found["doubled"], found["orphans"], found["failed_studies"]) == (0, 0, 0, 0)
    assert found["instances"] > 0 and found["results"] > 0


def test_kill_9_under_load_on_sqlite_loses_nothing(tmp_path: Path, bundles: Path) -> None:
    """Four kills of random processes under load: every answered instance and result is there once.

    An index that is made again from the spool afterwards is the same.
    """
    found = kills(tmp_path / "run", bundles, 4, pause_s=(0.2, 1.5))
    assert sum(found["kills"].values()) >= 4
    assert_nothing_lost(found)
    path = tmp_path / "run" / "settings.toml"
    settings = load_settings(path)
    before = look(settings.database_url)
    for file in settings.service.data_dir.glob("daemon.sqlite*"):
        file.unlink()
    command = [sys.executable, "-m", "daemon", "index", "rebuild", "--settings", str(path)]
    subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL)
    assert look(settings.database_url) == before


@pytest.mark.skipif(bool(postgres.why_not()), reason=f"no PostgreSQL: {postgres.why_not()}")
def test_kill_9_under_load_on_postgresql_loses_nothing(tmp_path: Path, bundles: Path) -> None:
    """The same with index and queue in PostgreSQL."""
    found = kills(tmp_path / "run", bundles, 3, seed=2, on_postgres=True, pause_s=(0.3, 2.0))
    assert sum(found["kills"].values()) >= 3
    assert_nothing_lost(found)


def test_a_full_disk_loses_nothing(tmp_path: Path, bundles: Path) -> None:
    """A disk that is full to within random bytes, again and again: refused, repeated, nothing lost."""
    found = disk_full(tmp_path / "run", bundles, rounds=3)
    assert_nothing_lost(found)
    assert set(found["answers"]) > {"0000"}, "the disk was never full"
    assert "0110" not in found["answers"]


def test_a_full_disk_of_postgresql_loses_nothing(tmp_path: Path, bundles: Path) -> None:
    """While its tables have no room each sender is told so, and no study is given up over it."""
    found = database_full(tmp_path / "run", bundles, rounds=1)
    assert_nothing_lost(found)
    assert found["answers"]["A700"] >= 1, "no sender was told that there is no room"
    assert "0110" not in found["answers"]


def test_a_destination_that_misbehaves_gets_each_result_once(tmp_path: Path, bundles: Path) -> None:
    """It aborts in mid-transfer, then has no room, each for a while: later it has every result, once."""
    found = destination("abort", "status A700", times=3)(tmp_path / "run", bundles)
    assert_nothing_lost(found)
    assert found["met"] >= 6
    assert found["dead_letters"] == 0
