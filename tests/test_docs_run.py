"""Every command of README and docs is run on a site, or stands in a list that says why it cannot be."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import docs_commands
import numpy as np
import pytest
from conftest import RunningDaemon
from page_site import PASSWORD, PageSite
from peers import children, free_port, heed_interrupts, storescp, storescu, wait_for_port
from phantoms import picture
from PIL import Image
from typer.testing import CliRunner

from adapters import registry
from adapters.bundle import AdapterBundle
from daemon import cli
from daemon.phantom import make_case, write_case
from daemon.settings import load_settings

pytestmark = [pytest.mark.peer, pytest.mark.slow]

ALL = docs_commands.all_commands()
# What goes on until it is stopped has a test of its own; the index is rebuilt when everything else was run.
RUNNING = (
    "daemon run --settings settings.toml",
    "daemon run --role score",
    "daemon demo --out demo-out --stay",
)
LAST = "daemon index rebuild"
PLAIN = [c for c in ALL if not docs_commands.why_not(c) and c not in (*RUNNING, LAST)]


@dataclass
class Sandbox:
    """A folder with everything that the pages speak of, and a daemon that runs in it."""

    folder: Path
    daemon: RunningDaemon
    values: dict[str, str]

    def run(self, command: str) -> str:
        """Run a command of the pages in the folder; it must succeed."""
        arguments = docs_commands.filled(command, self.values)
        with contextlib.chdir(self.folder):
            done = CliRunner().invoke(cli.app, arguments, input=f"{PASSWORD}\n{PASSWORD}\n")
        assert done.exit_code == 0, f"{command}: {done.output}{done.exception!r}"
        return done.output


def _pictures(folder: Path, seed: int) -> None:
    """A site of pictures with their masks: as many normal ones as a calibration needs, some abnormal."""
    rng = np.random.default_rng(seed)
    for number in range(14):
        label = "normal" if number < 9 else "abnormal"
        pixels, mask = picture(rng, lesion=label == "abnormal")
        name = f"{folder.name}-{number}.png"  # pictures of one name in two folders count as one patient
        _save(folder / label / name, pixels)
        if label == "abnormal":
            _save(folder / "mask" / name, mask.astype(np.float32))


def _save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((values * 255).astype(np.uint8)).save(path)


def _settings(pacs_port: int, shadow: str) -> str:
    return f"""
service.data_dir = "data"
receiver = {{ port = {free_port()}, reserve_bytes = 1000000 }}
study.quiet_s = 0.5
engine.poll_s = 0.1
web.port = {free_port()}
destinations = [{{ name = "pacs", ae_title = "STORESCP", host = "127.0.0.1", port = {pacs_port} }}]
rules = [{{ name = "chest", bundle = "liver-ct", modality = "CT", shadow = "liver-ct@{shadow}" }}]
"""


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory, phantom_bundle: AdapterBundle) -> Iterator[Sandbox]:
    """``daemon run --settings settings.toml`` with a peer, bundles, a scored and judged study, and cases."""
    folder = tmp_path_factory.mktemp("docs")
    mask = os.umask(0o077)
    try:
        with storescp(folder) as pacs:
            ours = phantom_bundle.renamed(name="liver-ct")
            shadow = ours.renamed(threshold=min(0.95, ours.threshold + 0.05))
            path = folder / "settings.toml"
            path.write_text(_settings(pacs.port, shadow.version))
            settings = load_settings(path)
            for bundle in (shadow, ours):
                registry.store(settings.bundles_dir, bundle)
                registry.promote(settings.bundles_dir, bundle.name, bundle.version)
            ours.save(folder / "handed-over.safetensors")
            for number, name in enumerate(
                ("export", "cases/first", "other-hospital", "brain", "liver", "retina")
            ):
                _pictures(folder / name, number)
            case = make_case(901, abnormal=True, slices=12, seed=1)
            files = write_case(case, folder / "studies")
            words = RUNNING[0].split()
            with (folder / "log").open("ab") as log:
                process = subprocess.Popen([sys.executable, "-m", *words], cwd=folder, stdout=log, stderr=log)
            daemon = RunningDaemon(path, settings, process, folder / "log")
            try:
                wait_for_port(daemon.port, process, 90.0)
                wait_for_port(settings.web.port, process, 90.0)
                storescu(daemon.port, *map(str, files), calling="CT1")
                daemon.wait_for(
                    lambda index: (
                        len(index.list_studies(["scored"])) == 1
                        and not index.deliveries(states=["pending", "failed"])
                    )
                )
                _judge(PageSite(daemon, folder, ("", ""), "", "", "", ""), case.study_instance_uid)
                yield Sandbox(folder, daemon, {"STUDY": case.study_instance_uid, "VERSION": ours.version})
            finally:
                daemon.kill()
    finally:
        os.umask(mask)


def _judge(site: PageSite, uid: str) -> None:
    """Accept every finding, so that there is feedback to export."""
    site.add_user("otto", "operator")
    study = site.ask(f"/api/studies/{uid}", "otto").json()
    score = study["series"][0]["scores"][0]
    for finding in study["findings"]:
        order = {"revision": score["revision"], "group_key": finding["group_key"], "verdict": "accept",
                 "tracking_uid": finding["tracking_uid"]}  # fmt: skip
        assert site.ask(f"/api/studies/{uid}/verdicts", "otto", body=order).status == 200


def test_every_command_of_the_pages_is_run_or_excused() -> None:
    """No command is left: what is not run is excused with a reason, and every excuse is of a command."""
    assert len(PLAIN) > 35
    assert {command for command in (*RUNNING, LAST) if command not in ALL} == set()
    strangers = [c for c in ALL if not c.startswith("daemon ") and not docs_commands.why_not(c)]
    assert strangers == []
    excused = {words for words in docs_commands.NOT_RUN for c in ALL if c.startswith(words)}
    assert excused == set(docs_commands.NOT_RUN)


@pytest.mark.parametrize("command", PLAIN)
def test_a_command_of_the_pages_succeeds(command: str, sandbox: Sandbox) -> None:
    """As the page has it, placeholders filled: exit code 0, and it says something."""
    assert sandbox.run(command).strip()


def test_a_role_of_its_own_runs_and_stops(sandbox: Sandbox) -> None:
    """``daemon run --role score`` works beside the others until SIGTERM, and exits with 0."""
    log = sandbox.folder / "role.log"
    with log.open("wb") as file:
        command = [sys.executable, "-m", *RUNNING[1].split()]
        # A folder of its own: one role runs once for each.
        own = os.environ | {"DAEMON_SERVICE__DATA_DIR": str(sandbox.folder / "role")}
        process = subprocess.Popen(command, cwd=sandbox.folder, stdout=file, stderr=file, env=own)
    try:
        _wait_for((sandbox.folder / "role" / "score.lock").exists, process, log)
        process.terminate()
        assert process.wait(60) == 0, log.read_text()
    finally:
        _end(process)


def test_the_demo_stays_until_it_is_interrupted(tmp_path: Path) -> None:
    """``daemon demo --out demo-out --stay`` plays the main job, leaves the page up and ends on Ctrl-C."""
    log = tmp_path / "log"
    with log.open("wb") as file:
        command = [sys.executable, "-m", *RUNNING[2].split()]
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=file, stderr=file, preexec_fn=heed_interrupts
        )
    try:
        _wait_for(lambda: "Ctrl-C" in log.read_text(), process, log)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, log.read_text()
    finally:
        _end(process)
    assert "delivered" in log.read_text()
    assert list((tmp_path / "demo-out").rglob("*.png"))


def test_a_demo_that_is_killed_leaves_nothing_running(tmp_path: Path) -> None:
    """SIGTERM in the midst of the demo ends daemon and PACS, too."""
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "daemon", "demo"], cwd=tmp_path, stdout=file, stderr=file
        )
    try:
        _wait_for(lambda: "daemon on port" in log.read_text(), process, log)
        family = [pid for child in children(process.pid) for pid in (child, *children(child))]
        assert len(family) >= 2
        process.terminate()
        assert process.wait(60) == 130, log.read_text()
    finally:
        _end(process)
    assert [pid for pid in family if Path(f"/proc/{pid}").exists()] == []


def test_a_lost_index_is_rebuilt_as_the_page_says(sandbox: Sandbox) -> None:
    """Stop, remove ``daemon.sqlite*``, rebuild: the study is there again."""
    assert sandbox.daemon.stop() == 0
    for path in (sandbox.folder / "data").glob("daemon.sqlite*"):
        path.unlink()
    sandbox.run(LAST)
    with sandbox.daemon.index() as index:
        assert [study.state for study in index.list_studies()] == ["scored"]


def _wait_for(done: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180.0
    while not done():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.1)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()
