"""A connection before its association: TLS handshake, and one whole, well-formed A-ASSOCIATE-RQ.

All of it runs in the connection's own thread, blocking, with one deadline: a thousand silent
connections cost memory and no time, and nothing of pynetdicom starts for them.
"""

import contextlib
import socket
import ssl
import struct
import time
from dataclasses import dataclass

from daemon.limits import LimitError, Limits

# PS3.8 9.3: the PDU types, and the fixed part of an A-ASSOCIATE-RQ up to its variable items.
_ASSOCIATE_RQ = 0x01
_HEAD_BYTES = 6
_FIXED_BYTES = 74
_CONTEXT_ITEM = 0x20
_MAXIMUM_CONTEXTS = 128
_CHUNK_BYTES = 65_536
_LINGER_S = 2.0
# A-ABORT by the service provider (PS3.8 9.3.8): unrecognised PDU, invalid parameter value.
_ABORT_UNRECOGNISED = b"\x07\x00\x00\x00\x00\x04\x00\x00\x02\x01"
_ABORT_INVALID = b"\x07\x00\x00\x00\x00\x04\x00\x00\x02\x06"


@dataclass(frozen=True, slots=True)
class Request:
    """An association request as it came: its bytes, and the AE titles in it."""

    pdu: bytes
    called_ae: str
    calling_ae: str


def wrap(connection: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Return the TLS socket of a connection, before its handshake; the plain one has no descriptor then.

    Raises
    ------
    LimitError
        The peer has gone.
    """
    try:
        return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
    except OSError as error:
        raise LimitError("", f"TLS: {tls_reason(error)}") from None


def handshake(secure: ssl.SSLSocket, timeout_s: float) -> None:
    """Speak TLS with a peer that has connected.

    Raises
    ------
    LimitError
        It failed or took too long; the reason is OpenSSL's.
    """
    secure.settimeout(timeout_s)
    try:
        secure.do_handshake()
    except TimeoutError:
        raise LimitError("acse_timeout_s", "no TLS handshake in time") from None
    except OSError as error:
        raise LimitError("", f"TLS: {tls_reason(error)}") from None


def tls_reason(error: OSError) -> str:
    """Return why TLS failed, in OpenSSL's words, with what to look at for the usual causes."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the peer's certificate is not accepted ({error.verify_message}): look at the CA file"
    if not isinstance(error, ssl.SSLError) or not error.reason:
        return "the peer ended the connection in the handshake; it may speak no TLS, or not trust us"
    hints = {
        "HTTP_REQUEST": "the peer speaks HTTP",
        "WRONG_VERSION_NUMBER": "the other side speaks no TLS on this port",
        "UNSUPPORTED_PROTOCOL": "the peer offers no TLS 1.2 or 1.3",
        "NO_SHARED_CIPHER": "the peer offers none of the cipher suites of BCP 195",
        "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the peer shows no certificate, and we ask for one",
        "TLSV1_ALERT_UNKNOWN_CA": "the peer does not trust the CA of our certificate",
        "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the peer wants a certificate of ours",
    }
    text = error.reason.replace("_", " ").lower()
    return f"{text} ({hints[error.reason]})" if error.reason in hints else text


def await_request(connection: socket.socket, limits: Limits, deadline: float) -> Request:
    """Read one A-ASSOCIATE-RQ, and check it as far as its items.

    Parameters
    ----------
    connection
        Just accepted; its TLS is up.
    limits
        Bounds of time and size.
    deadline
        Of ``time.monotonic()``.

    Raises
    ------
    LimitError
        What came is none, too large, too slow, or nothing at all. Its peer has been told.
    """
    head = _read(connection, _HEAD_BYTES, deadline)
    kind, length = struct.unpack(">BxL", head)
    if kind != _ASSOCIATE_RQ:
        _say(connection, _ABORT_UNRECOGNISED)
        what = "TLS on a port without TLS" if head[:2] == b"\x16\x03" else "bytes that are no DICOM"
        raise LimitError("", f"{what} instead of an association request")
    if length > limits.maximum_request_bytes:
        _say(connection, _ABORT_INVALID)
        raise LimitError("maximum_request_bytes", f"an association request of {length} bytes")
    pdu = head + _read(connection, length, deadline)
    contexts = _count_contexts(pdu)
    if not 1 <= contexts <= _MAXIMUM_CONTEXTS:
        _say(connection, _ABORT_INVALID)
        if contexts > _MAXIMUM_CONTEXTS:
            raise LimitError("", f"{contexts} presentation contexts; PS3.8 allows {_MAXIMUM_CONTEXTS}")
        raise LimitError("", "an association request whose items do not fit its length")
    return Request(pdu, _title(pdu[10:26]), _title(pdu[26:42]))


def reject(connection: socket.socket, code: tuple[int, int, int]) -> None:
    """Send an A-ASSOCIATE-RJ (PS3.8 9.3.4) and give the peer a moment to read it and hang up."""
    _say(connection, b"\x03\x00\x00\x00\x00\x04\x00" + bytes(code))
    deadline = time.monotonic() + _LINGER_S
    with contextlib.suppress(OSError):
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(_CHUNK_BYTES):
                return


def _say(connection: socket.socket, pdu: bytes) -> None:
    with contextlib.suppress(OSError):
        connection.settimeout(_LINGER_S)
        connection.sendall(pdu)


def _read(connection: socket.socket, count: int, deadline: float) -> bytes:
    pieces, got = [], 0
    while got < count:
        left = deadline - time.monotonic()
        if left <= 0:
            raise LimitError("acse_timeout_s", "no complete association request in time")
        connection.settimeout(left)
        try:
            piece = connection.recv(min(count - got, _CHUNK_BYTES))
        except TimeoutError:
            continue
        except OSError as error:
            raise LimitError("", "the connection broke before an association request") from error
        if not piece:
            raise LimitError("", "closed before an association request")
        pieces.append(piece)
        got += len(piece)
    return b"".join(pieces)


def _count_contexts(pdu: bytes) -> int:
    """Count presentation context items (PS3.8 9.3.2); -1 when the items do not fill the PDU exactly."""
    at, contexts = _FIXED_BYTES, 0
    while at + 4 <= len(pdu):
        kind, length = struct.unpack_from(">BxH", pdu, at)
        contexts += kind == _CONTEXT_ITEM
        at += 4 + length
    return contexts if at == len(pdu) else -1


def _title(raw: bytes) -> str:
    return raw.decode("ascii", "replace").strip(" \x00")
