"""The UIDs at the start of a data set that is in memory, read by a walk over its elements.

The walk knows the plain cases of Implicit and Explicit VR Little Endian (PS3.5 7.1) and gives up on
anything else; then pydicom reads the same bytes and has the last word.
"""

import re
import struct
from io import BytesIO

from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
)

from daemon.part10 import Uids, read_uids

_TAG_LENGTH = struct.Struct("<HHL")
_TAG_VR = struct.Struct("<HH2sH")
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_WANTED = (0x00080016, 0x00080018, 0x0020000D, 0x0020000E)
_AFTER = 0x0020000E
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PLAIN = re.compile(rb"[0-9.]*\x00?")
_DEPTH = 16


class _Unclear(Exception):
    """The walk met something that it leaves to pydicom."""


def find_uids(data: memoryview, transfer_syntax_uid: str) -> Uids:
    """Return the UIDs of a data set.

    Parameters
    ----------
    data
        Whole, or its first part.
    transfer_syntax_uid
        How it is encoded.

    Raises
    ------
    SpoolError
        It cannot be parsed as far as the UIDs.
    """
    if transfer_syntax_uid not in (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian):
        try:
            return _walk(data, transfer_syntax_uid == ImplicitVRLittleEndian)
        except (_Unclear, struct.error):
            pass
    return read_uids(BytesIO(data), transfer_syntax_uid)


def _walk(data: memoryview, implicit: bool) -> Uids:
    found = dict.fromkeys(_WANTED, "")
    at, last = 0, 0
    while at < len(data):
        tag, vr, at, length = _head(data, at, implicit)
        if tag > _AFTER:
            break
        if tag <= last:
            raise _Unclear
        last = tag
        if tag in found:
            value = bytes(data[at : at + min(length, 66)])
            if length > 65 or not _PLAIN.fullmatch(value) or (vr and vr != b"UI"):
                raise _Unclear
            found[tag] = value.rstrip(b"\x00").decode()
        at = _skip(data, at, vr, length, implicit, 0)
    return Uids(*(found[tag] for tag in _WANTED))


def _head(data: memoryview, at: int, implicit: bool) -> tuple[int, bytes, int, int]:
    """Read an element's head: tag, VR (b"" when implicit), where its value starts, its length."""
    if implicit:
        group, element, length = _TAG_LENGTH.unpack_from(data, at)
        return group << 16 | element, b"", at + 8, length
    group, element, vr, length = _TAG_VR.unpack_from(data, at)
    if vr in _SHORT_VRS:
        return group << 16 | element, vr, at + 8, length
    if vr not in _LONG_VRS:
        raise _Unclear
    return group << 16 | element, vr, at + 12, int.from_bytes(data[at + 8 : at + 12], "little")


def _skip(data: memoryview, at: int, vr: bytes, length: int, implicit: bool, depth: int) -> int:
    """Return where the element after this value starts."""
    if length != _UNDEFINED:
        if at + length > len(data):
            raise _Unclear
        return at + length
    # Only sequences have no length here: what else has none is for pydicom.
    if vr not in (b"", b"SQ") or depth > _DEPTH:
        raise _Unclear
    while True:
        tag, at, length = _item(data, at)
        if tag == _SEQUENCE_END and length == 0:
            return at
        if tag != _ITEM:
            raise _Unclear
        at = _skip_item(data, at, length, implicit, depth)


def _skip_item(data: memoryview, at: int, length: int, implicit: bool, depth: int) -> int:
    if length != _UNDEFINED:
        if at + length > len(data):
            raise _Unclear
        return at + length
    while True:
        tag, after, size = _item(data, at)
        if tag == _ITEM_END and size == 0:
            return after
        _, vr, at, size = _head(data, at, implicit)
        at = _skip(data, at, vr, size, implicit, depth + 1)


def _item(data: memoryview, at: int) -> tuple[int, int, int]:
    group, element, length = _TAG_LENGTH.unpack_from(data, at)
    return group << 16 | element, at + 8, length
