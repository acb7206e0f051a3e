"""The data sets of C-STORE requests on their way from pynetdicom to the spool, never whole in memory.

pynetdicom 3.0.4 collects a message's data set in ``DIMSEMessage.data_set``, a BytesIO. Here that
object is an :class:`Incoming`, which hands the bytes of a C-STORE to the spool as they come.
"""

import contextlib
import queue
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from typing import Any

from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import uid_to_service_class

from daemon.dimse import CANNOT_UNDERSTAND, SOP_CLASS_NOT_SUPPORTED
from daemon.errors import DiskReserveError, SpoolError
from daemon.limits import LimitError, Limits
from daemon.spool import Part, Spool


class Incoming(BytesIO):
    """The data set of one message: in the spool for a C-STORE request, in memory for any other."""

    def __init__(self, message: DIMSEMessage, assoc: Association, spool: Spool, limit_bytes: int) -> None:
        super().__init__()
        self._message = message
        self._assoc = assoc
        self._spool = spool
        self._limit_bytes = limit_bytes
        self._part: Part | None = None
        self._error: SpoolError | None = None

    def write(self, data: Any) -> int:
        """Take the next bytes; an error is kept for :meth:`finish`, so that the rest still drains."""
        if not isinstance(self._message, C_STORE_RQ):
            if self.tell() + len(data) > _MEMORY_BYTES:
                raise LimitError("", f"a message other than C-STORE of over {_MEMORY_BYTES} bytes")
            return super().write(data)
        if self._error is None:
            try:
                self._to_spool(data)
            except SpoolError as error:
                self._error = error
                self.discard()
        return len(data)

    def finish(self) -> Part | None:
        """Return the complete instance, or None when no data set came.

        Raises
        ------
        SpoolError
            It could not be written.
        """
        if self._error is not None:
            raise self._error
        return self._part

    def discard(self) -> None:
        """Drop what was not committed."""
        if self._part is not None:
            self._part.discard()
            self._part = None

    def _to_spool(self, data: bytes) -> None:
        if self._part is None:
            command = self._message.command_set
            # Without an accepted context pynetdicom ends the association by itself.
            context = self._assoc._accepted_cx.get(self._message.context_id or 0)
            if context is None:
                raise SpoolError("the presentation context was not accepted")
            self._part = self._spool.begin(
                str(command.get("AffectedSOPClassUID", "")),
                str(command.get("AffectedSOPInstanceUID", "")),
                str(context.transfer_syntax[0]),
                self._assoc.requestor.ae_title.strip(),
            )
        if self._part.data_bytes + len(data) > self._limit_bytes:
            raise DiskReserveError("the instance is larger than receiver.maximum_instance_bytes")
        self._part.write(data)


# No message other than C-STORE that we serve has a data set of any size.
_MEMORY_BYTES = 16 * 1024 * 1024
# A command set has some ten elements of UIDs and numbers (PS3.7 Annex E).
_COMMAND_BYTES = 16 * 1024
# pynetdicom asks for messages a thousand times a second; a queue that waits answers sooner and
# costs nothing. An idle association is looked at more seldom still.
_BUSY_WAIT_S = 0.005
_IDLE_WAIT_S = 0.1
_BUSY_S = 1.0
# Whoever waits for an answer looks this often whether the association still stands.
_LOOK_S = 0.2


class IncomingProvider(DIMSEServiceProvider):
    """pynetdicom's DIMSE provider, whose messages put their data sets into the spool."""

    def __init__(
        self,
        assoc: Association,
        spool: Spool,
        limits: Limits,
        on_limit: Callable[[LimitError], None],
        *,
        is_woken: bool = False,
    ) -> None:
        super().__init__(assoc)
        self._spool = spool
        self._limits = limits
        self._on_limit = on_limit
        self._open: list[Incoming] = []
        self._lock = threading.Lock()
        # The PDUs of one message follow each other, whoever else sends on this association.
        self.sending = threading.RLock()
        self._started = self._active = time.monotonic()
        self._bytes = 0
        self._is_over = False
        # The fast path's upper layer wakes whoever waits for a message: nobody has to look often.
        self._is_woken = is_woken
        # A request of ours was sent, and somebody waits for the answer to it.
        self._awaits_answer = False
        # Statuses of the C-STORE requests that get_msg answered.
        self.refused: Counter[int] = Counter()

    def receive_primitive(self, primitive: Any) -> None:
        """Process one P-DATA primitive (PS3.8 7.6).

        A message that is too slow, or whose command is too large, or one too many aborts the association.
        """
        if self._is_over:
            return
        self._active = time.monotonic()
        if self.message is None:
            self._started, self._bytes = self._active, 0
            self.message = DIMSEMessage()
            incoming = Incoming(self.message, self.assoc, self._spool, self._limits.maximum_instance_bytes)
            self.message.data_set = incoming
            with self._lock:
                # At most a few are open: one arrives while others wait to be served.
                self._open = [*(kept for kept in self._open if kept._part is not None), incoming]
        try:
            self._check(primitive)
            super().receive_primitive(primitive)
        except LimitError as error:
            self._on_limit(error)
            self._fall_silent()
            # "Invalid PDU": the state machine sends an A-ABORT (PS3.8 9.2.3.4, AA-8). An exception
            # would end its thread with the connection still open.
            self.dul.event_queue.put("Evt19")

    def _fall_silent(self) -> None:
        """Send nothing more: an answer behind the abort is an event that ends the state machine's thread."""
        with self.sending, contextlib.suppress(queue.Empty):
            self._is_over = True
            while True:
                self.dul.to_provider_queue.get_nowait()

    def _check(self, primitive: Any) -> None:
        self._bytes += sum(len(data) for _, data in primitive.presentation_data_value_list)
        spent_s = time.monotonic() - self._started
        late_s = spent_s - self._limits.dimse_timeout_s
        if late_s > 0 and self._bytes < late_s * self._limits.minimum_bytes_per_s:
            raise LimitError("minimum_bytes_per_s", f"{self._bytes} bytes of a message in {spent_s:.0f} s")
        if self.msg_queue.qsize() >= self._limits.maximum_pending_messages:
            raise LimitError("maximum_pending_messages", "more requests than may wait for an answer")
        if self.message is not None and self.message.encoded_command_set.tell() > _COMMAND_BYTES:
            raise LimitError("", f"a command of over {_COMMAND_BYTES} bytes")

    @property
    def has_messages(self) -> bool:
        """Whether a message waits to be served."""
        with self.msg_queue.mutex:
            return any(message is not None for _, message in self.msg_queue.queue)

    def get_msg(self, block: bool = False) -> tuple[Any, Any]:
        """Return the next message; a C-STORE that pynetdicom would not serve is answered here.

        Over an unknown SOP class it would abort the association, and with it the instances that
        follow; to an incomplete request it would give no answer at all.
        """
        if block:
            return self._answer()
        idle = self._is_woken or time.monotonic() - self._active > _BUSY_S
        try:
            found = self.msg_queue.get(timeout=_IDLE_WAIT_S if idle else _BUSY_WAIT_S)
        except queue.Empty:
            return None, None
        if self._awaits_answer and (found[1] is None or _is_answer(found[1])):
            # pynetdicom's thread is at times not paused yet when another one sends a request.
            self.msg_queue.put(found)
            return None, None
        return self._served(*found)

    def _answer(self) -> tuple[Any, Any]:
        """Wait for the answer to a request of ours; a request that comes first is served later."""
        deadline = time.monotonic() + self._limits.dimse_timeout_s
        requests: list[Any] = []
        try:
            # An association that ended just before the request was sent wakes nobody.
            while time.monotonic() < deadline and self.assoc.is_established:
                with contextlib.suppress(queue.Empty):
                    context_id, message = self.msg_queue.get(timeout=_LOOK_S)
                    if message is None or _is_answer(message):
                        return context_id, message
                    requests.append((context_id, message))
        finally:
            self._awaits_answer = False
            for request in requests:
                self.msg_queue.put(request)
        return None, None

    def _served(self, context_id: int | None, message: Any) -> tuple[Any, Any]:
        if context_id is None or not isinstance(message, C_STORE) or message.MessageID is None:
            return context_id, message
        if not message.is_valid_request:
            self._refuse(message, context_id, CANNOT_UNDERSTAND)
        elif uid_to_service_class(message.AffectedSOPClassUID or "") is not StorageServiceClass:
            self._refuse(message, context_id, SOP_CLASS_NOT_SUPPORTED)
        else:
            return context_id, message
        return None, None

    def _refuse(self, message: C_STORE, context_id: int, status: int) -> None:
        if isinstance(message.DataSet, Incoming):
            message.DataSet.discard()
        answer = C_STORE()
        answer.MessageIDBeingRespondedTo = message.MessageID
        answer.AffectedSOPClassUID = message.AffectedSOPClassUID
        answer.AffectedSOPInstanceUID = message.AffectedSOPInstanceUID
        answer.Status = status
        self.send_msg(answer, context_id)
        self.refused[status] += 1

    def send_msg(self, primitive: Any, context_id: int) -> None:
        """Send a message, all of it before any other; none after an abort of ours."""
        with self.sending:
            if self._is_over:
                return
            if not _is_answer(primitive):
                self._awaits_answer = True
            super().send_msg(primitive, context_id)

    def discard(self) -> None:
        """Drop every instance that the association left unfinished."""
        with self._lock:
            for incoming in self._open:
                incoming.discard()
            self._open.clear()


def _is_answer(message: Any) -> bool:
    return getattr(message, "MessageIDBeingRespondedTo", None) is not None


def set_no_delay(assoc: Association) -> None:
    """Send small answers at once: Nagle and delayed acknowledgement cost 40 ms per instance."""
    connection = assoc.dul.socket.socket if assoc.dul.socket else None
    if connection is not None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
