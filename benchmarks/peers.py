"""The processes around the measurement: Orthanc, DCMTK's storescu and the daemon itself."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

# pynetdicom puts programs of DCMTK's names into its virtual environment, and some other one may be
# active; Debian keeps Orthanc in sbin.
_PATH = os.pathsep.join(
    folder
    for folder in [*os.environ.get("PATH", "").split(os.pathsep), "/usr/sbin"]
    if not (Path(folder).parent / "pyvenv.cfg").exists()
)


def need(*programs: str) -> None:
    """End the benchmark when a program is not installed."""
    missing = [program for program in programs if shutil.which(program, path=_PATH) is None]
    if missing:
        raise SystemExit(f"benchmark: {', '.join(missing)} not installed; run `make peers`")


def program(name: str) -> str:
    """Return the path of a program that :func:`need` has found."""
    path = shutil.which(name, path=_PATH)
    assert path is not None
    return path


def free_port() -> int:
    """Return a TCP port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def orthanc(folder: Path, port: int) -> Iterator[None]:
    """Run Orthanc as the destination, its storage in a folder."""
    folder.mkdir(parents=True)
    storage = str(folder / "storage")
    config = {
        "StorageDirectory": storage,
        "IndexDirectory": storage,
        "DicomAet": "ORTHANC",
        "DicomPort": port,
        "HttpPort": free_port(),
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True,
        "TcpNoDelay": True,
        "Plugins": [],
    }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(config))
    with _running([program("Orthanc"), str(path)], folder / "log") as process:
        wait_for_port(port, process)
        yield


@contextlib.contextmanager
def daemon(settings_path: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``daemon run`` with these settings."""
    command = [sys.executable, "-m", "daemon", "run", "--settings", str(settings_path)]
    with _running(command, log) as process:
        yield process


def storescu(port: int, folder: Path, *options: str) -> float:
    """Send a folder with storescu and return how long that took in seconds."""
    started = time.monotonic()
    command = [program("storescu"), *options, "-aec", "ANOMALYD", "+sd", "127.0.0.1", str(port), str(folder)]
    # Nagle's algorithm costs DCMTK 40 ms an instance.
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "TCP_NODELAY": "1"})
    return time.monotonic() - started


def wait_for_port(port: int, process: subprocess.Popen[bytes], timeout_s: float = 60.0) -> None:
    """Wait until a process listens on a port."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"benchmark: a peer ended with exit code {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.05)
    raise SystemExit(f"benchmark: nobody listens on port {port} after {timeout_s:.0f} s")


@contextlib.contextmanager
def _running(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, "PATH": _PATH})
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
