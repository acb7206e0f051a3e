"""The role ``web``: the page's process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence

import uvicorn

from daemon.accounts import Accounts
from daemon.audit import Trail, no_trail
from daemon.catalogue import Catalogue
from daemon.corrections import Corrections
from daemon.database import open_database
from daemon.errors import SettingsError
from daemon.index import Index
from daemon.log import event, load_key
from daemon.notify import wait
from daemon.requestor import Destination
from daemon.score_blocks import ScoreBlocks
from daemon.settings import Settings
from daemon.spool import Spool
from daemon.verdicts import Verdicts
from daemon.views import Views
from daemon.web.app import make_app
from daemon.web.bundles import Bundles
from daemon.web.desk import Desk
from daemon.web.drift import BLOCK, DriftWatch
from daemon.web.patients import Patients
from daemon.web.protocol import bounded
from daemon.web.session import Guard
from daemon.web.trainer import Trainer
from daemon.web.watch import Watch

_STOP_S = 5.0


def serve(
    settings: Settings,
    index: Index,
    spool: Spool,
    targets: Sequence[Destination],
    stop: threading.Event,
    trail: Trail | None = None,
) -> None:
    """Serve the page until told to stop.

    Parameters
    ----------
    settings, index, spool
        Options, what was received, and where it is.
    targets
        Destinations to look after.
    stop
        Ends it.
    trail
        Where sign-ins and accesses are audited.

    Raises
    ------
    SettingsError
        The port is taken, or the certificate does not load.
    """
    options = settings.web
    try:
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        listener = socket.create_server((options.host, options.port), family=family, backlog=128)
    except OSError as error:
        raise SettingsError(
            f"web.host/port: cannot listen on {options.host}:{options.port} ({error.strerror}); "
            "is another program there?"
        ) from error
    reader, writer = open_database(settings.database_url)
    desk = make_desk(settings, index, spool, targets, Catalogue(reader), Accounts(reader, writer),
                     Verdicts(reader, writer), Corrections(reader, writer),
                     ScoreBlocks(reader, writer, BLOCK), trail)  # fmt: skip
    try:
        server = uvicorn.Server(_config(desk))
    except OSError as error:
        raise SettingsError(f"web.certificate/private_key: cannot be used ({error.strerror})") from error
    desk.watch.start()
    desk.drift.start()
    thread = threading.Thread(target=server.run, args=([listener],), name="web")
    thread.start()
    event("page started", host=options.host, port=options.port)
    try:
        wait(stop)
    finally:
        desk.watch.stop()
        desk.drift.stop()
        server.should_exit = True
        desk.trainer.close()
        thread.join(2 * _STOP_S)
        reader.dispose()


def make_desk(
    settings: Settings,
    index: Index,
    spool: Spool,
    targets: Sequence[Destination],
    catalogue: Catalogue,
    accounts: Accounts,
    verdicts: Verdicts,
    corrections: Corrections,
    blocks: ScoreBlocks,
    trail: Trail | None = None,
) -> Desk:
    """Put together what the routes use."""
    bundles = Bundles(settings.bundles_dir, settings.service.data_dir / "reports", settings.model.bundle)
    trail = trail or no_trail()
    return Desk(
        settings=settings,
        index=index,
        spool=spool,
        catalogue=catalogue,
        accounts=accounts,
        verdicts=verdicts,
        corrections=corrections,
        views=Views(settings.views_dir),
        patients=Patients(settings.spool_dir, show=settings.web.show_patient_names),
        bundles=bundles,
        watch=Watch(targets, settings.web.echo_s),
        trainer=Trainer(settings),
        drift=DriftWatch(blocks, bundles),
        guard=Guard(
            accounts,
            settings.web,
            load_key(settings.service.data_dir / "web.key"),
            failed=lambda name, address: trail.signed_in(name, address, ok=False),
        ),
        trail=trail,
        targets=tuple(targets),
    )


def _config(desk: Desk) -> uvicorn.Config:
    options = desk.settings.web
    return uvicorn.Config(
        make_app(desk),
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        # What a proxy says is believed by address (session.py).
        proxy_headers=False,
        ssl_certfile=options.certificate or None,
        ssl_keyfile=options.private_key or None,
        timeout_graceful_shutdown=int(_STOP_S),
        limit_concurrency=400,
        http=bounded(options.proxy_addresses if options.proxied else ()),
        ws="none",
        h11_max_incomplete_event_size=64 * 1024,
    )
