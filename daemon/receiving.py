"""The receiving role: its processes part, one of them listens, and studies that are complete become due."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace

from daemon import workflows
from daemon.admission import Peer
from daemon.audit import Trail, open_trail
from daemon.errors import DaemonError, SettingsError
from daemon.fellows import Fellow, Fellows
from daemon.helpers import Channel, Helpers
from daemon.index import Index
from daemon.limits import Limits
from daemon.log import event
from daemon.metrics import open_counters
from daemon.notify import Pulse, notify
from daemon.receiver import Receiver
from daemon.requestor import Destination
from daemon.sections import PeerSettings
from daemon.settings import Settings
from daemon.spool import Spool
from daemon.stopping import stop_event
from daemon.supervisor import PATIENCE_S
from daemon.tls import credentials, server_context

# Helpers stop when this process does, and take as long.
_JOIN_S = 1.0


def part(settings: Settings, key: bytes) -> Helpers:
    """Let the role's further processes part from this one, which must have no threads, locks or files yet.

    Parameters
    ----------
    settings
        Checked settings.
    key
        For the studies' pseudonyms.
    """
    fellows = Fellows(settings.receiver.processes)
    return Helpers(fellows, lambda fellow, channel: _help(settings, key, fellow, channel))


def serve_receiving(
    settings: Settings,
    index: Index,
    spool: Spool,
    key: bytes,
    stop: threading.Event,
    trail: Trail,
    helpers: Helpers,
) -> None:
    """Listen, receive, and open what is due, until ``stop`` is set.

    Parameters
    ----------
    settings, index, spool
        Of this node.
    key
        For the studies' pseudonyms.
    stop
        Set when the role is to end.
    trail
        Where transfers are audited.
    helpers
        The role's other processes.

    Raises
    ------
    SettingsError
        The address is taken or not ours.
    DaemonError
        One of the other processes ended by itself.
    """
    if not index.count_states():
        # Lost, perhaps: what the spool has must be known before anything new is opened or scored.
        _complete(index, spool, stop)
    receiver = make_receiver(settings, index, spool, key, trail, Fellow(helpers.fellows))
    dispatcher = workflows.Dispatcher(settings, index)
    try:
        receiver.start(helpers.hand_over)
    except OSError as error:
        raise SettingsError(
            f"receiver.host/port: cannot listen on {settings.receiver.host}:{settings.receiver.port} "
            f"({error.strerror}); is another program there?"
        ) from error
    helpers.begin()
    # Millions of files take minutes: reception does not wait for them.
    threading.Thread(
        target=_complete, args=(index, spool, stop), name="completing the index", daemon=True
    ).start()
    try:
        _dispatch(settings, dispatcher, stop, helpers)
    finally:
        notify("STOPPING=1")
        helpers.end()
        receiver.stop(settings.service.stop_timeout_s)
        helpers.join(_JOIN_S)
        dispatcher.close()


def _dispatch(
    settings: Settings, dispatcher: workflows.Dispatcher, stop: threading.Event, helpers: Helpers
) -> None:
    pulse = Pulse()
    notify("READY=1")
    while not stop.wait(settings.engine.poll_s):
        pulse.beat()
        if helpers.look_after():
            raise DaemonError("one of the receiving processes ended by itself; the role starts anew")
        try:
            dispatcher.tick()
        except Exception as error:
            # The named edge of the dispatcher: a database that is away for a while must not
            # end reception; what is due stays due.
            event("dispatcher", level=logging.ERROR, error=type(error).__name__)
            stop.wait(5.0)


def _help(settings: Settings, key: bytes, fellow: Fellow, channel: Channel) -> None:
    """Receive what the process that listens hands over."""
    stop = stop_event(settings.service.stop_timeout_s + PATIENCE_S - 1.0)
    if not channel.begins(stop):
        return
    open_counters(settings.metrics_dir, f"receive-{fellow.number}")
    index = Index(settings.database_url)
    trail = open_trail(settings, "receive", fellow.number)
    trail.started()
    try:
        spool = Spool(settings.spool_dir, settings.receiver.reserve_bytes)
        receiver = make_receiver(settings, index, spool, key, trail, fellow)
        receiver.attend()
        for handed in channel.connections(stop):
            receiver.take(handed.connection, handed.address, encrypted=handed.encrypted)
        receiver.stop(settings.service.stop_timeout_s)
    finally:
        index.close()
        trail.stopped()


def _complete(index: Index, spool: Spool, stop: threading.Event) -> None:
    """Bring what the spool has and the index does not know into the index; tried until it is done."""
    while not stop.is_set():
        try:
            if added := index.rebuild(spool, stop.is_set):
                event("index completed from the spool", instances=added)
            return
        except (DaemonError, OSError) as error:
            event("completing the index", level=logging.ERROR, error=type(error).__name__)
            stop.wait(60.0)


def make_receiver(
    settings: Settings, index: Index, spool: Spool, key: bytes, trail: Trail, fellow: Fellow | None = None
) -> Receiver:
    """The Storage and Verification SCP that the settings describe, not started."""
    options = settings.receiver
    limits = Limits(**{name: getattr(options, name) for name in Limits.__slots__})
    # Connections are spread evenly: each process bounds its share of them.
    share = -(-limits.maximum_connections // options.processes)
    return Receiver(
        options.ae_title,
        options.host,
        options.port,
        spool,
        index,
        key,
        peers=_peers(settings),
        accept_unknown_peers=options.accept_unknown_peers,
        require_called_ae_title=options.require_called_ae_title,
        private_sop_classes=options.private_sop_classes,
        limits=replace(limits, maximum_connections=share),
        peer_node=lambda peer: _node(peer, settings),
        plain=options.plain,
        tls_port=options.tls_port,
        tls=server_context(credentials(settings), options.require_client_certificate)
        if options.tls_port
        else None,
        close_at_release=settings.study.close_at_release,
        trail=trail,
        reception=options.reception,
        fellow=fellow,
    )


def _peers(settings: Settings) -> list[Peer]:
    """Who may talk to us: the peers, and destinations that answer requests for commitment."""
    answering = frozenset({"echo", "commit"})
    answers = {d.ae_title for d in settings.destinations if d.commitment}

    def rights(entry: PeerSettings) -> frozenset[str]:
        # Whoever is to answer our requests may do so, unless the settings say what it may.
        implied = answering if entry.ae_title in answers and "may" not in entry.model_fields_set else ()
        return frozenset(entry.may) | frozenset(implied)

    listed = [Peer(p.name, p.ae_title, p.host, rights(p), p.port, p.tls) for p in settings.peers]
    return listed + [
        Peer(d.name, d.ae_title, d.host, answering, d.port, d.tls)
        for d in settings.destinations
        if d.commitment and d.ae_title not in {peer.ae_title for peer in listed}
    ]


def _node(peer: Peer, settings: Settings) -> Destination:
    """Where a peer listens, for reports on storage commitment."""
    tls = credentials(settings) if peer.tls else None
    return Destination(peer.name, peer.ae_title, peer.host, peer.port, settings.receiver.ae_title, tls=tls)
