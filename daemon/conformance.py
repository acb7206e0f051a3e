"""The DICOM conformance statement, after PS3.2 Annex N, from the code itself: ``daemon conformance``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from highdicom.sr import CodedConcept
from pydicom.uid import UID

from daemon import __version__, codes, commitment, dimse
from daemon.conformance_objects import OBJECTS
from daemon.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from daemon.profiles import LABEL_MAP, PROFILES, RESULT_CLASSES
from daemon.settings import Settings
from daemon.tls import cipher_names

_STORE_STATUSES = (
    (dimse.SUCCESS, "the instance is durable on disk, or was there already"),
    (dimse.SOP_CLASS_NOT_SUPPORTED, "no storage SOP class, or not that of the presentation context"),
    (dimse.NOT_AUTHORISED, "the peer may not store"),
    (dimse.OUT_OF_RESOURCES, "the disk is full or below its reserve, or the instance is too large"),
    (dimse.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, "UIDs of request and data set differ, or are missing"),
    (dimse.CANNOT_UNDERSTAND, "the data set cannot be parsed as far as its UIDs"),
    (dimse.PROCESSING_FAILURE, "anything else that failed on our side"),
)
_COMMITMENT_FAILURES = (
    (commitment.NO_SUCH_OBJECT_INSTANCE, "the instance was never received, or is gone"),
    (commitment.CLASS_INSTANCE_CONFLICT, "it was received, of another SOP class"),
    (commitment.PROCESSING_FAILURE, "its file cannot be read"),
    (commitment.RESOURCE_LIMITATION, "more instances than one request may name"),
)


def statement(settings: Settings) -> str:
    """Write the conformance statement.

    Parameters
    ----------
    settings
        Of the site; the defaults give the statement of the software.

    Returns
    -------
    str
        Markdown.
    """
    parts = (_overview, _networking, _acceptor, _requestor, _timeouts, _objects, _codes, _security)
    lines = [line for part in parts for line in (*part(settings), "")]
    return "\n".join(lines).rstrip() + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(str(cell) for cell in row) + " |"


def _overview(settings: Settings) -> Iterator[str]:
    yield "# DICOM conformance statement"
    yield ""
    yield "Research use only, not for diagnosis."
    yield ""
    yield (
        f"PACS anomaly daemon {__version__}, after PS3.2 Annex N. Printed by `daemon conformance` from the "
        "code; `docs/conformance.md` is its output with default settings, and a test keeps it so."
    )
    yield ""
    yield "## 1 Overview"
    yield ""
    yield (
        "One application entity receives composite instances, scores images with a model, and sends its "
        "results to other nodes."
    )
    yield ""
    yield from _table(
        ("SOP class", "user (SCU)", "provider (SCP)"),
        [
            ("Verification", "yes", "yes"),
            (
                "Storage Commitment Push Model",
                "yes, where a destination offers it",
                "for peers with the right, not as an archive (section 3)",
            ),
            (f"{len(dimse.storage_sop_classes())} storage SOP classes (section 3)", "as files", "yes"),
            *((_name(uid), "yes, as results", "yes") for uid in RESULT_CLASSES),
        ],
    )
    yield ""
    yield "No Query/Retrieve, Worklist, MPPS, print, media or web services."


def _networking(settings: Settings) -> Iterator[str]:
    yield "## 2 Networking: the application entity"
    yield ""
    yield from _table(
        ("property", "value"),
        [
            ("AE title", f"`{settings.receiver.ae_title}` (`receiver.ae_title`)"),
            ("TCP port", f"{settings.receiver.port} (`receiver.port`)"),
            ("TLS port", f"{settings.receiver.tls_port or 'none'} (`receiver.tls_port`; 2762 by convention)"),
            ("application context", "1.2.840.10008.3.1.1.1"),
            ("Implementation Class UID", IMPLEMENTATION_CLASS_UID),
            ("Implementation Version Name", IMPLEMENTATION_VERSION_NAME),
            ("maximum PDU received", f"{settings.receiver.maximum_pdu_bytes} bytes"),
            ("associations at a time, accepted", settings.receiver.maximum_associations),
            ("associations at a time, requested", "one per destination"),
            ("asynchronous operations", "not negotiated; requests that are sent ahead are queued"),
            ("SOP class extended negotiation", "none"),
            ("user identity negotiation", "none; peers are known by AE title, address and certificate"),
            ("physical interface", "TCP/IP over IPv4 or IPv6 of the operating system"),
        ],
    )
    yield ""
    yield "Real-world activities: a peer stores images, verifies, or asks for commitment (acceptor); the"
    yield "daemon sends results, asks for their commitment, and verifies (requestor). A study is scored once"
    yield "nothing arrived for a while; each revision of it makes new results, sent once to each destination."


def _acceptor(settings: Settings) -> Iterator[str]:
    offer = dimse.Offer(settings.receiver.private_sop_classes)
    yield "## 3 Association acceptance"
    yield ""
    yield (
        "Checked in this order: the association limit, the called AE title, the calling AE title with its "
        "address. Rejections (result, source, reason; PS3.8 table 9-21):"
    )
    yield ""
    yield from _table(
        ("when", "result, source, reason"),
        [
            ("another AE title is called", dimse.REJECT_CALLED_AE),
            ("the peer is unknown and unknown peers are not accepted", dimse.REJECT_CALLING_AE),
            ("too many associations", dimse.REJECT_LIMIT),
        ],
    )
    yield ""
    yield "Every presentation context of these abstract syntaxes is accepted with the first proposed"
    yield "transfer syntax that PS3.6 knows; the data set is stored as received, never re-encoded. Level of"
    yield "storage support: 2 (full)."
    yield ""
    yield "### Statuses of C-STORE"
    yield ""
    yield from _table(("status", "meaning"), [(f"0x{s:04X}", text) for s, text in _STORE_STATUSES])
    yield ""
    yield "### Other services"
    yield ""
    yield "C-ECHO is answered 0x0000, or 0x0124 when the peer may not verify (`may` in `[[peers]]`). N-ACTION"
    yield "and N-EVENT-REPORT of storage commitment are answered 0x0124 when the peer may not commit."
    yield ""
    yield "### Storage commitment (SCP)"
    yield ""
    yield "N-ACTION is answered at once; the N-EVENT-REPORT follows on the same association while the peer"
    yield "keeps it open, else on a new one to the peer."
    yield "Failure reasons (PS3.3 C.14.1.1):"
    yield ""
    yield from _table(("reason", "meaning"), [(f"0x{s:04X}", text) for s, text in _COMMITMENT_FAILURES])
    yield ""
    yield from _retention(settings)
    yield ""
    yield "### Transfer syntaxes"
    yield ""
    yield from _table(("UID", "name"), _named(offer.transfer_syntaxes))
    yield ""
    yield "### Storage SOP classes"
    yield ""
    yield from _table(("UID", "name"), _named(offer.sop_classes))


def _retention(settings: Settings) -> Iterator[str]:
    """Duration, conditions of deletion and retrieval, as PS3.4 J.3 asks of a provider."""
    days, least = settings.retention.maximum_age_days, settings.retention.prune_below_bytes
    yield (
        "**This is no archive.** A commitment says that an instance is whole on disk when it is made, "
        "not that it stays. The files of a study that is scored, with every result delivered, or refused are "
        f"removed {f'{days:g} days after its last instance' if days else 'at no set age'} "
        "(`retention.maximum_age_days`), and earlier, the oldest first, while fewer than "
        f"{least} bytes of the disk are free (`retention.prune_below_bytes`). No instance can be "
        "retrieved from this node. A modality must not delete its only copy because of this commitment: it "
        'asks the archive for one. Only peers with `"commit"` in their `may` in `[[peers]]` get it; it is no '
        "part of the default, and others are answered 0x0124."
    )


def _requestor(settings: Settings) -> Iterator[str]:
    yield "## 4 Association initiation"
    yield ""
    yield (
        "For results and for `daemon send`: one presentation context per SOP class and transfer syntax. "
        "Results are Explicit VR Little Endian, with Implicit VR Little Endian as a second context."
    )
    yield ""
    yield from _table(
        ("profile", "SOP classes proposed for results"),
        [(f"`{name}`", ", ".join(map(_name, profile.sop_classes))) for name, profile in PROFILES.items()],
    )
    yield ""
    yield "Answers to our C-STORE:"
    yield ""
    yield from _table(
        ("status", "what follows"),
        [
            *((dimse.status_name(status), "delivered") for status in sorted(dimse.DELIVERED)),
            ("any other, or none", "tried again with a growing delay, then a dead letter"),
        ],
    )
    yield ""
    yield "Storage commitment (SCU): N-ACTION with every delivered result of a revision; the N-EVENT-REPORT"
    yield "is taken on the same association or on one that the destination opens, with role selection."


def _timeouts(settings: Settings) -> Iterator[str]:
    receiver = settings.receiver
    yield "## 5 Configuration"
    yield ""
    yield "All of it is in `settings.toml`. Timeouts, in seconds:"
    yield ""
    yield from _table(
        ("timeout", "acceptor", "requestor (default, per destination)"),
        [
            ("connection", "", "10"),
            ("ACSE", f"{receiver.acse_timeout_s:g}", "30"),
            ("DIMSE", f"{receiver.dimse_timeout_s:g}", "60"),
            ("network silence", f"{receiver.network_timeout_s:g}", ""),
            ("one PDU", f"{receiver.pdu_timeout_s:g}", ""),
        ],
    )


def _objects(settings: Settings) -> Iterator[str]:
    yield "## 6 Objects that are created"
    yield OBJECTS.format(
        manufacturer=settings.results.manufacturer,
        serial=settings.results.device_serial_number,
        findings=settings.findings.maximum_findings,
    ).rstrip()


def _codes(settings: Settings) -> Iterator[str]:
    concepts = {
        (value.scheme_designator, value.value): value.meaning
        for value in vars(codes).values()
        if isinstance(value, CodedConcept)
    }
    yield "## 7 Codes"
    yield ""
    yield "Coded concepts in SEG, SR and parametric map; imaging procedures are those of CID 100,"
    yield f"modalities of CID 29. The private scheme is `{codes.PRIVATE_SCHEME}`, identified in each object"
    yield "that uses it."
    yield ""
    rows = ((value, scheme, meaning) for (scheme, value), meaning in sorted(concepts.items()))
    yield from _table(("code", "scheme", "meaning"), rows)


def _security(settings: Settings) -> Iterator[str]:
    yield "## 8 Character sets"
    yield ""
    yield "Any Specific Character Set is received and stored as it is. Results carry the character set and"
    yield "the patient's and study's attributes of the source, byte for byte; their own text is ASCII."
    yield ""
    yield "## 9 Security"
    yield ""
    yield "BCP 195 TLS Secure Transport Connection Profile (PS3.15 B.12), in both directions: TLS 1.2 and"
    yield "1.3, client certificates required unless `receiver.require_client_certificate = false`, host"
    yield "names checked as requestor. TLS 1.2 cipher suites:"
    yield ""
    yield from (f"- {name}" for name in cipher_names())
    yield ""
    yield "Peers are admitted by AE title and address. Logs hold no patient data; UIDs appear as keyed"
    yield "hashes."


def _named(uids: Iterable[str]) -> Iterator[tuple[str, str]]:
    for uid in sorted(uids, key=lambda uid: [int(part) for part in uid.split(".")]):
        yield uid, _name(uid)


def _name(uid: str) -> str:
    """Name in PS3.6; of what pydicom's edition of it lacks, the UID."""
    if uid == LABEL_MAP:
        return "Label Map Segmentation Storage"
    return UID(uid).name
