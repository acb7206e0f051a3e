"""The socket of an accepted association: no PDU is larger or slower than the settings allow."""

import select
import socket
import ssl
import struct
import time
from collections.abc import Callable
from typing import Any

from pynetdicom.association import Association
from pynetdicom.transport import AssociationSocket

from daemon.limits import LimitError, Limits

_HEAD_BYTES = 6
_P_DATA = 0x04
# What is no P-DATA is small once the association stands (PS3.8 9.3.5 to 9.3.8).
_SMALL_BYTES = 1_024
# Some senders count the PDU's own head into the maximum length.
SLACK_BYTES = 1_024
_CHUNK_BYTES = 65_536
# pynetdicom looks for data a thousand times a second; an association that has long been
# silent is looked at with a wait, which data ends at once.
_BUSY_S = 1.0
_IDLE_WAIT_MS = 50


class GuardedSocket(AssociationSocket):
    """pynetdicom's socket with a bound on length and time of each PDU.

    Parameters
    ----------
    assoc, connection
        The association and its connection.
    request
        Bytes of the association request, which have been read already.
    limits
        The bounds.
    on_limit
        Called with what the peer went beyond, before the connection ends.
    """

    def __init__(
        self,
        assoc: Association,
        connection: socket.socket,
        request: bytes,
        limits: Limits,
        on_limit: Callable[[LimitError], None],
    ) -> None:
        super().__init__(assoc, client_socket=connection)
        self._first = request
        self._limits = limits
        self._on_limit = on_limit
        self._left = 0
        self._deadline = 0.0
        self._active = time.monotonic()
        self._poll: Any = select.poll()
        self._poll.register(connection, select.POLLIN)
        # Also the bound of a send to a peer that does not read.
        connection.settimeout(limits.network_timeout_s)

    @property
    def ready(self) -> bool:
        """Whether there is something to read; ``select`` would fail beyond descriptor 1023."""
        connection = self.socket
        if connection is None or not self._is_connected:
            return False
        if self._first or (isinstance(connection, ssl.SSLSocket) and connection.pending()):
            return True
        idle = time.monotonic() - self._active > _BUSY_S
        try:
            return bool(self._poll.poll(_IDLE_WAIT_MS if idle else 0))
        except OSError:
            self.event_queue.put("Evt17")
            return False

    def recv(self, nr_bytes: int) -> bytearray:
        """Read bytes of a PDU: its head of six bytes, or the whole rest of it.

        Raises
        ------
        LimitError
            The PDU is too long or came too slowly.
        """
        self._active = time.monotonic()
        if self._first:
            taken, self._first = self._first[:nr_bytes], self._first[nr_bytes:]
            return bytearray(taken)
        try:
            is_head = self._left == 0
            if is_head:
                self._deadline = time.monotonic() + self._limits.pdu_timeout_s
            data = self._read(nr_bytes)
            if is_head and len(data) == _HEAD_BYTES:
                self._left = self._checked_length(data)
            else:
                self._left = 0
            return data
        except LimitError as error:
            self._on_limit(error)
            raise

    def _checked_length(self, head: bytearray) -> int:
        kind, length = struct.unpack(">BxL", head)
        if kind != _P_DATA and length > _SMALL_BYTES:
            raise LimitError("maximum_pdu_bytes", f"a PDU of type {kind:#04x} and {length} bytes")
        if length > self._limits.maximum_pdu_bytes + SLACK_BYTES:
            raise LimitError("maximum_pdu_bytes", f"a P-DATA PDU of {length} bytes")
        return int(length)

    def _read(self, count: int) -> bytearray:
        data = bytearray()
        connection: Any = self.socket
        try:
            while len(data) < count:
                left = self._deadline - time.monotonic()
                if left <= 0:
                    raise LimitError("pdu_timeout_s", "a PDU that did not end in time")
                connection.settimeout(left)
                try:
                    piece = connection.recv(min(count - len(data), _CHUNK_BYTES))
                except TimeoutError:
                    continue
                if not piece:
                    break
                data += piece
            return data
        finally:
            connection.settimeout(self._limits.network_timeout_s)
