"""Codestreams: the size that a compressed frame itself declares, read before a decoder is trusted."""

from __future__ import annotations

from dataclasses import dataclass

# Start-of-frame markers of ISO 10918-1 (JPEG), and SOF55 of ISO 14495-1 (JPEG-LS).
_SOF = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7})
# Markers without a length: TEM, RSTn, SOI.
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})


@dataclass(frozen=True, slots=True)
class CodestreamSize:
    """What a JPEG, JPEG-LS, JPEG 2000 or JPEG XL codestream says of itself.

    Parameters
    ----------
    rows, columns
        Of the image.
    samples, bits
        Per pixel, and precision of one; 0 where only the decoder finds out (JPEG XL).
    """

    rows: int
    columns: int
    samples: int
    bits: int


def codestream_size(frame: bytes) -> CodestreamSize | None:
    """Return the size in the frame header of a codestream.

    Parameters
    ----------
    frame
        One frame: JPEG, JPEG-LS, JPEG 2000 (bare or in JP2 boxes), HTJ2K, JPEG XL.

    Returns
    -------
    CodestreamSize | None
        None when there is no frame header, or it is cut off.
    """
    if frame.startswith(b"\xff\xd8"):
        return _jpeg(frame)
    if frame.startswith(b"\xff\x4f\xff\x51"):
        return _jpeg_2000(frame, 0)
    # JP2 boxes around the codestream are forbidden (PS3.5 A.4.4) and yet common.
    if frame[4:8] == b"jP  ":
        start = frame.find(b"\xff\x4f\xff\x51")
        return _jpeg_2000(frame, start) if start >= 0 else None
    if frame.startswith(b"\xff\x0a"):
        return _jpeg_xl(frame[2:12])
    if frame[4:8] == b"JXL ":
        start = max(frame.find(b"jxlc\xff\x0a"), frame.find(b"jxlp\0\0\0\0\xff\x0a") + 4)
        return _jpeg_xl(frame[start + 6 : start + 16]) if start > 3 else None
    return None


def _jpeg(frame: bytes) -> CodestreamSize | None:
    at = 2
    while at + 4 <= len(frame):
        if frame[at] != 0xFF:
            return None
        marker = frame[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker in _BARE:
            at += 2
        elif marker in _SOF:
            return _sof(frame, at)
        else:
            at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def _sof(frame: bytes, at: int) -> CodestreamSize | None:
    if at + 10 > len(frame):
        return None
    rows = int.from_bytes(frame[at + 5 : at + 7], "big")
    columns = int.from_bytes(frame[at + 7 : at + 9], "big")
    return CodestreamSize(rows, columns, samples=frame[at + 9], bits=frame[at + 4])


def _jpeg_2000(frame: bytes, start: int) -> CodestreamSize | None:
    # SIZ (ISO 15444-1 A.5.1): Lsiz, Rsiz, Xsiz, Ysiz, XOsiz, YOsiz, four of the tiles, Csiz, Ssiz.
    siz = frame[start + 4 : start + 43]
    if len(siz) < 39:
        return None
    x, y, x0, y0 = (int.from_bytes(siz[i : i + 4], "big") for i in (4, 8, 12, 16))
    return CodestreamSize(y - y0, x - x0, int.from_bytes(siz[36:38], "big"), (siz[38] & 0x7F) + 1)


# Width as a fraction of the height, by the 3-bit ratio of a SizeHeader; 0 means that the width follows.
_RATIOS = ((0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def _jpeg_xl(head: bytes) -> CodestreamSize | None:
    """Read a SizeHeader (ISO 18181-1), packed from the lowest bit up."""
    if len(head) < 10:
        return None
    bits, at = int.from_bytes(head, "little"), 0

    def take(count: int) -> int:
        nonlocal at
        value = bits >> at & ((1 << count) - 1)
        at += count
        return value

    small = take(1)

    def side() -> int:
        return 8 * (1 + take(5)) if small else 1 + take((9, 13, 18, 30)[take(2)])

    rows = side()
    over, under = _RATIOS[take(3)]
    columns = rows * over // under if over else side()
    return CodestreamSize(rows, columns, samples=0, bits=0)
