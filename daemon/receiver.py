"""Storage, Verification and Storage Commitment SCP: Success means that an instance is durable.

The bytes of a data set go to the spool as they arrive, whatever its size; nothing is decoded
beyond the UIDs. Statuses: PS3.4 B.2.3.
"""

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.association import Association

from daemon import dimse
from daemon.admission import Admission, Peer
from daemon.audit import Trail, no_trail
from daemon.commitment_service import CommitmentService
from daemon.connections import HandedServer, HandOver, Server, Waiting, end
from daemon.entrance import Entrance
from daemon.errors import DatabaseError
from daemon.fellows import Fellow, Fellows
from daemon.incoming import IncomingProvider, set_no_delay
from daemon.index import Index
from daemon.limits import Limits
from daemon.listeners import Listeners
from daemon.log import event, pseudonym
from daemon.reception.choice import fast_reception
from daemon.reception.provider import FastProvider
from daemon.requestor import Destination
from daemon.spool import Spool, StoredInstance
from daemon.storing import store
from daemon.tally import Tally


class Receiver:
    """The Storage SCP of this node.

    Parameters
    ----------
    ae_title
        Our AE title; a peer must call it unless ``check_called_ae`` is false.
    host, port
        Where to listen; port 0 takes a free one (see :attr:`port`).
    pseudonym_key
        For the studies in the log.
    peers
        Who may associate, from where, and what each may do.
    accept_unknown_peers
        Whether everybody else may, too.
    require_called_ae_title
        Whether a peer must call us by our own AE title.
    private_sop_classes
        UIDs of the site's own storage SOP classes.
    limits
        Bounds on what peers can take from us: sizes, numbers, times.
    plain
        Whether ``port`` is listened on, without encryption.
    tls_port, tls
        Where to listen for encrypted associations, and how to encrypt.
    close_at_release
        Whether a study is due as soon as the last association that sent it is released.
    peer_node
        How a peer is called for a storage commitment report; without it only its own association is used.
    on_stored
        Called after each instance is durable and indexed, in the association's thread: be quick.
    trail
        Where transfers and refusals are audited.
    reception
        ``fast`` or ``stock``: whether C-STORE requests are taken from the socket's buffer directly.
    fellow
        What this process tells the others of its role, and knows of them.
    """

    def __init__(
        self,
        ae_title: str,
        host: str,
        port: int,
        spool: Spool,
        index: Index,
        pseudonym_key: bytes,
        *,
        peers: Sequence[Peer] = (),
        accept_unknown_peers: bool = False,
        require_called_ae_title: bool = True,
        private_sop_classes: Iterable[str] = (),
        limits: Limits | None = None,
        plain: bool = True,
        tls_port: int | None = None,
        tls: ssl.SSLContext | None = None,
        close_at_release: bool = False,
        peer_node: Callable[[Peer], Destination] | None = None,
        on_stored: Callable[[StoredInstance], None] | None = None,
        trail: Trail | None = None,
        reception: str = "fast",
        fellow: Fellow | None = None,
    ) -> None:
        dimse.configure_pynetdicom()
        self.ae_title = ae_title
        self._address = (host, port)
        self._spool, self._index, self._key = spool, index, pseudonym_key
        self.limits = limits or Limits()
        self.waiting = Waiting(self.limits.maximum_connections)
        self._close_at_release, self._on_stored = close_at_release, on_stored
        self._trail = trail or no_trail()
        self._fellow = fellow or Fellow(Fellows(1))
        admission = Admission(ae_title, peers, accept_unknown_peers, require_called_ae_title)
        self.entrance = Entrance(admission, self._fellow, self.limits.maximum_associations, self._trail)
        self.reception = fast_reception(reception, spool, index, self.limits, on_stored)
        self._offer = dimse.Offer(private_sop_classes)
        self.commitment = CommitmentService(
            index.pledges, spool, self._node_of, lambda assoc: self._may(assoc, "commit")
        )
        self._peer_node = peer_node
        self._tallies: dict[Association, Tally] = {}
        self._lock = threading.Lock()
        self._plain, self._tls_port, self._tls = plain, tls_port, tls
        handlers = [
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_C_ECHO, self._echo),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_RELEASED, self._released),
            *self.commitment.handlers(),
        ]
        self._listeners = Listeners(ae_title, handlers, self)

    @property
    def port(self) -> int:
        """The port that is listened on without encryption."""
        return self._listeners.port(encrypted=False) or self._address[1]

    @property
    def tls_port(self) -> int:
        """The port that is listened on with encryption; 0 for none."""
        return self._listeners.port(encrypted=True)

    @property
    def associations(self) -> int:
        """How many associations are open, and connections that may still ask for one."""
        return self.entrance.places + len(self.waiting)

    def start(self, hand_over: HandOver | None = None) -> None:
        """Remove leftovers of an earlier run and listen.

        Parameters
        ----------
        hand_over
            Asked of each connection whether another process takes it.

        Raises
        ------
        OSError
            The address is taken or not ours.
        """
        self._spool.clean()
        self._open(Server)
        self._listeners.serve(hand_over)

    def attend(self) -> None:
        """Be ready for connections that another process listens for; see :meth:`take`."""
        self._open(HandedServer)

    def take(self, connection: socket.socket, address: tuple[Any, ...], *, encrypted: bool) -> None:
        """Run a connection that another process has accepted."""
        self._listeners.take(connection, address, encrypted=encrypted)

    def _open(self, kind: type[Server]) -> None:
        if self.reception is not None:
            self.reception.start()
        try:
            if self._plain:
                self._listeners.open(kind, self._address)
            if self._tls is not None:
                self._listeners.open(kind, (self._address[0], self._tls_port or 0), self._tls)
        except OSError:
            self._listeners.close()
            if self.reception is not None:
                self.reception.close()
            raise

    def stop(self, timeout_s: float = 30.0) -> None:
        """Stop listening, let open associations finish for a while, then abort what is left."""
        if not self._listeners:
            return
        self._listeners.stop()
        self.waiting.close_all()
        deadline = time.monotonic() + timeout_s
        while self._established() and time.monotonic() < deadline:
            time.sleep(0.02)
        with self._lock:
            left = list(self._tallies)
        for assoc in left:
            end(assoc)
        while self.associations and time.monotonic() < deadline + 5.0:
            time.sleep(0.02)
        if self.reception is not None:
            self.reception.close()
        self.commitment.stop()
        event("receiver stopped", failed=len(left))

    def _established(self) -> list[Association]:
        """Associations with work to finish; a bare connection has none and is not waited for."""
        with self._lock:
            return [assoc for assoc in self._tallies if assoc.is_established]

    # An association's life

    def run_association(self, assoc: Association, may: frozenset[str]) -> None:
        """Run one association to its end, then write its line and drop what it left unfinished."""
        tally = Tally(may, begins=self._fellow.begins)
        dul: Any = assoc.dul
        is_fast = isinstance(dul, FastProvider)
        provider = IncomingProvider(assoc, self._spool, self.limits, tally.over, is_woken=is_fast)
        assoc.dimse = provider
        set_no_delay(assoc)
        if is_fast and "store" in may:
            dul.serve(tally.take, tally.over)
        with self._lock:
            self._tallies[assoc] = tally
        try:
            assoc.start()
            assoc.join()
        finally:
            provider.discard()
            if is_fast:
                dul.close()
            tally.statuses.update(provider.refused)
            with self._lock:
                del self._tallies[assoc]
            self._finish(assoc, tally, self._fellow.ends(tally.studies))

    def _finish(self, assoc: Association, tally: Tally, still_sent: set[str]) -> None:
        # Line and audit first: what was acknowledged is told, whatever becomes of the rest.
        tally.write(assoc, self._key)
        requestor: Any = assoc.requestor
        calling_ae = requestor.primitive.calling_ae_title if requestor.primitive else ""
        self._trail.received(calling_ae, requestor.address_info.address, tally.transfers(self._spool))
        due = tally.studies - still_sent
        if due and self._close_at_release and tally.outcome == "released":
            self._mark_released(due)

    def _mark_released(self, studies: set[str]) -> None:
        """Make studies due; with the database away they are due after their quiet time instead."""
        try:
            self._index.mark_association_released(studies)
        except DatabaseError as error:
            event(
                "release not marked",
                level=logging.ERROR,
                studies=",".join(sorted(pseudonym(uid, self._key) for uid in studies)),
                outcome="due after study.quiet_s",
                reason=str(error),
            )

    def _requested(self, requested: evt.Event) -> None:
        """Offer what is proposed and we take."""
        assoc: Any = requested.assoc
        proposed = assoc.requestor.primitive.presentation_context_definition_list
        assoc.acceptor.supported_contexts = self._offer.contexts(proposed)

    def _released(self, released: evt.Event) -> None:
        self._tallies[released.assoc].outcome = "released"

    # Services

    def _may(self, assoc: Association, operation: str) -> bool:
        """Whether an association's peer may do this; an association that is not ours may nothing."""
        tally = self._tallies.get(assoc)
        return tally is not None and operation in tally.may

    def _echo(self, request: evt.Event) -> int:
        """Answer one C-ECHO request (PS3.7 9.1.5)."""
        return dimse.SUCCESS if self._may(request.assoc, "echo") else dimse.NOT_AUTHORISED

    def _store(self, request: evt.Event) -> Dataset:
        """Answer one C-STORE request (PS3.7 9.1.1) that pynetdicom has received."""
        tally = self._tallies[request.assoc]
        answer = Dataset()
        answer.Status, comment = tally.take(
            lambda: store(request, tally.may, self._index, self._spool, self._on_stored)
        )
        if comment:
            answer.ErrorComment = comment
        return answer

    def _node_of(self, calling_ae: str, address: str) -> Destination | None:
        peer = self.entrance.peer(calling_ae, address)
        return self._peer_node(peer) if peer is not None and self._peer_node is not None else None
