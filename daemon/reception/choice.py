"""Whether the fast path is used: it is wanted, and everything is here that it was made for."""

import logging
import os
from collections.abc import Callable

import pynetdicom

from daemon.index import Index
from daemon.limits import Limits
from daemon.log import event
from daemon.reception.message import Reception
from daemon.spool import Spool, StoredInstance

# The version whose private attributes this room knows.
PYNETDICOM = "3.0.4"


def why_not() -> str:
    """Return why the fast path cannot be used here, or "" when it can."""
    if pynetdicom.__version__ != PYNETDICOM:
        return f"pynetdicom is {pynetdicom.__version__}, the fast path knows {PYNETDICOM} alone"
    needed = ("eventfd", "O_DIRECT", "O_DSYNC", "writev")
    missing = [name for name in needed if not hasattr(os, name)]
    return f"this system has no {', '.join(missing)}" if missing else ""


def fast_reception(
    wanted: str,
    spool: Spool,
    index: Index,
    limits: Limits,
    on_stored: Callable[[StoredInstance], None] | None,
) -> Reception | None:
    """Return the fast path that a receiver's associations share, or None for the stock way.

    Parameters
    ----------
    wanted
        ``fast`` or ``stock``.
    spool, index, limits, on_stored
        As of the receiver.
    """
    if wanted != "fast":
        return None
    if reason := why_not():
        event("reception", level=logging.WARNING, outcome="stock", reason=reason)
        return None
    return Reception(spool, index, limits.maximum_instance_bytes, on_stored)
