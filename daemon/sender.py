"""Storage SCU: objects to one destination with a status for each, C-ECHO, and what it accepts.

A file's bytes are sent as they are wherever the destination accepts their transfer syntax; only the
uncompressed little-endian syntaxes are turned into each other, and pixels are never re-encoded.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.association import Association

from daemon import dimse
from daemon.errors import SendError
from daemon.requestor import Destination, associate

__all__ = ["Destination", "EchoResult", "SendOutcome", "echo", "probe", "send"]

# PS3.8 9.3.2.2: a presentation context ID is an odd byte.
_MAXIMUM_CONTEXTS = 128
_NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)


@dataclass(frozen=True, slots=True)
class SendOutcome:
    """What became of one object: ``status`` is the destination's, None when it gave none.

    ``sop_instance_uid`` is "" where the file could not be read.
    """

    sop_instance_uid: str
    status: int | None
    ok: bool
    reason: str
    path: Path


@dataclass(frozen=True, slots=True)
class EchoResult:
    """Whether a node answered a C-ECHO, how long it took, and why not."""

    ok: bool
    reason: str
    duration_s: float


@dataclass(frozen=True, slots=True)
class _Item:
    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    # A file without a complete File Meta group cannot be sent as it lies.
    as_file: bool

    @property
    def contexts(self) -> list[tuple[str, tuple[str, ...]]]:
        """The presentation contexts that could carry it, each an abstract and its transfer syntaxes."""
        own = (self.sop_class_uid, (self.transfer_syntax_uid,))
        if self.transfer_syntax_uid not in _NATIVE:
            return [own]
        return [own, *((self.sop_class_uid, (s,)) for s in _NATIVE if s != self.transfer_syntax_uid)]


def send(paths: Sequence[Path], destination: Destination) -> list[SendOutcome]:
    """Send objects with C-STORE.

    Parameters
    ----------
    paths
        Files in the DICOM File Format, or bare data sets.
    destination
        Where to.

    Returns
    -------
    list of SendOutcome
        One for each path, in order. A refused or unreachable destination is an outcome, not an
        exception.
    """
    outcomes: dict[int, SendOutcome] = {}
    items: dict[int, _Item] = {}
    for number, path in enumerate(paths):
        try:
            items[number] = _read(path)
        except SendError as error:
            outcomes[number] = SendOutcome("", None, False, str(error), path)
    for batch in _batches(items):
        outcomes.update(_send_batch(batch, destination))
    return [outcomes[number] for number in range(len(paths))]


def echo(destination: Destination) -> EchoResult:
    """Ask a node for a sign of life (C-ECHO, PS3.4 Annex A)."""
    started = time.monotonic()
    try:
        with associate(destination, [(dimse.VERIFICATION, _NATIVE)]) as assoc:
            if not assoc.accepted_contexts:
                return EchoResult(False, "does not accept Verification", time.monotonic() - started)
            status = assoc.send_c_echo().get("Status")
    except SendError as error:
        return EchoResult(False, str(error), time.monotonic() - started)
    duration_s = time.monotonic() - started
    if status is None:
        return EchoResult(False, f"gave no answer within {destination.dimse_timeout_s:g} s", duration_s)
    return EchoResult(status == dimse.SUCCESS, dimse.status_name(status), duration_s)


def probe(
    destination: Destination,
    sop_classes: Sequence[str],
    transfer_syntaxes: Sequence[str] = _NATIVE,
) -> dict[str, tuple[str, ...]]:
    """Ask which transfer syntaxes a node accepts for each SOP class; nothing is stored.

    Returns
    -------
    dict of str to tuple of str
        The accepted transfer syntaxes by SOP class; empty when the class is not accepted at all.

    Raises
    ------
    SendError
        No association was possible.
    """
    wanted = [(uid, (syntax,)) for uid in sop_classes for syntax in transfer_syntaxes]
    accepted: dict[str, tuple[str, ...]] = dict.fromkeys(sop_classes, ())
    for start in range(0, len(wanted), _MAXIMUM_CONTEXTS):
        with associate(destination, wanted[start : start + _MAXIMUM_CONTEXTS]) as assoc:
            for context in assoc.accepted_contexts:
                accepted[str(context.abstract_syntax)] += (str(context.transfer_syntax[0]),)
    return accepted


def _read(path: Path) -> _Item:
    """Read what is needed to send a file; the data set itself stays on disk."""
    try:
        ds = dcmread(
            path, force=True, specific_tags=["SOPClassUID", "SOPInstanceUID"], stop_before_pixels=True
        )
    except OSError as error:
        raise SendError(f"cannot read the file ({error.strerror}): is it there?") from error
    # pydicom raises many kinds of errors over files that are no DICOM.
    except Exception as error:
        raise SendError(f"this is no DICOM file ({type(error).__name__})") from error
    meta = getattr(ds, "file_meta", FileMetaDataset())
    sop_class = meta.get("MediaStorageSOPClassUID") or ds.get("SOPClassUID")
    sop_instance = meta.get("MediaStorageSOPInstanceUID") or ds.get("SOPInstanceUID")
    syntax = meta.get("TransferSyntaxUID")
    as_file = all(
        meta.get(keyword)
        for keyword in ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID", "TransferSyntaxUID")
    )
    if not sop_class or not sop_instance:
        raise SendError("this is no DICOM instance: it has no SOP Class or SOP Instance UID")
    if not syntax:
        syntax = ImplicitVRLittleEndian if ds.original_encoding[0] else ExplicitVRLittleEndian
    return _Item(path, str(sop_class), str(sop_instance), str(syntax), as_file)


def _batches(items: dict[int, _Item]) -> Iterator[dict[int, _Item]]:
    """Split items so that each association needs at most 128 presentation contexts."""
    batch: dict[int, _Item] = {}
    contexts: set[tuple[str, tuple[str, ...]]] = set()
    for number, item in items.items():
        if batch and len(contexts.union(item.contexts)) > _MAXIMUM_CONTEXTS:
            yield batch
            batch, contexts = {}, set()
        batch[number] = item
        contexts.update(item.contexts)
    if batch:
        yield batch


def _send_batch(batch: dict[int, _Item], destination: Destination) -> dict[int, SendOutcome]:
    contexts = list(dict.fromkeys(context for item in batch.values() for context in item.contexts))
    try:
        with associate(destination, contexts) as assoc:
            return {number: _send_one(assoc, item, destination) for number, item in batch.items()}
    except SendError as error:
        return {number: _failed(item, str(error)) for number, item in batch.items()}


def _send_one(assoc: Association, item: _Item, destination: Destination) -> SendOutcome:
    if not assoc.is_established:
        return _failed(item, "the association was lost before this object")
    accepted = {
        str(context.transfer_syntax[0])
        for context in assoc.accepted_contexts
        if context.abstract_syntax == item.sop_class_uid
    }
    if item.transfer_syntax_uid not in accepted and not (
        item.transfer_syntax_uid in _NATIVE and accepted.intersection(_NATIVE)
    ):
        return _failed(item, _not_accepted(item, bool(accepted)))
    exact = item.as_file and item.transfer_syntax_uid in accepted
    try:
        answer = assoc.send_c_store(item.path if exact else _whole(item))
    except (OSError, ValueError, AttributeError, RuntimeError) as error:
        return _failed(item, f"cannot be sent ({type(error).__name__})")
    status = answer.get("Status")
    if status is None:
        return _failed(
            item, f"no answer within {destination.dimse_timeout_s:g} s, or the association was lost"
        )
    reason = "" if status == dimse.SUCCESS else dimse.status_name(status)
    return SendOutcome(item.sop_instance_uid, status, status in dimse.DELIVERED, reason, item.path)


def _whole(item: _Item) -> Dataset:
    """Read an object whole, for a destination that takes it in another native syntax only."""
    ds = dcmread(item.path, force=True)
    if not hasattr(ds, "file_meta"):
        ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(item.transfer_syntax_uid)
    return ds


def _not_accepted(item: _Item, class_accepted: bool) -> str:
    if class_accepted:
        return f"the destination does not accept transfer syntax {UID(item.transfer_syntax_uid).name}"
    return f"the destination does not accept SOP class {UID(item.sop_class_uid).name}"


def _failed(item: _Item, reason: str) -> SendOutcome:
    return SendOutcome(item.sop_instance_uid, None, False, reason, item.path)
