"""The life of ``daemon run``: it stops in order, comes back from the dead, and says why it cannot start."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import RunningDaemon
from peers import OrthancPeer, free_port, orthanc, storescu, wait_for_port
from pydicom import dcmread
from warm_daemon import roles

from daemon.index import Index
from daemon.part10 import read_file_header
from daemon.phantom import make_case, write_case
from daemon.spool import Spool
from daemon.supervisor import ROLES

pytestmark = [pytest.mark.peer, pytest.mark.slow]

SR = "1.2.840.10008.5.1.4.1.1.88.34"
Start = Callable[..., RunningDaemon]


def _delivered(study: str) -> Callable[[Index], bool]:
    def done(index: Index) -> bool:
        deliveries = index.deliveries(study)
        return bool(deliveries) and all(d.state == "sent" for d in deliveries)

    return done


def _send(daemon: RunningDaemon, folder: Path, number: int = 901, slices: int = 6) -> str:
    case = make_case(number, abnormal=True, slices=slices, seed=1)
    storescu(daemon.port, *map(str, write_case(case, folder)))
    return case.study_instance_uid


def _wait_until_all_have_read_their_settings(daemon: RunningDaemon) -> None:
    """Each role takes its lock right after."""
    deadline = time.monotonic() + 60.0
    while not all((daemon.settings.service.data_dir / f"{role}.lock").exists() for role in ROLES):
        assert daemon.process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)


def _reports(pacs: OrthancPeer, folder: Path) -> list[str]:
    """SOP Instance UIDs of the SRs at the PACS."""
    found = []
    for uid, identifier in pacs.instances().items():
        path = folder / f"{uid}.dcm"
        path.write_bytes(pacs.download(f"/instances/{identifier}/file"))
        if dcmread(path, stop_before_pixels=True).SOPClassUID == SR:
            found.append(uid)
    return found


def _run(settings: Path, timeout_s: float = 60.0) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "daemon", "run", "--settings", str(settings)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def test_sigterm_drains_and_the_next_start_finishes(tmp_path: Path, start_daemon: Start) -> None:
    """SIGTERM while a study is in work ends with 0 in time; started again, its results arrive once."""
    with orthanc(tmp_path) as pacs:
        daemon = start_daemon(pacs.port, quiet_s=0.3, cold=True)
        study = _send(daemon, tmp_path / "ct", slices=40)
        daemon.wait_for(lambda index: index.get_study(study).state in ("scoring", "scored"))
        children = daemon.children()
        started = time.monotonic()
        assert daemon.stop() == 0
        assert "killed" not in (log := daemon.log.read_text()), log
        assert time.monotonic() - started < daemon.settings.service.stop_timeout_s + 5
        assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []
        daemon.start_again()
        daemon.wait_for(_delivered(study))
        assert daemon.stop() == 0
        assert len(_reports(pacs, tmp_path)) == 1
        with daemon.index() as index:
            assert index.get_study(study).revision == 1


def test_sigterm_while_the_model_loads_ends_at_once(tmp_path: Path) -> None:
    """A disk that never gives the model does not hold the stop up: nothing is killed, 0 is the answer."""
    settings = _quiet_settings(tmp_path)
    bundles = settings.parent / "data" / "bundles"
    bundles.mkdir(parents=True)
    os.mkfifo(bundles / "promoted.json")
    log = tmp_path / "log"
    with log.open("wb") as file:
        command = [sys.executable, "-m", "daemon", "run", "--settings", str(settings)]
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        writer = _open_when_read(bundles / "promoted.json", process)
        process.terminate()
        assert process.wait(60) == 0
        os.close(writer)
        assert "killed" not in log.read_text()
    finally:
        process.kill()
        process.wait()


def _quiet_settings(folder: Path) -> Path:
    path = folder / "settings.toml"
    path.write_text(f'[service]\ndata_dir = "data"\n[receiver]\nport = {free_port()}\n[web]\nport = 0\n')
    return path


def _open_when_read(fifo: Path, process: "subprocess.Popen[bytes]") -> int:
    """Open a pipe for writing as soon as somebody waits to read from it, which then goes on waiting."""
    deadline = time.monotonic() + 60.0
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        time.sleep(0.05)
    pytest.fail("the model was not loaded")


def test_a_killed_role_comes_back_and_its_work_ends(tmp_path: Path, start_daemon: Start) -> None:
    """kill -9 of each role in turn: reception goes on meanwhile, and every study's results arrive once."""
    with orthanc(tmp_path) as pacs:
        daemon = start_daemon(pacs.port, quiet_s=0.3, page=True, cold=True)
        first = _send(daemon, tmp_path / "a", 901, slices=40)
        daemon.wait_for(lambda index: index.get_study(first).state == "scoring")
        before = roles(daemon.process.pid, daemon.log)
        assert set(before) == {"receive", "score", "send", "web"}
        os.kill(before["score"], signal.SIGKILL)
        second = _send(daemon, tmp_path / "b", 902)
        with daemon.index() as index:
            assert index.get_study(second).instance_count == 6
        daemon.wait_for(_delivered(first))
        daemon.wait_for(_delivered(second))
        os.kill(before["send"], signal.SIGKILL)
        os.kill(before["web"], signal.SIGKILL)
        third = _send(daemon, tmp_path / "c", 903)
        daemon.wait_for(_delivered(third))
        now = roles(daemon.process.pid, daemon.log)
        assert set(now) == {"receive", "score", "send", "web"}
        assert now["receive"] == before["receive"]
        assert all(now[role] != before[role] for role in ("score", "send", "web"))
        wait_for_port(daemon.settings.web.port, daemon.process)
        assert daemon.stop() == 0
        assert len(_reports(pacs, tmp_path)) == 3


def test_wrong_settings_later_stop_only_the_role_that_needs_them(tmp_path: Path, start_daemon: Start) -> None:
    """A typing mistake while the daemon runs keeps a role that died down; reception goes on."""
    daemon = start_daemon(free_port(), page=True, cold=True)
    good = daemon.settings_path.read_text()
    _wait_until_all_have_read_their_settings(daemon)
    daemon.settings_path.write_text(good + "\n[nonsense]\n")
    os.kill(roles(daemon.process.pid, daemon.log)["score"], signal.SIGKILL)
    deadline = time.monotonic() + 60.0
    while "role cannot start; the others go on" not in daemon.log.read_text():
        assert daemon.process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    study = _send(daemon, tmp_path / "ct")
    daemon.wait_for(lambda index: index.get_study(study).instance_count == 6)
    daemon.settings_path.write_text(good)
    assert daemon.stop() == 0


def test_what_the_index_misses_is_completed_while_reception_goes_on(
    tmp_path: Path, start_daemon: Start
) -> None:
    """A file of the spool without a row has one after a start, and its study is taken up."""
    daemon = start_daemon(free_port())
    known = _send(daemon, tmp_path / "a", 901)
    daemon.wait_for(lambda index: index.get_study(known).state == "scored")
    assert daemon.stop() == 0
    (file, *_) = write_case(case := make_case(902, abnormal=False, slices=2, seed=1), tmp_path / "b")
    header, offset = read_file_header(file)
    part = Spool(daemon.settings.spool_dir).begin(
        header.sop_class_uid, header.sop_instance_uid, header.transfer_syntax_uid, "MODALITY"
    )
    part.write(file.read_bytes()[offset:])
    part.commit(header.study_instance_uid, header.series_instance_uid)
    daemon.start_again()
    wait_for_port(daemon.port, daemon.process, 60.0)
    daemon.wait_for(
        lambda index: any(s.study_instance_uid == case.study_instance_uid for s in index.list_studies())
    )
    daemon.wait_for(lambda index: index.get_study(case.study_instance_uid).state == "scored")


def test_a_port_in_use_ends_the_start_and_names_the_key(tmp_path: Path, start_daemon: Start) -> None:
    """A second daemon on the same port, with a folder of its own: exit 2 and the key."""
    daemon = start_daemon(free_port())
    path = tmp_path / "second.toml"
    path.write_text(f'[service]\ndata_dir = "second"\n[receiver]\nport = {daemon.port}\n')
    done = _run(path)
    assert done.returncode == 2
    assert f"receiver.host/port: cannot listen on 127.0.0.1:{daemon.port}" in done.stderr
    assert "Traceback" not in done.stderr
    assert daemon.process.poll() is None


def test_a_second_daemon_on_one_folder_stops(tmp_path: Path, start_daemon: Start) -> None:
    """Two daemons, one data folder: the second ends with 2 and says so, the first is unharmed."""
    daemon = start_daemon(free_port(), page=True)
    path = tmp_path / "second.toml"
    text = daemon.settings_path.read_text().replace('"data"', f'"{daemon.settings.service.data_dir}"')
    path.write_text(re.sub(r"(\[receiver\]\nport = )\d+", rf"\g<1>{free_port()}", text))
    done = _run(path, timeout_s=90.0)
    assert done.returncode == 2
    assert "service.data_dir: another daemon" in done.stderr
    assert "Traceback" not in done.stderr
    assert daemon.process.poll() is None
    assert len(daemon.children()) == 4


def test_a_pacs_that_was_down_gets_the_results_once(tmp_path: Path, start_daemon: Start) -> None:
    """Nobody listens at first; once the PACS is up, the results arrive, each once."""
    port = free_port()
    daemon = start_daemon(port, quiet_s=0.3)
    study = _send(daemon, tmp_path / "ct")
    daemon.wait_for(lambda index: any(d.attempts >= 2 for d in index.deliveries(study)))
    with daemon.index() as index:
        assert {d.state for d in index.deliveries(study)} <= {"failed", "pending"}
        assert all("no connection to 127.0.0.1" in d.last_error for d in index.deliveries(study))
    with orthanc(tmp_path, DicomPort=port) as pacs:
        daemon.wait_for(_delivered(study))
        with daemon.index() as index:
            results = {result.sop_instance_uid for result in index.results_of(study)}
        assert set(pacs.instances()) == results
        changes = pacs.get("/changes?limit=1000")["Changes"]
        assert sum(change["ChangeType"] == "NewInstance" for change in changes) == len(results)


def test_a_dead_letter_is_delivered_by_retry(
    tmp_path: Path, start_daemon: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After give_up_s a delivery is dead and stays so; ``daemon retry`` brings it to the PACS."""
    monkeypatch.setenv("DAEMON_DELIVERY__GIVE_UP_S", "3")
    port = free_port()
    daemon = start_daemon(port, quiet_s=0.3)
    study = _send(daemon, tmp_path / "ct")
    daemon.wait_for(
        lambda index: bool(found := index.deliveries(study)) and all(d.state == "dead" for d in found)
    )
    with orthanc(tmp_path, DicomPort=port) as pacs:
        time.sleep(3.0)
        assert pacs.instances() == {}
        command = [sys.executable, "-m", "daemon", "retry", study, "--settings", str(daemon.settings_path)]
        monkeypatch.setenv("DAEMON_DELIVERY__GIVE_UP_S", "600")
        said = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "undelivered results will be sent again" in said.stdout
        daemon.wait_for(_delivered(study))
        assert len(_reports(pacs, tmp_path)) == 1
