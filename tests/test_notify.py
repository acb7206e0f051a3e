"""systemd's protocol (sd_notify(3)) over a real datagram socket, alone and through ``daemon run``."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from peers import free_port

from daemon.notify import Listener, Pulse, notify, wait


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket that systemd would listen on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(60.0)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listener


def test_a_state_arrives_as_one_datagram(systemd: socket.socket) -> None:
    """READY=1 reaches the socket that the environment names."""
    notify("READY=1")
    assert systemd.recv(100) == b"READY=1"


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No socket, or one that is gone, is no error."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify("READY=1")


def test_an_abstract_socket_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that starts with @ is Linux's abstract name space; our own listener is there, too."""
    listener = Listener()
    monkeypatch.setenv("NOTIFY_SOCKET", listener.address)
    assert not listener.heard("READY=1")
    notify("STATUS=reading\nREADY=1")
    assert listener.heard("READY=1")
    assert not listener.heard("READY=1")
    listener.close()


def test_waiting_says_ready_alive_and_stopping(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A role says READY=1, then WATCHDOG=1 at half of the interval, then STOPPING=1."""
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    stop = threading.Event()
    waiting = threading.Thread(target=wait, args=(stop,))
    waiting.start()
    assert [systemd.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
    stop.set()
    waiting.join()
    said = b""
    while said != b"STOPPING=1":
        said = systemd.recv(100)


def test_another_process_watchdog_is_not_fed(systemd: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """WATCHDOG_PID names the process that systemd looks at; a role of the supervisor stays silent."""
    monkeypatch.setenv("WATCHDOG_PID", "1")
    monkeypatch.setenv("WATCHDOG_USEC", "1")
    Pulse().beat()
    notify("READY=1")
    assert systemd.recv(100) == b"READY=1"


@pytest.mark.slow
@pytest.mark.parametrize("role", [None, "receive"])
def test_the_daemon_is_ready_when_it_listens(
    systemd: socket.socket, tmp_path: Path, role: str | None
) -> None:
    """``daemon run`` says READY=1 once, when its Storage SCP takes connections; and STOPPING=1 at SIGTERM."""
    port = free_port()
    settings = tmp_path / "settings.toml"
    settings.write_text(f"[receiver]\nport = {port}\n[web]\nport = 0\n")
    command = [sys.executable, "-m", "daemon", "run", "--settings", str(settings)]
    process = subprocess.Popen([*command, *(["--role", role] if role else [])], stderr=subprocess.DEVNULL)
    try:
        assert systemd.recv(100) == b"READY=1"
        socket.create_connection(("127.0.0.1", port), 1.0).close()
        process.send_signal(signal.SIGTERM)
        assert systemd.recv(100) == b"STOPPING=1"
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    time.sleep(0.1)
    systemd.setblocking(False)
    with pytest.raises(BlockingIOError):
        systemd.recv(100)
