"""One C-STORE request: from its data set to a durable instance, or to a status that says why not."""

import logging
from collections.abc import Callable
from typing import Any

from pynetdicom import evt

from daemon import dimse
from daemon.errors import DiskReserveError, SpoolError
from daemon.incoming import Incoming
from daemon.index import Index
from daemon.log import event
from daemon.part import StoredInstance
from daemon.part10 import Uids
from daemon.spool import Spool


class Failure(Exception):
    """A C-STORE that is answered with this status and comment instead of Success."""

    def __init__(self, status: int, comment: str) -> None:
        super().__init__(comment)
        self.status = status
        self.comment = comment


def store(
    request: evt.Event,
    may: frozenset[str],
    index: Index,
    spool: Spool,
    on_stored: Callable[[StoredInstance], None] | None,
) -> StoredInstance:
    """Make the request's instance durable and indexed.

    Parameters
    ----------
    request, may
        As of :func:`take`.
    index, spool, on_stored
        Of the receiver.

    Raises
    ------
    Failure
        The status to answer with (PS3.4 B.2.3).
    """
    stored = take(request, may)
    index.add_instance(stored, spool)
    if on_stored is not None:
        on_stored(stored)
    return stored


def take(request: evt.Event, may: frozenset[str]) -> StoredInstance:
    """Make the request's instance durable.

    Parameters
    ----------
    request
        The C-STORE event; its data set is an :class:`daemon.incoming.Incoming`.
    may
        What the peer may do.

    Raises
    ------
    Failure
        The status to answer with (PS3.4 B.2.3).
    """
    message: Any = request.request
    incoming: Incoming = message.DataSet
    try:
        part = incoming.finish()
        if "store" not in may:
            raise Failure(dimse.NOT_AUTHORISED, "this peer may not store here")
        if part is None:
            raise Failure(dimse.CANNOT_UNDERSTAND, "the request has no data set")
        if request.context.abstract_syntax != message.AffectedSOPClassUID:
            raise Failure(dimse.SOP_CLASS_NOT_SUPPORTED, "not the SOP class of its context")
        study, series = check_uids(lambda: part.header().uids, part.sop_class_uid, part.sop_instance_uid)
        return part.commit(study, series)
    except SpoolError as error:
        raise failure_of(error) from error
    finally:
        incoming.discard()


def failure_of(error: SpoolError) -> Failure:
    """Return how an error of the spool is answered."""
    if isinstance(error, DiskReserveError):
        return Failure(dimse.OUT_OF_RESOURCES, str(error))
    event("store failed", level=logging.ERROR, reason=str(error))
    return Failure(dimse.PROCESSING_FAILURE, "the spool cannot be written")


def check_uids(read: Callable[[], Uids], sop_class_uid: str, sop_instance_uid: str) -> tuple[str, str]:
    """Return study and series UID of an instance whose data set fits its request.

    Parameters
    ----------
    read
        Reads the data set's UIDs.
    sop_class_uid, sop_instance_uid
        Of the request.

    Raises
    ------
    Failure
        It does not fit, or cannot be parsed.
    DiskReserveError
        It could not be written as far as that.
    """
    try:
        uids = read()
    except DiskReserveError:
        # What was still buffered had no room: that says nothing of the data set.
        raise
    except SpoolError as error:
        raise Failure(dimse.CANNOT_UNDERSTAND, "the data set cannot be parsed") from error
    if not (uids.sop_class_uid or uids.sop_instance_uid or uids.study_instance_uid):
        raise Failure(dimse.CANNOT_UNDERSTAND, "the data set has none of the UIDs")
    for name, found, wanted in (
        ("SOP Class", uids.sop_class_uid, sop_class_uid),
        ("SOP Instance", uids.sop_instance_uid, sop_instance_uid),
    ):
        if found != wanted:
            raise Failure(dimse.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, f"{name} UID differs from the request's")
    if not uids.study_instance_uid or not uids.series_instance_uid:
        raise Failure(dimse.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, "Study or Series Instance UID is missing")
    return uids.study_instance_uid, uids.series_instance_uid
