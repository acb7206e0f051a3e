"""Fragments: where each frame of encapsulated pixel data lies (PS3.5 A.4), without reading the frames."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import BinaryIO

from adapters.errors import DecodeError
from adapters.source import PixelSource

_ITEM = 0xFFFEE000
_DELIMITER = 0xFFFEE0DD
# Half a million fragments are more than any real object has; a list of them costs 50 MB.
_MAX_FRAGMENTS = 500_000
# First bytes of a JPEG or JPEG-LS frame, of a JPEG 2000 codestream, of JP2 boxes and of JPEG XL.
_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0c", b"\xff\x0a")

Span = tuple[int, int]  # offset and length of one fragment's bytes


def frame_spans(source: PixelSource, frames: int) -> tuple[tuple[Span, ...], ...]:
    """Return where the bytes of each frame lie.

    Parameters
    ----------
    source
        With encapsulated pixel data.
    frames
        NumberOfFrames.

    Returns
    -------
    tuple[tuple[Span, ...], ...]
        For each frame the offset and length of its fragments, in order.

    Raises
    ------
    DecodeError
        The fragments are damaged, cut off, or cannot be told apart into `frames` frames.
    """
    # Kept with the header: walking 10,000 fragments anew for each of 10,000 frames would be quadratic.
    spans: tuple[tuple[Span, ...], ...] | None = source.spans.get(frames)
    if spans is None:
        with source.open() as stream:
            table, items = _walk(stream, source.offset, source.size)
            spans = source.spans[frames] = _group(stream, source, table, items, frames)
    return spans


def _walk(stream: BinaryIO, offset: int, size: int) -> tuple[Span, list[Span]]:
    items: list[Span] = []
    at = offset
    while at + 8 <= size:
        stream.seek(at)
        group, element, length = struct.unpack("<HHL", stream.read(8))
        tag = group << 16 | element
        if tag == _DELIMITER:
            break
        if tag != _ITEM or length == 0xFFFFFFFF:
            raise DecodeError("the compressed pixel data is damaged: its fragments do not follow each other")
        if at + 8 + length > size:
            raise DecodeError("the compressed pixel data is cut off; ask the sender to send the object again")
        items.append((at + 8, length))
        if len(items) > _MAX_FRAGMENTS:
            raise DecodeError(f"the compressed pixel data has more than {_MAX_FRAGMENTS} fragments")
        at += 8 + length
    if len(items) < 2:
        raise DecodeError("the compressed pixel data has no frame")
    return items[0], items[1:]


def _group(
    stream: BinaryIO, source: PixelSource, table: Span, items: list[Span], frames: int
) -> tuple[tuple[Span, ...], ...]:
    if frames == 1:
        return (tuple(items),)
    if len(items) == frames:
        return tuple((item,) for item in items)
    starts = _offsets(stream, source, table, frames)
    by_start = {offset - items[0][0]: i for i, (offset, _) in enumerate(items)}
    firsts = [by_start.get(start) for start in starts]
    if len(firsts) != frames or None in firsts:
        firsts = [i for i, (offset, _) in enumerate(items) if _starts_frame(stream, offset)]
    places = [i for i in firsts if i is not None]
    if len(places) != frames or places[0] != 0 or places != sorted(set(places)):
        raise DecodeError(
            f"the compressed pixel data has {len(items)} fragments that do not make {frames} frames"
        )
    ends = [*places[1:], len(items)]
    return tuple(tuple(items[a:b]) for a, b in zip(places, ends, strict=True))


def _offsets(stream: BinaryIO, source: PixelSource, table: Span, frames: int) -> Sequence[int]:
    """Return frame starts of the extended (PS3.3 C.7.6.3.1.8) or basic offset table, or nothing."""
    extended = source.header.get("ExtendedOffsetTable")
    if isinstance(extended, bytes) and len(extended) >= 8 * frames:
        return struct.unpack(f"<{frames}Q", extended[: 8 * frames])
    if table[1] == 4 * frames:
        stream.seek(table[0])
        return struct.unpack(f"<{frames}L", stream.read(4 * frames))
    return ()


def _starts_frame(stream: BinaryIO, offset: int) -> bool:
    stream.seek(offset)
    return stream.read(4).startswith(_STARTS)
