"""TCP connections of the SCP: accepted here, run by the receiver, ended without waiting for silent peers."""

import contextlib
import socket
import ssl
import threading
import time
from typing import Any, Protocol

from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from daemon import doorstep
from daemon.doorstep import Request
from daemon.entrance import Entrance
from daemon.guard import GuardedSocket
from daemon.limits import LimitError, Limits
from daemon.log import event
from daemon.reception.buffered import BufferedSocket
from daemon.reception.message import Reception
from daemon.reception.provider import FastProvider

# A flood of connections is reported as a count, not line by line.
_REPORT_S = 10.0


class HandOver(Protocol):
    """Asked of each connection whether another process takes it."""

    def __call__(self, connection: socket.socket, address: tuple[Any, ...], *, encrypted: bool) -> bool:
        """Return whether another has it now."""


class AssociationRunner(Protocol):
    """Who runs an association: the receiver."""

    limits: Limits
    entrance: Entrance
    waiting: "Waiting"
    reception: Reception | None

    def run_association(self, assoc: Association, may: frozenset[str]) -> None:
        """Run it to its end."""


def end(assoc: Any) -> None:
    """Abort an association; a connection whose request is not through yet is just closed."""
    if assoc.requestor.primitive is not None:
        assoc.abort()
        return
    # Only the peer's side of the state machine ends this state (Sta2): let it see a closed connection.
    with contextlib.suppress(OSError, AttributeError):
        assoc.dul.socket.socket.shutdown(socket.SHUT_RDWR)


class Waiting:
    """The connections without an association: a bounded number, the oldest of which gives way."""

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._open: dict[int, socket.socket] = {}
        self._lock = threading.Lock()
        self._evicted = 0
        self._reported = 0.0

    def __len__(self) -> int:
        with self._lock:
            return len(self._open)

    def add(self, connection: socket.socket) -> None:
        """Take a connection in."""
        with self._lock:
            if len(self._open) >= self._maximum:
                self._close(self._open.pop(next(iter(self._open))))
                self._evicted += 1
            # Not the descriptor: the next connection may get the same number.
            self._open[id(connection)] = connection
            report = self._evicted if time.monotonic() - self._reported > _REPORT_S else 0
            if report:
                self._evicted, self._reported = 0, time.monotonic()
        if report:
            reason = "too many connections without an association: the oldest was closed"
            event("limit", key="receiver.maximum_connections", count=report, reason=reason)

    def encrypt(self, connection: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket | None:
        """Put a connection's TLS socket in its place; None when it had to give way meanwhile.

        Raises
        ------
        LimitError
            The peer has gone.
        """
        with self._lock:
            if id(connection) not in self._open:
                return None
            # The plain socket loses its descriptor here: who closes it from then on closes nothing.
            secure = doorstep.wrap(connection, context)
            del self._open[id(connection)]
            self._open[id(secure)] = secure
            return secure

    def remove(self, connection: socket.socket) -> bool:
        """Let a connection go; False when it had to give way meanwhile."""
        with self._lock:
            return self._open.pop(id(connection), None) is not None

    def close_all(self) -> None:
        """End every connection."""
        with self._lock:
            for connection in self._open.values():
                self._close(connection)

    @staticmethod
    def _close(connection: socket.socket) -> None:
        # Its own thread wakes up and closes it.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)


class Server(ThreadedAssociationServer):
    """pynetdicom's server, with a way back to the receiver."""

    receiver: AssociationRunner
    # Its handshake is made in the connection's thread: pynetdicom's own would block the next peer.
    tls: ssl.SSLContext | None = None
    hand_over: HandOver | None = None
    # A thread of a peer that never ends must not keep the process.
    daemon_threads = True
    request_queue_size = 512

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection to another process, or a thread of its own here."""
        is_encrypted = self.tls is not None
        if self.hand_over is not None and self.hand_over(request, client_address, encrypted=is_encrypted):
            # Our descriptor of it alone: the other process has its own.
            request.close()
            return
        # Noted before its thread starts: threads come in any order, the oldest gives way.
        self.receiver.waiting.add(request)
        try:
            super().process_request(request, client_address)
        except RuntimeError:
            # No thread can be started: the server closes it, and goes on.
            self.receiver.waiting.remove(request)
            self.receiver.entrance.ended()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Run a connection, which counts until it has ended."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.receiver.entrance.ended()

    def take(self, request: Any, client_address: Any) -> None:
        """Run a connection that another process has accepted, as one of our own."""
        try:
            self.process_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
            self.shutdown_request(request)


class HandedServer(Server):
    """A server whose connections another process has accepted."""

    def server_bind(self) -> None:
        """Take no address: the other process has it."""

    def server_activate(self) -> None:
        """Do not listen."""


class Connection(RequestHandler):
    """One TCP connection: its association runs to the end in here."""

    server: Server

    def handle(self) -> None:
        """Wait for an association request, and run the association."""
        try:
            request = self._request()
            if request is None:
                return
            verdict = self.server.receiver.entrance.admit(request, self.client_address[0])
            if verdict.reject is not None:
                self._reject(verdict.reject)
                return
            try:
                assoc = self._association(request)
                evt.trigger(assoc, evt.EVT_CONN_OPEN, {"address": self.client_address})
                self.server.receiver.run_association(assoc, verdict.may)
            finally:
                self.server.receiver.entrance.leave()
        except LimitError as error:
            self._report(error)
        finally:
            # pynetdicom leaves a socket open whose peer went first.
            self.request.close()

    def _request(self) -> Request | None:
        """Return the association request; None when the connection had to give way."""
        receiver = self.server.receiver
        deadline = time.monotonic() + receiver.limits.acse_timeout_s
        waiting = receiver.waiting
        try:
            if self.server.tls is not None:
                secure = waiting.encrypt(self.request, self.server.tls)
                if secure is None:
                    return None
                self.request = secure
                doorstep.handshake(secure, receiver.limits.acse_timeout_s)
            request = doorstep.await_request(self.request, receiver.limits, deadline)
        except LimitError:
            if not waiting.remove(self.request):
                return None  # it gave way: counted, not told one by one
            raise
        return request if waiting.remove(self.request) else None

    def _reject(self, code: tuple[int, int, int]) -> None:
        # A rejected peer that does not hang up is one without an association, too.
        waiting = self.server.receiver.waiting
        waiting.add(self.request)
        try:
            doorstep.reject(self.request, code)
        finally:
            waiting.remove(self.request)

    def _association(self, request: Request) -> Association:
        assoc = self._create_association()
        limits, reception = self.server.receiver.limits, self.server.receiver.reception
        kind: type[GuardedSocket] = GuardedSocket
        if reception is not None:
            assoc.dul = FastProvider(assoc, reception, limits)
            kind = BufferedSocket
        else:
            # The socket that it replaces has put "connection open" into the queue; its successor
            # does it again.
            assoc.dul.event_queue.get_nowait()
        assoc.dul.socket = kind(assoc, self.request, request.pdu, limits, self._report)
        return assoc

    def _report(self, error: LimitError) -> None:
        name = "limit" if error.key else "connection"
        event(name, address=self.client_address[0], key=error.key, reason=error.reason)
        self.server.receiver.entrance.alarm(self.client_address[0], error)
