"""Composition root: what each role of ``daemon run`` consists of, how it starts and how it stops."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from daemon import workflows
from daemon.admission import Peer
from daemon.audit import Trail, open_trail
from daemon.deliveries import Courier
from daemon.errors import DaemonError, SettingsError
from daemon.index import Index
from daemon.keeper import Keeper
from daemon.limits import Limits
from daemon.log import event, load_key
from daemon.metrics import open_counters
from daemon.notify import Pulse, notify, wait
from daemon.prune import Pruner
from daemon.receiver import Receiver
from daemon.resting import resting_collector
from daemon.scoring import leave_loading, serve_scoring
from daemon.sections import DestinationSettings, PeerSettings
from daemon.sender import Destination
from daemon.settings import Settings
from daemon.spool import Spool
from daemon.stopping import stop_event
from daemon.supervisor import PATIENCE_S
from daemon.tls import credentials, server_context


def run_role(role: str, settings: Settings) -> None:
    """Run one role in this process until SIGTERM, SIGINT or the end of its parent.

    Parameters
    ----------
    role
        ``receive``, ``score``, ``send`` or ``web``.
    settings
        Checked settings.

    Raises
    ------
    SettingsError
        Another process has this role for the same data folder, or the port is taken.
    """
    # Just before the supervisor loses its patience.
    stop = stop_event(settings.service.stop_timeout_s + PATIENCE_S - 1.0)
    # The one before may still finish its work: as long as it may, and a little longer.
    with only_one(role, settings, settings.service.stop_timeout_s + 10.0):
        open_counters(settings.metrics_dir, role)
        index = Index(settings.database_url)
        trail = open_trail(settings, role)
        trail.started()
        try:
            spool = Spool(settings.spool_dir, settings.receiver.reserve_bytes)
            work = {"receive": _receive, "score": _score, "send": _send, "web": _web}[role]
            work(settings, index, spool, stop, trail)
        finally:
            index.close()
            trail.stopped()
        leave_loading()


def prepare(settings: Settings) -> None:
    """Make folders, tables and the pseudonym key; called once before the roles start."""
    data = settings.service.data_dir
    for folder in (data, settings.spool_dir, settings.bundles_dir):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    pseudonym_key(settings)
    Index(settings.database_url).close()
    workflows.prepare_database(settings)


def pseudonym_key(settings: Settings) -> bytes:
    """The installation's key for UIDs in logs; made at the first start, mode 0600."""
    settings.service.data_dir.mkdir(parents=True, exist_ok=True)
    return load_key(settings.service.data_dir / "pseudonym.key")


def destination(entry: DestinationSettings, settings: Settings) -> Destination:
    """A destination of the settings as the sender takes it."""
    return Destination(
        name=entry.name,
        ae_title=entry.ae_title,
        host=entry.host,
        port=entry.port,
        calling_ae=entry.calling_ae_title or settings.receiver.ae_title,
        connect_timeout_s=entry.connect_timeout_s,
        acse_timeout_s=entry.acse_timeout_s,
        dimse_timeout_s=entry.dimse_timeout_s,
        tls=credentials(settings, entry.tls_ca, entry.tls_host_name) if entry.tls else None,
    )


def peer_node(entry: PeerSettings, settings: Settings) -> Destination:
    """A peer of the settings as a node that we call: for C-ECHO and for answers of storage commitment."""
    return Destination(
        entry.name,
        entry.ae_title,
        entry.host,
        entry.port,
        settings.receiver.ae_title,
        tls=credentials(settings) if entry.tls else None,
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


def make_receiver(settings: Settings, index: Index, spool: Spool, trail: Trail | None = None) -> Receiver:
    """The Storage and Verification SCP that the settings describe, not started."""
    options = settings.receiver
    return Receiver(
        options.ae_title,
        options.host,
        options.port,
        spool,
        index,
        pseudonym_key(settings),
        peers=_peers(settings),
        accept_unknown_peers=options.accept_unknown_peers,
        require_called_ae_title=options.require_called_ae_title,
        private_sop_classes=options.private_sop_classes,
        limits=Limits(**{name: getattr(options, name) for name in Limits.__slots__}),
        peer_node=lambda peer: _node(peer, settings),
        plain=options.plain,
        tls_port=options.tls_port,
        tls=server_context(credentials(settings), options.require_client_certificate)
        if options.tls_port
        else None,
        close_at_release=settings.study.close_at_release,
        trail=trail,
        reception=options.reception,
    )


def _receive(settings: Settings, index: Index, spool: Spool, stop: threading.Event, trail: Trail) -> None:
    if not index.count_states():
        # Lost, perhaps: what the spool has must be known before anything new is opened or scored.
        _complete(index, spool, stop)
    receiver = make_receiver(settings, index, spool, trail)
    dispatcher = workflows.Dispatcher(settings, index)
    try:
        receiver.start()
    except OSError as error:
        raise SettingsError(
            f"receiver.host/port: cannot listen on {settings.receiver.host}:{settings.receiver.port} "
            f"({error.strerror}); is another program there?"
        ) from error
    # Millions of files take minutes: reception does not wait for them.
    threading.Thread(
        target=_complete, args=(index, spool, stop), name="completing the index", daemon=True
    ).start()
    pulse = Pulse()
    notify("READY=1")
    try:
        while not stop.wait(settings.engine.poll_s):
            pulse.beat()
            try:
                dispatcher.tick()
            except Exception as error:
                # The named edge of the dispatcher: a database that is away for a while must not
                # end reception; what is due stays due.
                event("dispatcher", level=logging.ERROR, error=type(error).__name__)
                stop.wait(5.0)
    finally:
        notify("STOPPING=1")
        receiver.stop(settings.service.stop_timeout_s)
        dispatcher.close()


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


def _score(settings: Settings, index: Index, spool: Spool, stop: threading.Event, _trail: Trail) -> None:
    serve_scoring(settings, index, spool, pseudonym_key(settings), stop)


def _send(settings: Settings, index: Index, spool: Spool, stop: threading.Event, trail: Trail) -> None:
    targets = [destination(entry, settings) for entry in settings.destinations]
    courier = Courier(index, spool, targets, settings.delivery, pseudonym_key(settings), trail=trail)
    rescuer = workflows.serve_sending(settings, index, courier)
    pruner = Pruner(settings, index, spool)
    threading.Thread(target=pruner.run, args=(stop,), name="pruner", daemon=True).start()
    names = {entry.name for entry in settings.destinations if entry.commitment}
    committing = [target for target in targets if target.name in names]
    keeper = Keeper(index.pledges, committing, settings.commitment, pseudonym_key(settings))
    asking = threading.Thread(target=keeper.run, args=(stop, settings.engine.poll_s * 4), name="keeper")
    asking.start()
    wait(stop)
    workflows.stop(rescuer, settings.service.stop_timeout_s)


def _web(settings: Settings, index: Index, spool: Spool, stop: threading.Event, trail: Trail) -> None:
    with resting_collector():
        # the web framework: only this role pays for it
        from daemon.web.server import serve

    targets = [destination(entry, settings) for entry in settings.destinations]
    serve(settings, index, spool, targets, stop, trail)


@contextlib.contextmanager
def only_one(role: str, settings: Settings, wait_s: float) -> Iterator[None]:
    """Hold the role's lock file; after a crash the last owner may need a moment to go.

    Raises
    ------
    SettingsError
        Another process holds it for longer than ``wait_s``.
    """
    path = settings.service.data_dir / f"{role}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with Path.open(path, "w") as file:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise SettingsError(
                        f"service.data_dir: another daemon has the role {role!r} there; stop it first"
                    ) from None
                time.sleep(0.1)
        yield
