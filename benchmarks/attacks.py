"""What hostile peers send: PDUs as raw bytes (PS3.8 9.3), and connections that hold on to what they get."""

from __future__ import annotations

import socket
import struct
import zlib
from collections.abc import Sequence

APPLICATION = b"1.2.840.10008.3.1.1.1"
VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
CT = "1.2.840.10008.5.1.4.1.1.2"

# First bytes that are no association request, by what they are.
GARBAGE: dict[str, bytes] = {
    "HTTP": b"GET / HTTP/1.1\r\nHost: pacs\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "zeros": b"\x00" * 4_096,
    "ones": b"\xff" * 4_096,
    "release": b"\x05\x00\x00\x00\x00\x04\x00\x00\x00\x00",
    "data": b"\x04\x00\x00\x00\x00\x06\x00\x00\x00\x02\x01\x03",
    "empty request": b"\x01\x00\x00\x00\x00\x00",
    "short request": b"\x01\x00\x00\x00\x00\x44" + b"\x00\x01" + b"\x00" * 66,
    "items beyond the end": b"\x01\x00\x00\x00\x00\x48" + b"\x00\x01" + b" " * 66 + b"\x20\x00\xff\xff",
}


def item(kind: int, content: bytes) -> bytes:
    """Return one variable item of a request."""
    return struct.pack(">BxH", kind, len(content)) + content


def context(number: int, abstract: str, syntaxes: Sequence[str]) -> bytes:
    """Return one presentation context item."""
    inner = item(0x30, abstract.encode()) + b"".join(item(0x40, uid.encode()) for uid in syntaxes)
    return item(0x20, struct.pack(">Bxxx", number) + inner)


def request(contexts: Sequence[bytes], called: str = "ANOMALYD", calling: str = "HOSTILE") -> bytes:
    """Return an A-ASSOCIATE-RQ."""
    user = item(0x51, struct.pack(">L", 16_384)) + item(0x52, b"1.2.3.4")
    body = struct.pack(">HH", 1, 0) + called.ljust(16).encode() + calling.ljust(16).encode() + b"\0" * 32
    body += item(0x10, APPLICATION) + b"".join(contexts) + item(0x50, user)
    return pdu(0x01, body)


def pdu(kind: int, body: bytes, length: int | None = None) -> bytes:
    """Return a PDU; its length is that of the body unless another is claimed."""
    return struct.pack(">BxL", kind, len(body) if length is None else length) + body


def data(content: bytes, header: int, number: int = 1) -> bytes:
    """Return a P-DATA-TF with one PDV; header: 1 command, 2 last fragment."""
    return pdu(0x04, struct.pack(">LBB", len(content) + 2, number, header) + content)


def command(*elements: tuple[int, str | int]) -> bytes:
    """Return a command set: UIDs as text, numbers as US."""
    encoded = b""
    for element, value in elements:
        raw = struct.pack("<H", value) if isinstance(value, int) else value.encode()
        raw += b"\0" * (len(raw) % 2)
        encoded += struct.pack("<HHL", 0, element, len(raw)) + raw
    return struct.pack("<HHLL", 0, 0, 4, len(encoded)) + encoded


def echo_command(message: int = 1) -> bytes:
    """Return a C-ECHO request."""
    return command((0x0002, VERIFICATION), (0x0100, 0x0030), (0x0110, message), (0x0800, 0x0101))


def store_command(sop_instance: str = "1.2.3", sop_class: str = CT) -> bytes:
    """Return a C-STORE request, whose data set is to follow."""
    return command(
        (0x0002, sop_class),
        (0x0100, 0x0001),
        (0x0110, 1),
        (0x0700, 0),
        (0x0800, 0),
        (0x1000, sop_instance),
    )


def associate(
    port: int, syntax: str = EXPLICIT, abstract: str = CT, calling: str = "HOSTILE"
) -> socket.socket:
    """Return a connection whose association has been accepted.

    Raises
    ------
    ConnectionError
        It was not accepted.
    """
    connection = socket.create_connection(("127.0.0.1", port), 60.0)
    connection.sendall(request([context(1, abstract, [syntax])], calling=calling))
    answer = connection.recv(65_536)
    if answer[:1] != b"\x02":
        connection.close()
        raise ConnectionError("not accepted")
    return connection


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    """Return one element, Explicit VR Little Endian."""
    if vr in (b"OB", b"SQ", b"UN"):
        return struct.pack("<HH2sxxL", group, number, vr, len(value)) + value
    value += (b" " if vr != b"UI" else b"\0") * (len(value) % 2)
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


def data_set(
    sop_instance: str = "1.2.3", study: str = "1.2.4", series: str = "1.2.5", before: bytes = b""
) -> bytes:
    """Return the UIDs of an instance, with something between SOP Instance and Study UID."""
    head = element(0x0008, 0x0016, b"UI", CT.encode()) + element(0x0008, 0x0018, b"UI", sop_instance.encode())
    tail = element(0x0020, 0x000D, b"UI", study.encode()) + element(0x0020, 0x000E, b"UI", series.encode())
    return head + before + tail


def nested(depth: int) -> bytes:
    """Return sequences of undefined length, one in the other."""
    begin = struct.pack("<HH2sxxL", 0x0008, 0x1140, b"SQ", 0xFFFFFFFF) + struct.pack(
        "<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    end = struct.pack("<HHL", 0xFFFE, 0xE00D, 0) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    return begin * depth + end * depth


def deflated(content: bytes) -> bytes:
    """Return a data set as Deflated Explicit VR Little Endian (PS3.5 A.5) has it."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return squeeze.compress(content) + squeeze.flush()


def read_pdu(connection: socket.socket) -> bytes:
    """Read one PDU.

    Raises
    ------
    ConnectionError
        The other side closed the connection first.
    """
    head = _exactly(connection, 6)
    return head + _exactly(connection, struct.unpack(">BxL", head)[1])


def ask(connection: socket.socket, message: bytes) -> int:
    """Send a DIMSE request and return the status of its response (PS3.7 9.3).

    Raises
    ------
    ConnectionError
        There was none.
    """
    connection.sendall(message)
    answer = read_pdu(connection)
    at = answer.find(struct.pack("<HHL", 0, 0x0900, 2))
    if at < 0:
        raise ConnectionError("no response")
    return int(struct.unpack_from("<H", answer, at + 8)[0])


def store_message(sop_instance: str, content: bytes) -> bytes:
    """Return a whole C-STORE request in PDUs of 16 KB."""
    pieces = [content[at : at + 16_000] for at in range(0, len(content), 16_000)]
    body = b"".join(data(piece, 0) for piece in pieces[:-1]) + data(pieces[-1], 2)
    return data(store_command(sop_instance), 3) + body


def release(connection: socket.socket) -> None:
    """Release an association and close its connection."""
    try:
        connection.sendall(b"\x05\x00\x00\x00\x00\x04\x00\x00\x00\x00")
        read_pdu(connection)
    finally:
        connection.close()


def _exactly(connection: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        piece = connection.recv(count - len(got))
        if not piece:
            raise ConnectionError("closed")
        got += piece
    return got
