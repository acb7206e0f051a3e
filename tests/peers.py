"""Real peers on loopback: Orthanc and DCMTK, each on a free port and stopped by its own process id."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from daemon.sender import Destination

# pynetdicom puts programs of DCMTK's names into its virtual environment, and some other one may be
# active; Debian puts Orthanc into /usr/sbin, which is not on every user's path.
_PATH = os.pathsep.join(
    folder
    for folder in [*os.environ.get("PATH", "").split(os.pathsep), "/usr/sbin"]
    if not (Path(folder).parent / "pyvenv.cfg").exists()
)
_ENVIRONMENT = {**os.environ, "PATH": _PATH}
# Nagle's algorithm costs DCMTK 40 ms an instance.
_DCMTK = {**_ENVIRONMENT, "TCP_NODELAY": "1"}


def need(*programs: str) -> None:
    """Skip the test when a program is not installed."""
    for program in programs:
        if shutil.which(program, path=_PATH) is None:
            pytest.skip(f"{program} is not installed")


def children(pid: int) -> list[int]:
    """Process ids of a process' children, by whichever of its threads they were started."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(child) for child in found.stdout.split()]


def free_port() -> int:
    """Return a TCP port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process(Protocol):
    """What listens, or is about to."""

    def poll(self) -> int | None:
        """Exit code, or None while it runs."""


def wait_for_port(port: int, process: Process, timeout_s: float = 30.0) -> None:
    """Wait until a process listens on a port; fail when it ends or takes too long."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (code := process.poll()) is not None:
            raise RuntimeError(f"the peer ended with exit code {code}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.05)
    raise RuntimeError(f"nobody listens on port {port} after {timeout_s} s")


def heed_interrupts() -> None:
    """For ``preexec_fn``: a shell lets what it starts in the background ignore Ctrl-C, which is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stop(process: "subprocess.Popen[bytes]", timeout_s: float = 20.0) -> None:
    """End a process that we started: SIGTERM, and SIGKILL when it does not heed it."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class OrthancPeer:
    """A running Orthanc."""

    ae_title: str
    port: int
    http_port: int

    def destination(self, **changes: Any) -> Destination:
        """Return it as a destination of ours."""
        fields = {"name": "orthanc", "ae_title": self.ae_title, "host": "127.0.0.1", "port": self.port}
        return Destination(**{**fields, **changes})

    def get(self, path: str) -> Any:
        """Return the JSON of a REST resource, such as ``/studies``."""
        return json.loads(self.download(path))

    def download(self, path: str) -> bytes:
        """Return the bytes of a REST resource, such as ``/instances/{id}/file``."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.http_port}{path}", timeout=30.0) as answer:
            return bytes(answer.read())

    def instances(self) -> dict[str, str]:
        """Return Orthanc's id of every stored instance by SOP Instance UID."""
        found = self.get("/instances?expand")
        return {entry["MainDicomTags"]["SOPInstanceUID"]: entry["ID"] for entry in found}


@contextlib.contextmanager
def orthanc(folder: Path, ae_title: str = "ORTHANC", **settings: Any) -> Iterator[OrthancPeer]:
    """Run Orthanc with its storage in a folder.

    Parameters
    ----------
    folder
        A folder of the test's own.
    ae_title
        Its AE title.
    settings
        Keys of Orthanc's configuration that differ from ours.
    """
    need("Orthanc")
    peer = OrthancPeer(ae_title, int(settings.get("DicomPort") or free_port()), free_port())
    home = folder / "orthanc"
    home.mkdir(exist_ok=True)
    config = {
        "Name": "peer",
        "StorageDirectory": str(home / "storage"),
        "IndexDirectory": str(home / "storage"),
        "DicomAet": ae_title,
        "DicomPort": peer.port,
        "HttpPort": peer.http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomCheckCalledAet": True,
        "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowStore": True,
        "UnknownSopClassAccepted": True,
        "TcpNoDelay": True,
        "Plugins": [],
        **settings,
    }
    (home / "orthanc.json").write_text(json.dumps(config))
    with (home / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(
            ["Orthanc", str(home / "orthanc.json")],
            stdout=log,
            stderr=log,
            env=_ENVIRONMENT,
        )
        try:
            wait_for_port(peer.port, process)
            wait_for_port(peer.http_port, process)
            yield peer
        finally:
            stop(process)


@dataclass(frozen=True)
class StorescpPeer:
    """A running storescp of DCMTK; what it receives lies in ``folder``."""

    ae_title: str
    port: int
    folder: Path

    def destination(self, **changes: Any) -> Destination:
        """Return it as a destination of ours."""
        fields = {"name": "storescp", "ae_title": self.ae_title, "host": "127.0.0.1", "port": self.port}
        return Destination(**{**fields, **changes})

    def files(self) -> list[Path]:
        """Return the received files."""
        return sorted(path for path in self.folder.iterdir() if path.is_file())


@contextlib.contextmanager
def storescp(folder: Path, *options: str, ae_title: str = "STORESCP") -> Iterator[StorescpPeer]:
    """Run storescp; options are its own, such as ``+xa`` for every transfer syntax."""
    need("storescp")
    received = folder / "received"
    received.mkdir(exist_ok=True)
    peer = StorescpPeer(ae_title, free_port(), received)
    command = ["storescp", "-aet", ae_title, "-od", str(received), *options, str(peer.port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_DCMTK)
    try:
        wait_for_port(peer.port, process)
        yield peer
    finally:
        stop(process)


def dcmtk(program: str, *arguments: str, timeout_s: float = 120.0) -> "subprocess.CompletedProcess[str]":
    """Run one of DCMTK's clients (storescu, dcmsend, echoscu, findscu) to its end."""
    need(program)
    return subprocess.run(
        [program, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        errors="replace",
        env=_ENVIRONMENT,
    )


def storescu(port: int, *arguments: str, called: str = "ANOMALYD", calling: str = "MODALITY") -> Any:
    """Store files with storescu; further options stand before the files."""
    return dcmtk("storescu", "-v", "-aec", called, "-aet", calling, "127.0.0.1", str(port), *arguments)


def dcmsend(port: int, *arguments: str, called: str = "ANOMALYD", calling: str = "MODALITY") -> Any:
    """Store files with dcmsend, each in its own transfer syntax."""
    own = ("--decompress-never", "--no-halt")
    return dcmtk("dcmsend", "-v", "-aec", called, "-aet", calling, *own, "127.0.0.1", str(port), *arguments)
