"""Further processes of the receiving role: Python runs one thread at a time, many modalities send at once.

The role's own process listens, and hands each connection to whoever has the fewest. The others are
forked from it before it has threads, locks or connections of its own, and end with it: without it they
take nothing new, finish their associations, and go. When one of them dies the rest go on; if it was killed,
the role starts anew as soon as nobody is connected.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from daemon.fellows import Fellow, Fellows
from daemon.log import event
from daemon.supervisor import PARENT_VARIABLE

_BEGIN = b"begin"
_MESSAGE_BYTES = 4096
# How often a helper that waits for connections looks whether it is to end.
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Handed:
    """A connection that another process has accepted."""

    connection: socket.socket
    address: tuple[Any, ...]
    encrypted: bool


class Channel:
    """Where a helper hears from the process that listens."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        channel.settimeout(_LOOK_S)

    def begins(self, stop: threading.Event) -> bool:
        """Wait until there is something to help with; False when it never comes to that."""
        return next(self._messages(stop), (b"", None))[0] == _BEGIN

    def connections(self, stop: threading.Event) -> Iterator[Handed]:
        """Yield connections until the process that listens wants no more, or is gone, or ``stop`` is set."""
        for message, connection in self._messages(stop):
            if connection is not None:
                encrypted, *address = json.loads(message)
                yield Handed(connection, tuple(address), encrypted)

    def _messages(self, stop: threading.Event) -> Iterator[tuple[bytes, socket.socket | None]]:
        while not stop.is_set():
            try:
                message, descriptors, _, _ = socket.recv_fds(self._channel, _MESSAGE_BYTES, 1)
            except TimeoutError:
                continue
            except OSError:
                return
            if not message:
                return
            yield message, socket.socket(fileno=descriptors[0]) if descriptors else None


class Helpers:
    """The helpers, as the process that listens has them.

    Parameters
    ----------
    fellows
        Who is to be told apart; all but the first are helpers.
    work
        What a helper does, from its start to its end.
    """

    def __init__(self, fellows: Fellows, work: Callable[[Fellow, Channel], None]) -> None:
        self.fellows = fellows
        self._channels: dict[int, socket.socket] = {}
        self._alive: dict[int, int] = {}
        self._lock = threading.Lock()
        self._has_lost_one = False
        for number in range(1, fellows.processes):
            self._fork(number, work)

    def _fork(self, number: int, work: Callable[[Fellow, Channel], None]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            # Too many processes, or too little memory: the others do without it.
            event("receiving process not started", level=logging.ERROR, process=number, reason=error.strerror)
            ours.close()
            theirs.close()
            return
        if pid == 0:
            # Whoever holds the other end of a channel keeps its helper from hearing that it was closed.
            for channel in (ours, *self._channels.values()):
                channel.close()
            _be_helper(lambda: work(Fellow(self.fellows, number), Channel(theirs)), parent)
        theirs.close()
        ours.setblocking(False)
        self._channels[number], self._alive[number] = ours, pid
        event("receiving process started", process=number, pid=pid)

    def begin(self) -> None:
        """Let them get ready: this process listens, and connections may come."""
        for channel in self._channels.values():
            with contextlib.suppress(OSError):
                channel.send(_BEGIN)

    def hand_over(self, connection: socket.socket, address: tuple[Any, ...], *, encrypted: bool) -> bool:
        """Hand a connection to the least busy process, unless that is this one.

        Returns
        -------
        bool
            Whether another has it now; its socket here is to be closed, not shut down.
        """
        with self._lock:
            number = self._least_busy()
            if number:
                message = json.dumps([encrypted, *address]).encode()
                try:
                    socket.send_fds(self._channels[number], [message], [connection.fileno()])
                except OSError:
                    # It has more than enough waiting, or it is gone.
                    number = 0
            self.fellows.took(number)
            return number > 0

    def _least_busy(self) -> int:
        """Return who has the fewest connections; the first of those that have as few."""
        connections = self.fellows.connections()
        return min((0, *self._channels), key=lambda number: connections[number])

    def look_after(self) -> bool:
        """Notice helpers that have ended by themselves.

        Returns
        -------
        bool
            Whether the role had better start anew now: one was killed, and nobody is connected.
        """
        for number, status in self._ended():
            event("receiving process died", level=logging.ERROR, process=number, status=status)
            # One that was killed shall come back. An error of its own would come back with it.
            self._has_lost_one |= status < 0
            with self._lock:
                self._channels.pop(number).close()
                self.fellows.forget(number)
        return self._has_lost_one and not any(self.fellows.connections())

    def _ended(self) -> list[tuple[int, int]]:
        """Take helpers that have ended from those that are alive; the second is the exit code, or -signal."""
        ended = []
        for number, pid in list(self._alive.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                del self._alive[number]
                ended.append((number, os.waitstatus_to_exitcode(status)))
        return ended

    def end(self) -> None:
        """Let them finish their associations and go."""
        with self._lock:
            for channel in self._channels.values():
                channel.close()
            self._channels.clear()

    def join(self, timeout_s: float) -> None:
        """Wait for them; one that is still there after ``timeout_s`` is killed."""
        deadline = time.monotonic() + timeout_s
        while self._alive and time.monotonic() < deadline:
            self._ended()
            time.sleep(0.02)
        for number, pid in self._alive.items():
            event("receiving process did not stop in time; killed", level=logging.ERROR, process=number)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._alive.clear()


def _be_helper(work: Callable[[], None], parent: int) -> None:
    """Do a helper's work and end its process; what is left of the one that it was forked from is not ours."""
    os.environ[PARENT_VARIABLE] = str(parent)
    os.environ.pop("NOTIFY_SOCKET", None)
    status = 1
    try:
        work()
        status = 0
    except Exception as error:
        event("receiving process", level=logging.ERROR, error=type(error).__name__)
        # Without its message, which could quote what a peer sent.
        traceback.print_tb(error.__traceback__)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
