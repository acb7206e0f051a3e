"""C-STORE on the wire: fragments found in place, the request's command read, the answer written.

P-DATA-TF: PS3.8 9.3.5 and Annex E. Command sets: PS3.7 6.3.1 and 9.3.1; they are always Implicit
VR Little Endian.
"""

import struct
from typing import NamedTuple

from daemon.uids import is_uid

P_DATA = 0x04
HEAD_BYTES = 6
COMMAND, LAST = 1, 2

_FRAGMENT = struct.Struct(">LBB")
_ELEMENT = struct.Struct("<HHL")
_C_STORE_RQ, _C_STORE_RSP = 0x0001, 0x8001
_NO_DATA_SET = 0x0101
_US = {0x0100, 0x0110, 0x0700, 0x0800}
_UID = {0x0002, 0x1000}
# Elements that may be there and say nothing to us: group length, move originator.
_PASSED = {0x0000, 0x1030, 0x1031}


class Fragment(NamedTuple):
    """One PDV: its context, its control header, and where its content lies."""

    context_id: int
    control: int
    first: int
    last: int


class StoreRequest(NamedTuple):
    """What a C-STORE-RQ says."""

    context_id: int
    message_id: int
    sop_class_uid: str
    sop_instance_uid: str


def fragments(view: memoryview, at: int, end: int) -> list[Fragment] | None:
    """Return the PDVs between two positions; None when they do not fill the space exactly."""
    found = []
    while at + HEAD_BYTES <= end:
        length, context_id, control = _FRAGMENT.unpack_from(view, at)
        last = at + 4 + length
        if length < 2 or last > end:
            return None
        found.append(Fragment(context_id, control, at + HEAD_BYTES, last))
        at = last
    return found if at == end and found else None


def read_store_request(context_id: int, command: memoryview) -> StoreRequest | None:
    """Return what a command says, or None unless it is a C-STORE-RQ of the plainest kind."""
    values: dict[int, int | str] = {}
    at = 0
    while at + 8 <= len(command):
        group, element, length = _ELEMENT.unpack_from(command, at)
        at += 8
        value = bytes(command[at : at + length])
        at += length
        if group != 0 or at > len(command) or element in values:
            return None
        if element in _US and length == 2:
            values[element] = int.from_bytes(value, "little")
        elif element in _UID:
            values[element] = value.decode("latin-1").rstrip("\x00 ")
        elif element not in _PASSED:
            return None
    if at != len(command) or not values.keys() >= _US | _UID:
        return None
    if values[0x0100] != _C_STORE_RQ or values[0x0800] == _NO_DATA_SET:
        return None
    sop_class, sop_instance = str(values[0x0002]), str(values[0x1000])
    if not (is_uid(sop_class) and is_uid(sop_instance)):
        return None
    return StoreRequest(context_id, int(values[0x0110]), sop_class, sop_instance)


def store_response(request: StoreRequest, status: int, comment: str = "") -> bytes:
    """Return the P-DATA-TF PDU that answers a request (PS3.7 table 9.3-2)."""
    elements = [
        _uid(0x0002, request.sop_class_uid),
        _number(0x0100, _C_STORE_RSP),
        _number(0x0120, request.message_id),
        _number(0x0800, _NO_DATA_SET),
        _number(0x0900, status),
    ]
    if comment:
        text = comment.encode("ascii", "replace")[:64]
        elements.append(_element(0x0902, text + b" " * (len(text) % 2)))
    elements.append(_uid(0x1000, request.sop_instance_uid))
    body = b"".join(elements)
    command = _element(0x0000, struct.pack("<L", len(body))) + body
    fragment = _FRAGMENT.pack(len(command) + 2, request.context_id, COMMAND | LAST) + command
    return head(len(fragment)) + fragment


def head(length: int) -> bytes:
    """Return the head of a P-DATA-TF PDU."""
    return struct.pack(">BxL", P_DATA, length)


def _element(element: int, value: bytes) -> bytes:
    return _ELEMENT.pack(0, element, len(value)) + value


def _number(element: int, value: int) -> bytes:
    return _element(element, struct.pack("<H", value))


def _uid(element: int, uid: str) -> bytes:
    return _element(element, uid.encode("ascii") + b"\x00" * (len(uid) % 2))
