"""Syslog over TLS, as the audit trail is sent (PS3.15 A.6; RFC 5424 and RFC 5425)."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import select
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from daemon.log import event

_APPLICATION = "pacs-anomaly-daemon"
# PS3.15 A.6: facility 10 (security), severity 5 (normal but significant).
_PRIORITY = 10 * 8 + 5
_MESSAGE_ID = "DICOM+RFC3881"
_WAITING = 10_000
_DELAYS_S = (1.0, 2.0, 5.0, 15.0, 60.0)
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Repository:
    """Where audit messages go, and how to recognise it."""

    host: str
    port: int
    context: ssl.SSLContext


def frame(message: str, host: str, at: datetime | None = None) -> bytes:
    """Return a message in its frame: octet count (RFC 5425 4.3), header (RFC 5424 6), UTF-8 with a BOM."""
    when = (at or datetime.now(UTC)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    header = f"<{_PRIORITY}>1 {when} {host} {_APPLICATION} {os.getpid()} {_MESSAGE_ID} - "
    content = header.encode("ascii", "replace") + b"\xef\xbb\xbf" + message.encode()
    return str(len(content)).encode() + b" " + content


class Syslog:
    """Sends messages in a thread of its own; while the repository is away they wait, up to a number.

    What had to be dropped is counted in the log; the audit trail's file has it still.

    Parameters
    ----------
    repository
        Where to.
    host
        Our own name.
    """

    def __init__(self, repository: Repository, host: str) -> None:
        self._repository, self._host = repository, host
        self._waiting: queue.Queue[bytes] = queue.Queue(_WAITING)
        self._dropped = 0
        self._stop = threading.Event()
        self._connection: ssl.SSLSocket | None = None
        self._thread = threading.Thread(target=self._run, name="audit-syslog", daemon=True)
        self._thread.start()

    def write(self, message: str) -> None:
        """Send a message, soon."""
        try:
            self._waiting.put_nowait(frame(message, self._host))
        except queue.Full:
            self._dropped += 1

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what waits, for at most some seconds."""
        deadline = time.monotonic() + timeout_s
        while self._waiting.unfinished_tasks and time.monotonic() < deadline and self._thread.is_alive():
            time.sleep(0.02)
        self._stop.set()
        self._thread.join(_TIMEOUT_S)
        if left := self._waiting.unfinished_tasks + self._dropped:
            event("audit messages not sent", level=logging.ERROR, count=left)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                message = self._waiting.get(timeout=0.2)
            except queue.Empty:
                continue
            if self._deliver(message):
                self._waiting.task_done()
        self._disconnect()

    def _deliver(self, message: bytes) -> bool:
        """Send one message, again and again until it is gone (True) or we stop."""
        failures = 0
        while not self._stop.is_set():
            try:
                self._connected().sendall(message)
            # The edge of this thread: whatever fails, what waits must not wait for a thread that is gone.
            except Exception as error:
                self._disconnect()
                if not failures:
                    event("audit repository", level=logging.ERROR, outcome="unreachable", reason=_why(error))
                self._stop.wait(_DELAYS_S[min(failures, len(_DELAYS_S) - 1)])
                failures += 1
                continue
            if failures:
                event("audit repository", outcome="reachable again", count=self._dropped)
                self._dropped = 0
            return True
        return False

    def _connected(self) -> ssl.SSLSocket:
        """Return a connection that the other side has not closed: it has nothing to say but that."""
        if self._connection is not None:
            poll = select.poll()
            poll.register(self._connection, select.POLLIN)
            # Not select(): it knows no descriptor above 1023.
            if not poll.poll(0):
                return self._connection
            # TLS 1.3 sends session tickets unasked; read them away.
            self._connection.settimeout(0.01)
            try:
                if not self._connection.recv(4096):
                    raise ConnectionError("closed")
            except TimeoutError:
                self._connection.settimeout(_TIMEOUT_S)
                return self._connection
        target = self._repository
        with socket.create_connection((target.host, target.port), _TIMEOUT_S) as plain:
            # It takes the descriptor over: closing the plain one closes nothing then.
            self._connection = target.context.wrap_socket(plain, server_hostname=target.host)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.close()
            self._connection = None


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted ({error.verify_message})"
    if isinstance(error, OSError):
        return str(getattr(error, "reason", None) or error.strerror or type(error).__name__)
    # Its text may quote what it choked on.
    return type(error).__name__
