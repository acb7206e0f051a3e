"""Storage Commitment Push Model (PS3.4 Annex J): what is asked, and what is answered.

As SCU we ask each destination that offers it to keep what it got; as SCP we say for what we
received whether it is still there. This file knows data sets and the index, no network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import generate_uid

from daemon.errors import SpoolError
from daemon.pledges import Pledges
from daemon.spool import Spool

SOP_CLASS = "1.2.840.10008.1.20.1"
SOP_INSTANCE = "1.2.840.10008.1.20.1.1"
# Action Type ID of a request (J.3.2.1), Event Type IDs of an answer (J.3.3.1).
REQUEST = 1
ALL_COMMITTED = 1
FAILURES_EXIST = 2

# Failure Reason (0008,1197), PS3.3 C.14.1.1.
PROCESSING_FAILURE = 0x0110
NO_SUCH_OBJECT_INSTANCE = 0x0112
CLASS_INSTANCE_CONFLICT = 0x0119
RESOURCE_LIMITATION = 0x0213
REASONS = {
    PROCESSING_FAILURE: "processing failure",
    NO_SUCH_OBJECT_INSTANCE: "no such object instance",
    CLASS_INSTANCE_CONFLICT: "class and instance conflict",
    0x0122: "referenced SOP class not supported",
    0x0131: "duplicate transaction UID",
    RESOURCE_LIMITATION: "resource limitation",
}


class BadRequestError(ValueError):
    """A request or report lacks its transaction UID or its items."""


@dataclass(frozen=True, slots=True)
class Reference:
    """One instance of a request or an answer."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True)
class Report:
    """An answer: what is committed, and the Failure Reason of what is not."""

    transaction_uid: str
    committed: tuple[Reference, ...]
    failed: tuple[tuple[Reference, int], ...] = field(default=())

    @property
    def event_type(self) -> int:
        """Event Type ID of the N-EVENT-REPORT."""
        return FAILURES_EXIST if self.failed else ALL_COMMITTED


def new_transaction() -> str:
    """Return a Transaction UID that nobody can guess."""
    return str(generate_uid(prefix=None))


def request(transaction_uid: str, references: Sequence[Reference]) -> Dataset:
    """Return the Action Information of a request (table J.3-1)."""
    ds = Dataset()
    ds.TransactionUID = transaction_uid
    ds.ReferencedSOPSequence = DicomSequence([_item(reference) for reference in references])
    return ds


def read_request(ds: Dataset) -> tuple[str, tuple[Reference, ...]]:
    """Return transaction UID and instances of a request.

    Raises
    ------
    BadRequestError
        One of them is missing.
    """
    references = tuple(_references(ds, "ReferencedSOPSequence"))
    if not references:
        raise BadRequestError("a commitment request without instances")
    return _transaction(ds), references


def encode(report: Report) -> Dataset:
    """Return the Event Information of an answer (table J.3-2)."""
    ds = Dataset()
    ds.TransactionUID = report.transaction_uid
    # An empty sequence would not be valid: each is there only with items.
    if report.committed:
        ds.ReferencedSOPSequence = DicomSequence([_item(reference) for reference in report.committed])
    if report.failed:
        items = []
        for reference, reason in report.failed:
            item = _item(reference)
            item.FailureReason = reason
            items.append(item)
        ds.FailedSOPSequence = DicomSequence(items)
    return ds


def decode(ds: Dataset) -> Report:
    """Return an answer's Event Information as a report.

    Raises
    ------
    BadRequestError
        It has no transaction UID.
    """
    failed = tuple(
        (reference, int(item.get("FailureReason") or PROCESSING_FAILURE))
        for reference, item in zip(
            _references(ds, "FailedSOPSequence"), ds.get("FailedSOPSequence") or [], strict=True
        )
    )
    return Report(_transaction(ds), tuple(_references(ds, "ReferencedSOPSequence")), failed)


def reason_words(reason: int) -> str:
    """Return a Failure Reason in words, such as ``0x0112 (no such object instance)``."""
    return f"0x{reason:04X} ({REASONS.get(reason, 'failure')})"


def judge(
    transaction_uid: str, references: Sequence[Reference], pledges: Pledges, spool: Spool, maximum: int
) -> Report:
    """Say of each instance whether we hold it.

    Parameters
    ----------
    transaction_uid, references
        The request.
    pledges, spool
        What was received, and where it is.
    maximum
        More instances than this in one request are not looked at: 0x0213.

    Returns
    -------
    Report
        Every instance of the request, either committed or with its Failure Reason.
    """
    if len(references) > maximum:
        return Report(transaction_uid, (), tuple((item, RESOURCE_LIMITATION) for item in references))
    held = pledges.held([reference.sop_instance_uid for reference in references])
    committed, failed = [], []
    for reference in references:
        versions = held.get(reference.sop_instance_uid, [])
        of_class = [item for item in versions if item.sop_class_uid == reference.sop_class_uid]
        if not versions:
            failed.append((reference, NO_SUCH_OBJECT_INSTANCE))
        elif not of_class:
            failed.append((reference, CLASS_INSTANCE_CONFLICT))
        elif not all(_is_whole(spool, item.path, item.size_bytes) for item in of_class):
            failed.append((reference, PROCESSING_FAILURE))
        else:
            committed.append(reference)
    return Report(transaction_uid, tuple(committed), tuple(failed))


def settle(report: Report, pledges: Pledges, clock: Callable[[], float]) -> tuple[str, int, int] | None:
    """Record an answer to a request of ours; None if we never asked that."""
    return pledges.settle(
        report.transaction_uid,
        [reference.sop_instance_uid for reference in report.committed],
        {reference.sop_instance_uid: reason_words(reason) for reference, reason in report.failed},
        clock(),
    )


def _is_whole(spool: Spool, path: str, size_bytes: int) -> bool:
    try:
        return spool.path(path).stat().st_size == size_bytes
    except (OSError, SpoolError):
        return False


def _item(reference: Reference) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = reference.sop_class_uid
    item.ReferencedSOPInstanceUID = reference.sop_instance_uid
    return item


def _references(ds: Dataset, keyword: str) -> Iterator[Reference]:
    for item in ds.get(keyword) or []:
        yield Reference(
            str(item.get("ReferencedSOPClassUID") or ""), str(item.get("ReferencedSOPInstanceUID") or "")
        )


def _transaction(ds: Dataset) -> str:
    uid = str(ds.get("TransactionUID") or "")
    if not uid:
        raise BadRequestError("a commitment message without transaction UID")
    return uid
