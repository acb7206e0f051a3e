"""systemd's notification protocol (sd_notify(3)): ready, stopping, still alive; nothing without systemd."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time

_IDLE_S = 3600.0


def notify(state: str) -> None:
    """Tell systemd, such as ``READY=1``; does nothing where nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(state.encode(), address)


def watchdog_interval_s() -> float | None:
    """Half of the time within which systemd wants to hear of this process; None if it does not."""
    if os.environ.get("WATCHDOG_PID", "") != str(os.getpid()):
        return None
    with contextlib.suppress(ValueError):
        return int(os.environ.get("WATCHDOG_USEC", "")) / 2e6
    return None


class Pulse:
    """Tells systemd that a loop is alive, as often as it wants to hear of it."""

    def __init__(self) -> None:
        self._interval_s = watchdog_interval_s()
        self._due = time.monotonic()

    def beat(self) -> None:
        """Once around the loop."""
        if self._interval_s is not None and time.monotonic() >= self._due:
            self._due = time.monotonic() + self._interval_s
            notify("WATCHDOG=1")


class Listener:
    """Hears what a child process would tell systemd; ``address`` is for its ``NOTIFY_SOCKET``."""

    def __init__(self) -> None:
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # Linux picks an unused abstract address (unix(7), autobind).
        self._channel.bind("")
        self._channel.setblocking(False)
        self.address = "@" + self._channel.getsockname()[1:].decode()

    def heard(self, state: str) -> bool:
        """Whether this state came since the last look."""
        with contextlib.suppress(BlockingIOError):
            while True:
                if state in self._channel.recv(4096).decode(errors="replace").split("\n"):
                    return True
        return False

    def close(self) -> None:
        """Hear no more."""
        self._channel.close()


def wait(stop: threading.Event) -> None:
    """Tell systemd that this process is ready; wait for the end, and tell it meanwhile that we are alive."""
    notify("READY=1")
    interval = watchdog_interval_s()
    while not stop.wait(interval or _IDLE_S):
        if interval:
            notify("WATCHDOG=1")
    notify("STOPPING=1")
