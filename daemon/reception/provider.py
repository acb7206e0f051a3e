"""pynetdicom's upper layer, with C-STORE taken out of it, and without its polling.

Only state Sta6 (PS3.8 table 9-10, the association stands) differs: whole P-DATA-TF PDUs in the buffer
are looked at first. A C-STORE request of the plainest kind is received and answered here, in this
thread. Every other PDU is left where it is, and the stock state machine reads it.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable
from typing import Any

from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import P_DATA

from daemon.errors import SpoolError
from daemon.limits import LimitError, Limits
from daemon.reception import wire
from daemon.reception.buffered import BufferedSocket
from daemon.reception.contexts import StorageContexts
from daemon.reception.message import Message, Reception
from daemon.reception.waking import Waking
from daemon.spool import StoredInstance

# Timers are looked at this often; data and answers wake at once.
_WAIT_MS = 50
_ABORT = 0x07

Taking = Callable[[Callable[[], StoredInstance]], tuple[int, str]]


class FastProvider(DULServiceProvider):
    """The upper layer of one association.

    Parameters
    ----------
    assoc
        Its association.
    reception
        Where instances go.
    limits
        Bounds on what the peer can take.
    """

    def __init__(self, assoc: Association, reception: Reception, limits: Limits) -> None:
        super().__init__(assoc)
        stock = assoc.dul
        self.artim_timer.timeout = stock.artim_timer.timeout
        self._idle_timer.timeout = stock._idle_timer.timeout
        self._reception = reception
        self._limits = limits
        self._take: Taking | None = None
        self._on_limit: Callable[[LimitError], None] = lambda _error: None
        self._message: Message | None = None
        self._contexts = StorageContexts(assoc)
        self._pieces: list[memoryview] = []
        self._served = 0
        self._began = 0.0
        self._ticket = 0
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll: Any = select.poll()
        self._poll.register(self._eventfd, select.POLLIN)
        self._polled = -1
        self.to_provider_queue = Waking(self.wake)
        self.to_user_queue = Waking(self._wake_user)
        # It never sleeps: it waits for the socket, or to be woken.
        self._run_loop_delay = 0.0

    def serve(self, take: Taking | None, on_limit: Callable[[LimitError], None]) -> None:
        """Say who counts and answers for each request; None leaves every request to the stock way."""
        self._take, self._on_limit = take, on_limit

    def wake(self) -> None:
        """Let the reactor look at its queues."""
        with contextlib.suppress(OSError):
            os.eventfd_write(self._eventfd, 1)

    def _wake_user(self) -> None:
        # The association's thread waits for messages; one that is none lets it look at everything.
        self.assoc.dimse.msg_queue.put((None, None))

    def kill_dul(self) -> None:
        """End the reactor."""
        super().kill_dul()
        self.wake()

    def close(self) -> None:
        """Drop an unfinished message, and wait until the finished ones are indexed."""
        self.join(5.0)
        self._discard()
        self._reception.settle(self._ticket)
        os.close(self._eventfd)
        self._eventfd = -1

    # The reactor

    def _process_recv_primitive(self) -> bool:
        """Look for something to send; what a thread of ours says after the abort is dropped."""
        # PS3.8 table 9-10: P-DATA may be sent in Sta6 and Sta8; elsewhere it would end this thread.
        if self.state_machine.current_state not in ("Sta6", "Sta8"):
            with self.to_provider_queue.mutex:
                waiting = self.to_provider_queue.queue
                while waiting and isinstance(waiting[0], P_DATA):
                    waiting.popleft()
        return bool(super()._process_recv_primitive())

    def _is_transport_event(self) -> bool:
        """Wait for bytes or a wake-up, and take in what came; True restarts the idle timer."""
        connection: Any = self.socket
        if self.state_machine.current_state == "Sta13":
            return bool(super()._is_transport_event())
        while self.event_queue.empty():
            readable = self._await(connection)
            if self._kill_thread or not self.to_provider_queue.empty():
                return False
            if self.state_machine.current_state != "Sta6" or not connection.is_open:
                break
            # As long as one request follows another there is nothing to go back to the reactor for.
            if not self._turn(connection, readable):
                return False
            self._idle_timer.restart()
        if self.event_queue.empty() and connection.ready:
            self._read_pdu_data()
            return True
        return False

    def _await(self, connection: BufferedSocket) -> bool:
        """Wait until the socket can be read, or something else is to be done."""
        if connection.has_more:
            return True
        if connection.has_pdu:
            return False
        descriptor = connection.socket.fileno() if connection.is_open and connection.socket else -1
        if descriptor != self._polled:
            if self._polled >= 0:
                self._poll.unregister(self._polled)
            if descriptor >= 0:
                self._poll.register(descriptor, select.POLLIN)
            self._polled = descriptor
        found = dict(self._poll.poll(_WAIT_MS))
        if self._eventfd in found:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._eventfd)
        return descriptor in found

    def _turn(self, connection: BufferedSocket, readable: bool) -> bool:
        try:
            got = connection.fill() if readable else -1
            if got > 0:
                self._served = 0
            is_stock = self._take_pdus(connection)
            self._flush()
            if is_stock:
                self._read_stock(connection)
            elif got == 0:
                self._discard()
                self.event_queue.put("Evt17")
            else:
                connection.check_time()
                if got > 0:
                    self._check_speed()
            return got >= 0 or is_stock
        except LimitError as error:
            self._end(error)
        except OSError:
            self._discard()
            self.event_queue.put("Evt17")
        return True

    def _end(self, error: LimitError) -> None:
        self._discard()
        if error.key.endswith(".pdu_timeout_s"):
            # Where the next PDU would begin is not known: nothing can be said to this peer.
            self.event_queue.put("Evt17")
            return
        self._on_limit(error)
        self.event_queue.put("Evt19")

    def _read_stock(self, connection: BufferedSocket) -> None:
        """Let the stock state machine read the next PDU."""
        found = connection.head()
        self._discard()
        if found is None or found[0] != _ABORT:
            # Another service, or the release: whoever looks into the index now finds everything.
            self._reception.settle(self._ticket)
        self._read_pdu_data()

    # PDUs

    def _take_pdus(self, connection: BufferedSocket) -> bool:
        """Take whole PDUs from the buffer; True when the next is for the stock state machine."""
        while self.event_queue.empty() and (found := connection.head()) is not None:
            kind, length = found
            if kind != wire.P_DATA or length > connection.longest or self.assoc.dimse.message is not None:
                return True
            if connection.available < wire.HEAD_BYTES + length:
                return False
            if not self._take_pdu(connection, length):
                return True
        return False

    def _take_pdu(self, connection: BufferedSocket, length: int) -> bool:
        """Take one P-DATA-TF; False when it, or what is left of it, is for the stock state machine."""
        view, first = connection.view, connection.start + wire.HEAD_BYTES
        end = first + length
        found = wire.fragments(view, first, end)
        if found is None:
            return False
        for fragment in found:
            content = view[fragment.first : fragment.last]
            if self._message is None:
                if not self._begin(fragment, content):
                    at = fragment.first - wire.HEAD_BYTES
                    if at > first:
                        connection.split(at, end)
                    return False
            elif fragment.control & wire.COMMAND or fragment.context_id != self._message.request.context_id:
                # A command in the midst of a data set (PS3.8 Annex E.1): an invalid PDU.
                self._discard()
                self.event_queue.put("Evt19")
                break
            else:
                self._pieces.append(content)
                if fragment.control & wire.LAST:
                    self._finish()
        connection.consume(wire.HEAD_BYTES + length)
        return True

    # Messages

    def _begin(self, fragment: wire.Fragment, content: memoryview) -> bool:
        """Begin a C-STORE request; False for any other message."""
        assoc: Any = self.assoc
        if self._take is None or fragment.control & 3 != wire.COMMAND | wire.LAST:
            return False
        request = wire.read_store_request(fragment.context_id, content)
        sop_class_uid, transfer_syntax_uid = self._contexts.find(fragment.context_id)
        if request is None or request.sop_class_uid != sop_class_uid or assoc.dimse.has_messages:
            return False
        if self._served > self._limits.maximum_pending_messages:
            raise LimitError("maximum_pending_messages", "more requests than may wait for an answer")
        try:
            self._reception.spool.check_reserve()
        except SpoolError:
            return False
        self._served += 1
        self._began = time.monotonic()
        calling_ae = assoc.requestor.ae_title.strip()
        self._message = Message(self._reception, request, transfer_syntax_uid, calling_ae)
        return True

    def _flush(self) -> None:
        """Hand over what lies in the socket's buffer, before other bytes take its place."""
        if self._pieces and self._message is not None:
            self._message.write(self._pieces)
        self._pieces = []

    def _finish(self) -> None:
        self._flush()
        message = self._message
        if message is None or self._take is None:
            return
        status, comment = self._take(message.finish)
        self._ticket = message.ticket or self._ticket
        self._message = None
        self._answer(wire.store_response(message.request, status, comment))

    def _answer(self, pdu: bytes) -> None:
        # What the association's own thread sends goes first, and whole.
        dimse: Any = self.assoc.dimse
        with dimse.sending:
            while self._process_recv_primitive():
                self.state_machine.do_action(self.event_queue.get(block=False))
            if self.state_machine.current_state == "Sta6" and self.socket is not None:
                connection: Any = self.socket
                connection.answer(pdu)

    def _check_speed(self) -> None:
        if self._message is not None:
            spent_s = time.monotonic() - self._began
            late_s = spent_s - self._limits.dimse_timeout_s
            size_bytes = self._message.size_bytes
            if late_s > 0 and size_bytes < late_s * self._limits.minimum_bytes_per_s:
                reason = f"{size_bytes} bytes of a message in {spent_s:.0f} s"
                raise LimitError("minimum_bytes_per_s", reason)

    def _discard(self) -> None:
        self._pieces = []
        if self._message is not None:
            self._message.discard()
            self._message = None
