"""UIDs that pynetdicom checks once: the negotiation is the same, and peers cannot fill the memory."""

import struct
from typing import Any

import pynetdicom._validators
import pynetdicom.pdu_items
import pynetdicom.presentation
import pynetdicom.utils
import pytest
from pydicom.uid import UID
from pynetdicom import StoragePresentationContexts
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.presentation import negotiate_as_acceptor

from daemon import dimse, known_uids
from daemon.known_uids import KnownUID

SYNTAXES = ("1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.3.4", "1.02.3")


def item(kind: int, content: bytes) -> bytes:
    """Encode one item of an association request (PS3.8 9.3.2)."""
    return struct.pack(">BxH", kind, len(content)) + content


def request() -> bytes:
    """Encode an association request with every kind of context: ours, others', private, odd ones."""
    classes = [str(context.abstract_syntax) for context in StoragePresentationContexts][:120]
    classes += ["1.2.840.10008.1.1", "1.2.840.10008.1.20.1", "1.2.3.4.5", "1.02.7"]
    contexts = [
        struct.pack(">Bxxx", 2 * number + 1)
        + item(0x30, uid.encode())
        + b"".join(item(0x40, syntax.encode()) for syntax in SYNTAXES[number % 4 :])
        for number, uid in enumerate(classes)
    ]
    body = struct.pack(">HH", 1, 0) + b"ANOMALYD".ljust(16) + b"PEER".ljust(16) + bytes(32)
    body += item(0x10, b"1.2.840.10008.3.1.1.1") + b"".join(item(0x20, context) for context in contexts)
    body += item(0x50, item(0x51, struct.pack(">L", 16_384)) + item(0x52, b"1.2.3"))
    return struct.pack(">BxL", 1, len(body)) + body


def answer(pdu: bytes) -> bytes:
    """Negotiate as the acceptor does, and return the A-ASSOCIATE-AC."""
    asked = A_ASSOCIATE_RQ()
    asked.decode(pdu)
    primitive: Any = asked.to_primitive()
    proposed = primitive.presentation_context_definition_list
    results, _ = negotiate_as_acceptor(proposed, dimse.Offer().contexts(proposed))
    primitive.presentation_context_definition_results_list = results
    primitive.result, primitive.result_source = 0, 1
    return A_ASSOCIATE_AC(primitive).encode()


def test_the_negotiation_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte the answer is that of pynetdicom with its own UIDs, the first time and the second."""
    dimse.configure_pynetdicom()
    assert pynetdicom.utils.UID is KnownUID
    ours = [answer(request()) for _ in range(2)]
    for module in (
        pynetdicom._validators,
        pynetdicom.pdu_items,
        pynetdicom.presentation,
        pynetdicom.utils,
    ):
        monkeypatch.setattr(module, "UID", UID)
    assert ours == [answer(request())] * 2


def test_a_uid_is_made_once_and_says_what_pydicom_says() -> None:
    """The same text gives the same object, with pydicom's answers; odd ones have theirs, too."""
    for text in ("1.2.840.10008.1.2.1", "1.2.3.4", "1.02.3", "", " 1.2.3 ", "no uid", "1" * 65):
        one, plain = KnownUID(text), UID(text)
        assert (one, one.is_valid, one.is_private) == (plain, plain.is_valid, plain.is_private)
        assert KnownUID(one) is one
        assert (KnownUID(text) is one) == (len(text) <= 64)
    assert KnownUID(UID("1.2.840.10008.1.2.1")).is_transfer_syntax
    assert not KnownUID("1.2.840.10008.1.1").is_transfer_syntax


def test_the_encoding_of_a_private_syntax_stays_with_its_own_uid() -> None:
    """Two UIDs of one text may be encoded differently: the second does not get what the first one says."""
    private = UID("1.2.3.99")
    private.set_private_encoding(implicit_vr=True, little_endian=True)
    assert KnownUID(private).is_implicit_VR
    assert not hasattr(KnownUID("1.2.3.99"), "_PRIVATE_TS_ENCODING")


def test_peers_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept has a bound, and a UID beyond it works all the same."""
    monkeypatch.setattr(known_uids, "_known", {})
    made = [KnownUID(f"1.2.3.{number}") for number in range(5000)]
    assert len(known_uids._known) == 4096
    assert all(uid.is_valid for uid in made)
    assert KnownUID("1.2.3.4999") == made[-1]
