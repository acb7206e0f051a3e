"""The PACS of the demo: Orthanc where it is installed, else a second Storage SCP of our own kind."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from daemon.errors import DaemonError
from daemon.index import Index
from daemon.receiver import Receiver
from daemon.spool import Spool

AE_TITLE = "DEMOPACS"


class DemoPacs(Protocol):
    """What the demo needs of its PACS."""

    @property
    def name(self) -> str:
        """What it is."""

    @property
    def port(self) -> int:
        """Its DICOM port."""

    def fetch(self, study: str, folder: Path) -> list[Path]:
        """Write the SEG and SR instances that it has of a study into a folder."""


def free_port() -> int:
    """A TCP port that is free on loopback now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def demo_pacs(folder: Path) -> Iterator[DemoPacs]:
    """Start a PACS on free loopback ports and stop it at the end.

    Parameters
    ----------
    folder
        For its storage and log.

    Yields
    ------
    DemoPacs
        Ready to receive.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.which("Orthanc"):
        with _orthanc(folder) as pacs:
            yield pacs
        return
    index = Index(f"sqlite:///{(folder / 'index.sqlite').resolve()}")
    receiver = Receiver(
        AE_TITLE, "127.0.0.1", 0, Spool(folder / "spool"), index, b"demo", accept_unknown_peers=True
    )
    receiver.start()
    try:
        yield _OwnPacs(
            "a plain Storage SCP (Orthanc is not installed)", receiver.port, index, folder / "spool"
        )
    finally:
        receiver.stop(5.0)
        index.close()


@dataclass(frozen=True, slots=True)
class _OwnPacs:
    name: str
    port: int
    index: Index
    spool: Path

    def fetch(self, study: str, folder: Path) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for instance in self.index.instances_of(study):
            target = folder / f"{instance.sop_instance_uid}.dcm"
            shutil.copyfile(self.spool / instance.path, target)
            files.append(target)
        return files


@dataclass(frozen=True, slots=True)
class _Orthanc:
    name: str
    port: int
    http_port: int

    def fetch(self, study: str, folder: Path) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        query = {"Level": "Instance", "Query": {"StudyInstanceUID": study}}
        files = []
        for identifier in json.loads(self._request("/tools/find", json.dumps(query).encode())):
            target = folder / f"{identifier}.dcm"
            target.write_bytes(self._request(f"/instances/{identifier}/file"))
            files.append(target)
        return files

    def _request(self, path: str, data: bytes | None = None) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", data, timeout=30) as answer:
            body: bytes = answer.read()
            return body


@contextlib.contextmanager
def _orthanc(folder: Path) -> Iterator[_Orthanc]:
    pacs = _Orthanc("Orthanc", free_port(), free_port())
    config = {
        "Name": "Demo PACS",
        "StorageDirectory": str((folder / "storage").resolve()),
        "IndexDirectory": str((folder / "storage").resolve()),
        "DicomAet": AE_TITLE,
        "DicomPort": pacs.port,
        "HttpPort": pacs.http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [],
    }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(config, indent=2))
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(["Orthanc", str(path)], stdout=log, stderr=log)
        try:
            _wait_for_port(pacs.http_port, process)
            _wait_for_port(pacs.port, process)
            yield pacs
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()


def _wait_for_port(port: int, process: subprocess.Popen[bytes], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DaemonError(f"the demo's PACS ended with code {process.returncode}; see its log")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.1)
    raise DaemonError(f"nothing listens on port {port} after {timeout_s:.0f} s")
