"""The scoring role: the model is loaded, then studies are scored until the role is to stop."""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from adapters.errors import AdapterError
from daemon import workflows
from daemon.index import Index
from daemon.log import event
from daemon.notify import wait
from daemon.resting import resting_collector
from daemon.settings import Settings
from daemon.spool import Spool

if TYPE_CHECKING:  # they bring torch along
    from daemon.analyst import Analyst
    from daemon.models import Models

_LOADER = "model loader"
_LOOK_S = 0.05


def serve_scoring(
    settings: Settings, index: Index, spool: Spool, pseudonym_key: bytes, stop: threading.Event
) -> None:
    """Load the model and score until ``stop`` is set, which ends the loading, too.

    Parameters
    ----------
    settings, index, spool
        Of this node.
    pseudonym_key
        For the studies in the log.
    stop
        Set when the role is to end.
    """
    # In a thread: a signal shall end even what never returns to Python.
    loader = ThreadPoolExecutor(1, _LOADER)
    loading = loader.submit(_load, settings, index, spool, pseudonym_key)
    while not loading.done():
        if stop.wait(_LOOK_S):
            return
    loader.shutdown()
    models, analyst = loading.result()
    rescuer = workflows.serve_scoring(settings, index, analyst)
    if settings.model.early:
        from daemon.early import EarlyScoring

        name = workflows.executor_name(settings, workflows.SCORE_QUEUE)
        early = EarlyScoring(settings, index, spool, models, analyst.busy, name)
        threading.Thread(target=early.run, args=(stop,), name="early", daemon=True).start()
    wait(stop)
    workflows.stop(rescuer, settings.service.stop_timeout_s)


def leave_loading() -> None:
    """End this process if it still loads its model: nothing can interrupt that, and nothing was begun."""
    if any(thread.name.startswith(_LOADER) for thread in threading.enumerate()):
        logging.shutdown()
        os._exit(0)


def _load(settings: Settings, index: Index, spool: Spool, pseudonym_key: bytes) -> tuple[Models, Analyst]:
    """Who scores, with the model in memory: a large one from a slow disk takes a minute."""
    with resting_collector():
        # torch and highdicom: only this role pays for them
        from daemon.analyst import Analyst
        from daemon.models import Models

        models = Models(settings)
        try:
            models.warm()
        except AdapterError as error:
            # Reception goes on; studies that cannot be scored meanwhile say why and can be retried.
            event("model not ready", level=logging.ERROR, reason=str(error))
        return models, Analyst(settings, index, spool, models, pseudonym_key)
