"""The site of the fault runs: a daemon on one host, and a PACS that keeps a journal."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dbos import DBOSClient, DBOSPortableJSONSerializer
from sqlalchemy.exc import SQLAlchemyError

from benchmarks.peers import free_port
from daemon.errors import DaemonError
from daemon.index import Index
from daemon.settings import Settings, load_settings


@dataclass
class Site:
    """Everything of one fault run, in one folder; the daemon's bundle lies in ``bundles``.

    ``prefix`` puts the daemon into a network namespace where it has the address ``host``;
    ``spool_dir`` and ``database`` are then those that the hosts share, ``pacs`` is the folder of
    the PACS that one of them started. ``program`` is a folder with another version of the daemon.
    """

    folder: Path
    bundles: Path
    database: str = ""
    extra: str = ""
    give_up_s: float = 600.0
    data_dir: Path | None = None
    reserve_bytes: int = 1_000_000
    environment: dict[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()
    node: str = ""
    spool_dir: str = ""
    poll_s: float = 0.1
    dead_after_s: float = 90.0
    pacs_host: str = "127.0.0.1"
    pacs_port: int = field(default_factory=free_port)
    program: Path | None = None
    restarts: int = 0
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.port = free_port()
        self.data = self.data_dir or self.folder / "data"
        self.pacs = self.folder / "pacs"
        self.path, self.log = self.folder / "settings.toml", self.folder / "log"
        self.pacs.mkdir(parents=True, exist_ok=True)
        self.data.mkdir(exist_ok=True, parents=True)
        if not (self.data / "bundles").exists():
            (self.data / "bundles").symlink_to(self.bundles)
        self.path.write_text(self._settings_file())

    def _settings_file(self) -> str:
        # The page is no part of most runs; nothing is pruned, so that the audit finds everything.
        page = "" if "[web]" in self.extra else "[web]\nport = 0\n"
        return (
            f'[service]\ndata_dir = "{self.data}"\ndatabase = "{self.database}"\nstop_timeout_s = 20.0\n'
            f'spool_dir = "{self.spool_dir}"\n{page}'
            f'[receiver]\nhost = "{self.host}"\nport = {self.port}\nreserve_bytes = {self.reserve_bytes}\n'
            "[study]\nquiet_s = 0.3\n[model]\nthreads = 1\n[retention]\nprune_below_bytes = 0\n"
            "[delivery]\nquick_attempts = 1\nretry_delay_s = 0.5\nmaximum_delay_s = 2.0\n"
            f"give_up_s = {self.give_up_s}\n"
            f'[engine]\nnode = "{self.node}"\npoll_s = {self.poll_s}\nmaximum_recovery_attempts = 100\n'
            f"dead_after_s = {self.dead_after_s}\n"
            f'[[destinations]]\nname = "pacs"\nae_title = "PACS"\nhost = "{self.pacs_host}"\n'
            f"port = {self.pacs_port}\nconnect_timeout_s = 3.0\ndimse_timeout_s = 3.0\n{self.extra}\n"
        )

    @property
    def settings(self) -> Settings:
        """Of its daemon."""
        return load_settings(self.path)

    @property
    def address(self) -> tuple[str, int]:
        """Where its daemon receives."""
        return self.host, self.port

    @contextlib.contextmanager
    def running(self) -> Iterator[Site]:
        """Run PACS and daemon; both are gone at the end."""
        try:
            self.start_pacs()
            self.start_daemon()
            yield self
        finally:
            self.end()

    def end(self) -> None:
        """Stop every process that was started."""
        for process in self.processes:
            self._end(process)

    def start_pacs(self) -> None:
        """Start the PACS and wait for it."""
        command = [sys.executable, "-m", "benchmarks.fault_pacs", "--host", self.pacs_host]
        self.pacs_process = self._spawn(
            [*command, "--port", str(self.pacs_port), "--folder", str(self.pacs)], self.folder / "pacs.log"
        )
        _wait_for(self.pacs_host, self.pacs_port, self.pacs_process)

    def start_daemon(self) -> None:
        """Start ``daemon run``, and wait for its port unless it ends first."""
        self._start_daemon()
        _wait_for(self.host, self.port, self.daemon)

    def behave(self, behaviour: str) -> None:
        """Tell the PACS how to behave from now on."""
        part = self.pacs / "behaviour.new"
        part.write_text(behaviour)
        part.rename(self.pacs / "behaviour")

    def wait_until_met(self, times: int, timeout_s: float = 120.0) -> int:
        """Wait until the PACS misbehaved so often; return how often it did."""
        deadline = time.monotonic() + timeout_s
        while (met := self._met()) < times and time.monotonic() < deadline:
            time.sleep(0.1)
        return met

    def _met(self) -> int:
        try:
            return len((self.pacs / "met").read_text().splitlines())
        except OSError:
            return 0

    def roles(self) -> dict[str, int]:
        """Process id of each role that runs, of the receiving role's helper, and of the supervisor."""
        found = {"supervisor": self.daemon.pid} if self.daemon.poll() is None else {}
        for pid in _children(self.daemon.pid):
            with contextlib.suppress(OSError, ValueError, IndexError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                found[words[words.index("--role") + 1]] = pid
        # One of its processes was forked by another: it has the same words.
        for pid in _children(found.get("receive", -1)):
            found["helper"] = pid
        return found

    def kill(self, role: str) -> bool:
        """``kill -9`` of one process; the supervisor is started again, as systemd would."""
        pid = self.roles().get(role)
        if pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self.keep_up()
        return True

    def kill_all(self) -> None:
        """``kill -9`` of every process of the daemon at once, as if the host lost its power."""
        for pid in self.roles().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.daemon.wait()

    def keep_up(self) -> None:
        """Start the daemon again if its supervisor ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.daemon.wait(0.3)
        if self.daemon.poll() is not None:
            self.restarts += 1
            self._start_daemon()

    def stop_daemon(self) -> None:
        """SIGTERM."""
        self._end(self.daemon)

    @contextlib.contextmanager
    def index(self) -> Iterator[Index]:
        """The daemon's index, opened beside it."""
        index = Index(self.settings.database_url)
        try:
            yield index
        finally:
            index.close()

    @contextlib.contextmanager
    def queue(self) -> Iterator[DBOSClient]:
        """The daemon's queue, opened beside it."""
        client = DBOSClient(
            system_database_url=self.settings.engine_url, serializer=DBOSPortableJSONSerializer()
        )
        try:
            yield client
        finally:
            client.destroy()

    def wait_until_done(self, studies: set[str], timeout_s: float = 300.0) -> bool:
        """Wait until every study has its results delivered or dead; False when time is over."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(SQLAlchemyError, DaemonError), self.index() as index:
                if self._is_done(index, studies):
                    return True
            self.keep_up()
            time.sleep(0.5)
        return False

    @staticmethod
    def _is_done(index: Index, studies: set[str]) -> bool:
        found = index.list_studies()
        if not studies <= {study.study_instance_uid for study in found}:
            return False
        if any(s.dirty or s.state not in ("scored", "refused", "failed") for s in found):
            return False
        return not index.deliveries(states=["pending", "failed"])

    def _start_daemon(self) -> None:
        command = [sys.executable, "-m", "daemon", "run", "--settings", str(self.path)]
        self.daemon = self._spawn([*self.prefix, *command], self.log, self.environment, self.program)

    def _spawn(
        self,
        command: list[str],
        log: Path,
        environment: dict[str, str] | None = None,
        folder: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        # Fewer threads: several processes share few cores.
        env = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        with log.open("ab") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env=env, cwd=folder)
        self.processes = [p for p in self.processes if p.poll() is None] + [process]
        return process

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(host: str, port: int, process: subprocess.Popen[bytes], timeout_s: float = 60.0) -> None:
    """Wait until somebody listens there, unless the process ends first."""
    deadline = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, port), 1.0):
            return
        time.sleep(0.1)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
