"""One C-STORE request that arrives: small in a page of memory, large in a part of the spool."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from daemon.dimse import CANNOT_UNDERSTAND
from daemon.errors import DiskReserveError, SpoolError
from daemon.index import Index
from daemon.part import Part, StoredInstance, instance_path
from daemon.part10 import Uids
from daemon.reception.record import SMALL_BYTES, Page, Record, checksum
from daemon.reception.settling import Settler
from daemon.reception.uids import find_uids
from daemon.reception.wire import StoreRequest
from daemon.spool import Spool
from daemon.storing import Failure, check_uids, failure_of

# How long an association waits at its end, or before another service, for its instances to be indexed.
_SETTLE_S = 60.0
_SWITCH_S = 0.0005


class Reception:
    """What the fast path of every association shares.

    Parameters
    ----------
    spool, index
        Where instances go.
    maximum_instance_bytes
        Of one data set.
    on_stored
        As of the receiver; given, every instance is indexed before its answer.
    """

    def __init__(
        self,
        spool: Spool,
        index: Index,
        maximum_instance_bytes: int,
        on_stored: Callable[[StoredInstance], None] | None = None,
    ) -> None:
        self.spool = spool
        self.index = index
        self.maximum_instance_bytes = maximum_instance_bytes
        self.on_stored = on_stored
        self.settler = Settler(spool, index)
        # How many requests came this way, for those who want to know whether it is used.
        self.requests = 0
        self._switch_s = sys.getswitchinterval()

    def start(self) -> None:
        """Take in what an earlier run acknowledged and did not finish, then be ready."""
        # Associations must not wait 5 ms each time that another thread holds the interpreter.
        self._switch_s = sys.getswitchinterval()
        sys.setswitchinterval(min(self._switch_s, _SWITCH_S))
        self.settler.start()

    def close(self) -> None:
        """Finish what was acknowledged, and end."""
        self.settler.close()
        sys.setswitchinterval(self._switch_s)

    def settle(self, ticket: int) -> None:
        """Wait until what was answered Success up to a ticket is in the index."""
        if ticket:
            self.settler.wait(ticket, _SETTLE_S)


class Message:
    """The data set of one request, and what becomes of it.

    Parameters
    ----------
    reception
        Where it goes.
    request
        Its command.
    transfer_syntax_uid
        Of its presentation context.
    calling_ae
        Who sends it.
    """

    def __init__(
        self, reception: Reception, request: StoreRequest, transfer_syntax_uid: str, calling_ae: str
    ) -> None:
        reception.requests += 1
        self.request = request
        self.size_bytes = 0
        # Of the last instance that went through the journal; 0 when it is indexed already.
        self.ticket = 0
        self._reception = reception
        self._syntax = transfer_syntax_uid
        self._calling_ae = calling_ae
        self._page: Page | None = None if reception.on_stored else reception.settler.page()
        self._part: Part | None = None
        self._error: SpoolError | None = None

    def write(self, pieces: list[memoryview]) -> None:
        """Take the next bytes; an error is kept for :meth:`finish`, so that the rest still drains."""
        self.size_bytes += sum(map(len, pieces))
        if self._error is None:
            try:
                self._write(pieces)
            except SpoolError as error:
                self._error = error
                self.discard()

    def _write(self, pieces: list[memoryview]) -> None:
        if self.size_bytes > self._reception.maximum_instance_bytes:
            raise DiskReserveError("the instance is larger than receiver.maximum_instance_bytes")
        if self._page is not None and self.size_bytes <= SMALL_BYTES:
            self._page.append(pieces)
            return
        self._large().write_pieces(pieces)

    def _large(self) -> Part:
        """The part of the spool, made when the instance turns out to need one."""
        if self._part is None:
            request = self.request
            self._part = self._reception.spool.begin(
                request.sop_class_uid, request.sop_instance_uid, self._syntax, self._calling_ae
            )
            if self._page is not None:
                self._part.write_pieces([self._page.data])
                self._drop_page()
        return self._part

    def finish(self) -> StoredInstance:
        """Make the instance durable.

        Returns
        -------
        StoredInstance
            As it is, or will be, in the index; the version of one in the journal is not known yet.

        Raises
        ------
        Failure
            The status to answer with (PS3.4 B.2.3).
        """
        try:
            if self._error is not None:
                raise self._error
            return self._finish()
        except SpoolError as error:
            raise failure_of(error) from error
        finally:
            self.discard()

    def _finish(self) -> StoredInstance:
        if not self.size_bytes:
            raise Failure(CANNOT_UNDERSTAND, "the request has no data set")
        study, series = check_uids(self._uids(), self.request.sop_class_uid, self.request.sop_instance_uid)
        if self._page is not None and (acknowledged := self._journalled(self._page, study, series)):
            return acknowledged
        stored = self._large().commit(study, series)
        self._reception.index.add_instance(stored, self._reception.spool)
        if self._reception.on_stored is not None:
            self._reception.on_stored(stored)
        return stored

    def _uids(self) -> Callable[[], Uids]:
        if self._page is not None:
            data = self._page.data
            return lambda: find_uids(data, self._syntax)
        part = self._large()
        return lambda: part.header().uids

    def _journalled(self, page: Page, study: str, series: str) -> StoredInstance | None:
        record = Record(
            study_instance_uid=study,
            series_instance_uid=series,
            sop_instance_uid=self.request.sop_instance_uid,
            sop_class_uid=self.request.sop_class_uid,
            transfer_syntax_uid=self._syntax,
            calling_ae=self._calling_ae,
            size_bytes=self.size_bytes,
            checksum=checksum(page.data),
        )
        ticket = self._reception.settler.submit(record, page)
        if ticket is None:
            return None
        # The page is the settler's now.
        self._page = None
        self.ticket = ticket
        return record.stored(instance_path(study, series, record.sop_instance_uid), time.time())

    def discard(self) -> None:
        """Drop what was not made durable."""
        self._drop_page()
        if self._part is not None:
            self._part.discard()
            self._part = None

    def _drop_page(self) -> None:
        if self._page is not None:
            self._reception.settler.give_back(self._page)
            self._page = None
