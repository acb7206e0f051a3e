"""The socket of an association on the fast path: large reads into one buffer, PDUs found in it."""

import contextlib
import mmap
import os
import socket
import ssl
import struct
import time
from collections.abc import Callable
from typing import Any

from pynetdicom.association import Association

from daemon.guard import SLACK_BYTES, GuardedSocket
from daemon.limits import LimitError, Limits
from daemon.reception.wire import HEAD_BYTES, P_DATA, head

_BUFFER_BYTES = 512 * 1024


class BufferedSocket(GuardedSocket):
    """A guarded socket that reads ahead; the stock state machine reads from the same buffer.

    Parameters
    ----------
    assoc, connection, request, limits, on_limit
        As of :class:`daemon.guard.GuardedSocket`.
    """

    def __init__(
        self,
        assoc: Association,
        connection: socket.socket,
        request: bytes,
        limits: Limits,
        on_limit: Callable[[LimitError], None],
    ) -> None:
        super().__init__(assoc, connection, request, limits, on_limit)
        # The longest P-DATA-TF PDU, without its head.
        self.longest = limits.maximum_pdu_bytes + SLACK_BYTES
        size = max(_BUFFER_BYTES, HEAD_BYTES + self.longest)
        # Pages that are never reached cost no memory.
        self.view = memoryview(mmap.mmap(-1, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE))
        self.start = self._end = 0
        self._since = 0.0
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def available(self) -> int:
        """How many bytes lie in the buffer."""
        return self._end - self.start

    @property
    def is_open(self) -> bool:
        """Whether it can still be read from."""
        return self.socket is not None and self._is_connected

    @property
    def has_more(self) -> bool:
        """Whether bytes wait that no poll of the descriptor shows."""
        connection = self.socket
        return bool(self._first) or (isinstance(connection, ssl.SSLSocket) and connection.pending() > 0)

    @property
    def has_pdu(self) -> bool:
        """Whether a whole PDU lies in the buffer, or the head of one that is not waited for."""
        found = self.head()
        if found is None:
            return False
        kind, length = found
        return kind != P_DATA or length > self.longest or self.available >= HEAD_BYTES + length

    @property
    def ready(self) -> bool:
        """Whether there is something to read."""
        return self.is_open and (self.available > 0 or super().ready)

    def fill(self) -> int:
        """Read what is there, without waiting.

        Returns
        -------
        int
            Bytes read; 0 when the peer has closed, -1 when there is nothing now.

        Raises
        ------
        OSError
            The connection broke.
        """
        connection: Any = self.socket
        self._make_room()
        try:
            if isinstance(connection, ssl.SSLSocket):
                connection.settimeout(0.0)
                try:
                    got = connection.recv_into(self.view[self._end :])
                finally:
                    connection.settimeout(self._limits.network_timeout_s)
            else:
                # The socket's own method, which knows time-outs, would ask the kernel twice.
                got = os.readv(connection.fileno(), [self.view[self._end :]])
        except (BlockingIOError, ssl.SSLWantReadError, TimeoutError):
            return -1
        except ssl.SSLEOFError:
            return 0
        self._active = time.monotonic()
        if not self.available:
            self._since = self._active
        self._end += got
        return int(got)

    def answer(self, pdu: bytes) -> None:
        """Send a short PDU: at once as far as the connection's buffer takes it, the rest in the stock way."""
        connection: Any = self.socket
        sent = 0
        if not isinstance(connection, ssl.SSLSocket):
            with contextlib.suppress(OSError):
                sent = os.write(connection.fileno(), pdu)
        if sent < len(pdu):
            self.send(pdu[sent:])

    def _make_room(self) -> None:
        if self.start == self._end:
            self.start = self._end = 0
        elif self.start:
            count = self.available
            self.view[:count] = self.view[self.start : self._end]
            self.start, self._end = 0, count

    def head(self) -> tuple[int, int] | None:
        """Return type and length of the next PDU, or None when its head is not there yet."""
        if self.available < HEAD_BYTES:
            return None
        kind, length = struct.unpack_from(">BxL", self.view, self.start)
        return kind, length

    def consume(self, count: int) -> None:
        """Go on behind a PDU."""
        self.start += count
        self._since = time.monotonic()

    def split(self, at: int, end: int) -> None:
        """Make the PDVs from a position to the PDU's end a PDU of their own, the next.

        Its head takes the place of bytes that were read already.
        """
        self.start = at - HEAD_BYTES
        self.view[self.start : at] = head(end - at)

    def check_time(self) -> None:
        """Look at how long the PDU that is not complete has taken.

        Raises
        ------
        LimitError
            Too long; it was reported.
        """
        if self.available and time.monotonic() - self._since > self._limits.pdu_timeout_s:
            error = LimitError("pdu_timeout_s", "a PDU that did not end in time")
            self._on_limit(error)
            raise error

    def _read(self, count: int) -> bytearray:
        taken = min(count, self.available)
        data = bytearray(self.view[self.start : self.start + taken])
        self.consume(taken)
        if taken < count:
            data += super()._read(count - taken)
        return data
