"""What several test files share: a bundle fitted on phantoms, and a running daemon."""

import contextlib
import fcntl
import gc
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from peers import children, free_port
from warm_daemon import WarmDaemon
from xdist.scheduler import LoadScopeScheduling

from adapters import registry
from adapters.backbone import BackboneSpec, load_backbone
from adapters.bundle import AdapterBundle
from adapters.slices import Normalisation, load_slice
from daemon.index import Index
from daemon.phantom import make_case, write_case
from daemon.settings import Settings, load_settings
from training.fit import Options, fit

if TYPE_CHECKING:  # it imports this file
    from page_site import PageSite


# These files share the session's one site with a page.
PAGE = ("test_page", "test_feedback")


class _Sharing(LoadScopeScheduling):  # type: ignore[misc]
    """A worker has a file whole, and one of them all files of the page."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "page" if Path(file).name.startswith(PAGE) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Sharing:
    """How ``make test`` shares the tests among its workers."""
    return _Sharing(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The page's files, and those with slow tests, come first: workers then end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (not item.path.name.startswith(PAGE), item.path not in slow))


def pytest_collection_finish() -> None:
    """What was imported stays: the collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_log_of_another_test() -> Iterator[None]:
    """A command that ran in this process leaves no handler behind, whose stream has ended with it."""
    _forget_handlers()
    yield
    _forget_handlers()


def _forget_handlers() -> None:
    """Back to the root logger as it was; pytest's own handlers are of other types."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if type(handler) is logging.StreamHandler]:
        root.removeHandler(handler)
    root.setLevel(logging.WARNING)


@pytest.fixture(scope="session")
def phantom_bundle(tmp_path_factory: pytest.TempPathFactory) -> AdapterBundle:
    """Adapters fitted on a few phantom cases, read from DICOM as the daemon does; once for all workers."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    bundles = folder / "phantom-bundle"
    with (folder / "phantom-bundle.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not bundles.is_dir():
            fitted = _fit_on_phantoms(tmp_path_factory.mktemp("fit"))
            registry.store(bundles, fitted)
            registry.promote(bundles, fitted.name, fitted.version)
    return registry.select(bundles, "phantom-ct")


def _fit_on_phantoms(folder: Path) -> AdapterBundle:
    normalisation = Normalisation(kind="object", size_px=128)
    normal, abnormal, normal_keys, abnormal_keys = [], [], [], []
    for number in range(12):
        case = make_case(number, abnormal=number >= 6)
        for file, mask in zip(write_case(case, folder / str(number)), case.lesion, strict=True):
            pixels = load_slice(file, normalisation=normalisation, max_frame_pixels=1 << 20).pixels
            if mask.any():
                abnormal.append((pixels, np.asarray(mask)))
                abnormal_keys.append(str(number))
            elif not case.abnormal:
                normal.append(pixels)
                normal_keys.append(str(number))
    return fit(
        load_backbone(BackboneSpec(), "cpu", "fp32"),
        normal,
        list(abnormal),
        name="phantom-ct",
        class_name="Chest",
        normalisation=normalisation,
        case_keys=normal_keys + abnormal_keys,
        options=Options(folds=2),
    )


@dataclass
class RunningDaemon:
    """``daemon run`` with a process of its own for each role, on free ports.

    A cold one is ``python -m daemon``, and its supervisor starts the roles so: for tests of that.
    """

    settings_path: Path
    settings: Settings
    process: "subprocess.Popen[bytes] | WarmDaemon"
    log: Path
    cold: bool = False

    @property
    def port(self) -> int:
        """Of its Storage SCP."""
        return self.settings.receiver.port

    def index(self) -> "contextlib.closing[Index]":
        """Its index, opened beside it."""
        return contextlib.closing(Index(self.settings.database_url))

    def children(self) -> list[int]:
        """Process ids of its roles."""
        return children(self.process.pid)

    def wait_for(self, done: Callable[[Index], bool], timeout_s: float = 90.0) -> None:
        """Wait until the index says so."""
        deadline = time.monotonic() + timeout_s
        with self.index() as index:
            while time.monotonic() < deadline:
                if done(index):
                    return
                time.sleep(0.1)
            states = [(s.state, s.state_reason) for s in index.list_studies()]
        pytest.fail(
            f"not done after {timeout_s:.0f} s; states {states}; log:\n{self.log.read_text()[-3000:]}"
        )

    def kill(self) -> None:
        """``kill -9`` of every process of it."""
        roles = self.children()
        pids = [pid for role in roles for pid in (role, *children(role))] + [self.process.pid]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def start_again(self) -> None:
        """Start it with the same settings."""
        self.process = _start(self.settings_path, self.log, cold=self.cold)

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.terminate()
        return self.process.wait(60)


def _start(settings_path: Path, log: Path, *, cold: bool) -> "subprocess.Popen[bytes] | WarmDaemon":
    if not cold:
        return WarmDaemon(settings_path, log)
    command = [sys.executable, "-m", "daemon", "run", "--settings", str(settings_path)]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file)


@pytest.fixture
def start_daemon(tmp_path: Path, phantom_bundle: AdapterBundle) -> Iterator[Callable[..., RunningDaemon]]:
    """Start daemons whose destination is the given port; all are stopped at the end."""
    with daemons(tmp_path, phantom_bundle) as start:
        yield start


@contextlib.contextmanager
def daemons(tmp_path: Path, *bundles: AdapterBundle) -> Iterator[Callable[..., RunningDaemon]]:
    """Start daemons below a folder that serve these bundles; all are stopped at the end."""
    running: list[RunningDaemon] = []

    def start(
        pacs_port: int,
        pacs_ae: str = "ORTHANC",
        quiet_s: float = 1.0,
        extra: str = "",
        *,
        page: bool = False,
        cold: bool = False,
    ) -> RunningDaemon:
        folder = tmp_path / f"daemon-{len(running)}"
        folder.mkdir()
        path = folder / "settings.toml"
        destination = {"name": "pacs", "ae_title": pacs_ae, "host": "127.0.0.1", "port": pacs_port}
        lines = [
            '[service]\ndata_dir = "data"',
            f"[receiver]\nport = {free_port()}\nreserve_bytes = 1000000",
            f"[web]\nport = {free_port() if page else 0}",
            f"[study]\nquiet_s = {quiet_s}",
            "[delivery]\nquick_attempts = 1\nretry_delay_s = 1.0\nmaximum_delay_s = 2.0",
            "[engine]\npoll_s = 0.1\nmaximum_recovery_attempts = 20",
            "[[destinations]]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in destination.items()),
        ]
        path.write_text("\n".join([*lines, extra]))
        settings = load_settings(path)
        for bundle in bundles:
            registry.store(settings.bundles_dir, bundle)
            registry.promote(settings.bundles_dir, bundle.name, bundle.version)
        log = folder / "log"
        daemon = RunningDaemon(path, settings, _start(path, log, cold=cold), log, cold)
        running.append(daemon)
        _wait_for_listener(daemon)
        return daemon

    try:
        yield start
    finally:
        for daemon in running:
            if daemon.process.poll() is None:
                daemon.kill()


def _wait_for_listener(daemon: RunningDaemon) -> None:
    from peers import wait_for_port

    wait_for_port(daemon.port, daemon.process, 60.0)


@pytest.fixture(scope="session")
def page_site(
    tmp_path_factory: pytest.TempPathFactory, phantom_bundle: AdapterBundle
) -> Iterator["PageSite"]:
    """One site for all tests of the page and its API; a test leaves it as it found it."""
    from page_site import run_page_site

    with run_page_site(tmp_path_factory.mktemp("page"), phantom_bundle) as site:
        yield site
