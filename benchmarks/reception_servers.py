"""The receivers that are compared, each in a folder of its own, and what a process has used."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import free_port, program, wait_for_port

# What the daemon holds open, or maps, beside what it received.
_KEPT = ("journal", "metrics", "audit")
_TICKS = os.sysconf("SC_CLK_TCK")
# Debian's place for Orthanc is not on every user's path.
_PATH = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin"
_ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1", "PATH": _PATH}


@dataclass(frozen=True, slots=True)
class Server:
    """How one receiver is started.

    Parameters
    ----------
    name
        In the table.
    called
        Its AE title.
    command
        Given its folder and port.
    durable
        Whether Success means that the instance survives the end of the machine.
    """

    name: str
    called: str
    command: Callable[[Path, int], list[str]]
    durable: bool = True


def _role(way: str) -> Callable[[Path, int], list[str]]:
    def command(folder: Path, port: int) -> list[str]:
        settings = folder / "settings.toml"
        settings.write_text(
            f'[service]\ndata_dir = "data"\n[receiver]\nport = {port}\nreserve_bytes = 1000000\n'
            f'reception = "{way}"\n[study]\nquiet_s = 3600.0\n'
        )
        return [sys.executable, "-m", "daemon", "run", "--role", "receive", "--settings", str(settings)]

    return command


def _path(way: str) -> Callable[[Path, int], list[str]]:
    return lambda folder, port: [
        sys.executable,
        "-m",
        "benchmarks.reception_node",
        str(port),
        str(folder),
        way,
    ]


def _storescp(folder: Path, port: int) -> list[str]:
    return [program("storescp"), "--fork", "+B", "-pdu", "131072", "-od", str(folder), str(port)]


def _orthanc(folder: Path, port: int) -> list[str]:
    config = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpServerEnabled": False,
        "Plugins": [],
        "DicomAet": "ORTHANC",
        "DicomPort": port,
        "DicomAlwaysAllowStore": True,
        "StorageCompression": False,
        "SyncStorageArea": True,
    }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(config))
    return [program("Orthanc"), str(path)]


ROLE, STOCK, ORTHANC, STORESCP = "daemon, fast", "daemon, stock", "Orthanc", "storescp (not durable)"
SERVERS = (
    Server(ROLE, "ANOMALYD", _role("fast")),
    Server("fast, path alone", "ANOMALYD", _path("fast")),
    Server(STOCK, "ANOMALYD", _role("stock")),
    Server(ORTHANC, "ORTHANC", _orthanc),
    Server(STORESCP, "STORESCP", _storescp, durable=False),
)


@dataclass(slots=True)
class Running:
    """A receiver that runs."""

    server: Server
    port: int
    folder: Path
    process: subprocess.Popen[bytes]

    def empty(self) -> None:
        """Take the content of large files that were received: the disk shall not fill."""
        for path in self.folder.rglob("*"):
            if path.parent.name in _KEPT or path.name.startswith(("index", "daemon")):
                continue
            with contextlib.suppress(OSError):
                if path.is_file() and path.stat().st_size > 50_000:
                    os.truncate(path, 0)

    def cpu_s(self) -> float:
        """CPU time of the process and its children, living and waited for."""
        return sum(_cpu_s(pid) for pid in self._family())

    def reset_peak(self) -> None:
        """Begin to measure the peak of its memory."""
        for pid in self._family():
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        """The largest resident sizes since, of the process and its children; what they share counts twice."""
        return sum(_peak_bytes(pid) for pid in self._family())

    def _family(self) -> list[int]:
        found = [self.process.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
                found += [int(child) for child in children.split()]
        return found


def _peak_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")), 0)


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(fields[n]) for n in range(11, 15)) / _TICKS


@contextlib.contextmanager
def running(server: Server, folder: Path) -> Iterator[Running]:
    """Run a receiver for a while.

    Its folder stays: a file system without a journal (ext4) searches long for an inode when many were
    just deleted, and the next receiver would pay for that.
    """
    folder.mkdir(parents=True)
    port = free_port()
    command = server.command(folder, port)
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=_ENVIRONMENT)
        try:
            wait_for_port(port, process)
            yield Running(server, port, folder, process)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(30.0)
                process.kill()
            process.wait()
