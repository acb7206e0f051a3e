"""Composition root: what each role of ``daemon run`` consists of, how it starts and how it stops."""

from __future__ import annotations

import contextlib
import fcntl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from daemon import workflows
from daemon.audit import Trail, open_trail
from daemon.deliveries import Courier
from daemon.errors import SettingsError
from daemon.index import Index
from daemon.keeper import Keeper
from daemon.log import load_key
from daemon.metrics import open_counters
from daemon.notify import wait
from daemon.prune import Pruner
from daemon.receiving import part, serve_receiving
from daemon.resting import resting_collector
from daemon.scoring import leave_loading, serve_scoring
from daemon.sections import DestinationSettings, PeerSettings
from daemon.sender import Destination
from daemon.settings import Settings
from daemon.spool import Spool
from daemon.stopping import stop_event
from daemon.supervisor import PATIENCE_S
from daemon.tls import credentials


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
    key = pseudonym_key(settings)
    # Parted from this process while it has nothing of its own yet.
    helpers = part(settings, key) if role == "receive" else None
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
            if helpers is not None:
                serve_receiving(settings, index, spool, key, stop, trail, helpers)
            else:
                work = {"score": _score, "send": _send, "web": _web}[role]
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
