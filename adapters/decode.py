"""Decoding: one frame of any transfer syntax to stored values, with open decoders and within limits.

A size is believed only when header, codestream and file agree on it; only then is anything allocated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom import Dataset, uid
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut

from adapters.decoders import DECODERS, Pixels, options_of, unpack_bits
from adapters.errors import DecodeError
from adapters.fragments import frame_spans
from adapters.image_pixel import PixelFormat, pixel_format
from adapters.source import PixelSource, read_source, source_of
from adapters.worker import decode_worker


def check_pixels(source: PixelSource, *, max_frame_pixels: int) -> PixelFormat:
    """Check that an instance's pixel data is there and plausible, without decoding it.

    Parameters
    ----------
    source
        Of the instance.
    max_frame_pixels
        Limit for rows × columns × samples of one frame.

    Returns
    -------
    PixelFormat
        Of its frames.

    Raises
    ------
    DecodeError
        With the reason, in words for an administrator.
    """
    if not source.tag:
        raise DecodeError("the object has no pixel data")
    if source.tag != 0x7FE00010:
        raise DecodeError("the pixel data is floating point, which is a map and not an image")
    form = pixel_format(source.header, max_frame_pixels=max_frame_pixels)
    syntax = source.transfer_syntax_uid
    if source.length is None and not syntax:
        raise DecodeError("the pixel data is compressed but the file names no transfer syntax")
    if source.length is None and syntax not in DECODERS:
        raise DecodeError(f"the transfer syntax {_syntax_name(syntax)} cannot be decoded")
    if source.length is not None:
        there, needed = min(source.length, source.size - source.offset), form.frame_bits * form.frames
        if there * 8 < needed:
            raise DecodeError(
                f"the pixel data is cut off: {there} of {(needed + 7) // 8} bytes; ask for the object again"
            )
    return form


def _syntax_name(syntax: uid.UID) -> str:
    return f"{syntax.name} ({syntax})" if syntax.name != syntax else str(syntax)


def decode_frame(
    ds_or_path: Dataset | Path | PixelSource, frame_number: int = 1, *, max_frame_pixels: int
) -> Pixels:
    """Decode one frame.

    Parameters
    ----------
    ds_or_path
        A file (only the frame's own bytes are read), its source, or a data set with its pixel data.
    frame_number
        From 1 (PS3.3 C.7.6.16).
    max_frame_pixels
        Limit for rows × columns × samples.

    Returns
    -------
    ndarray
        Stored values, (rows, columns), or (rows, columns, 3) RGB for colour and palette objects;
        the object's own integer type in this machine's byte order.

    Raises
    ------
    DecodeError
        The frame is not there, damaged, over the limit or in an unknown transfer syntax.
    """
    source = _source(ds_or_path)
    form = check_pixels(source, max_frame_pixels=max_frame_pixels)
    if not 1 <= frame_number <= form.frames:
        raise DecodeError(f"frame {frame_number} does not exist; the object has {form.frames}")
    try:
        if source.length is None:
            pixels = _compressed(source, form, frame_number - 1)
        else:
            pixels = _native(source, form, frame_number - 1)
        if form.photometric == "PALETTE COLOR":
            pixels = _apply_palette(pixels, source.header)
    except DecodeError:
        raise
    except MemoryError as error:
        raise DecodeError("the frame does not fit into memory; lower max_frame_pixels") from error
    # The decoders raise what they like; the reason for an administrator is the same.
    except Exception as error:
        raise DecodeError(f"the pixel data is damaged ({type(error).__name__})") from error
    return np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))


def _source(given: Dataset | Path | PixelSource) -> PixelSource:
    if isinstance(given, PixelSource):
        return given
    if isinstance(given, Path):
        return read_source(given)
    return source_of(given)


def _native(source: PixelSource, form: PixelFormat, index: int) -> Pixels:
    """Decode an uncompressed frame from the bytes of that frame alone."""
    if form.bits_allocated == 1:
        return _one_bit(source, form, index)
    length = form.frame_bits // 8
    start = index * length
    syntax, vr = source.transfer_syntax_uid or _guess_syntax(source), source.vr or "OW"
    if syntax == uid.ExplicitVRBigEndian and vr == "OW" and form.bits_allocated == 8:
        # 8-bit samples in big endian words (PS3.5 8.1.1): an odd frame starts in the middle of a word.
        words = source.read(source.offset + start - start % 2, length + start % 2 + 1)
        swapped = np.frombuffer(words[: len(words) // 2 * 2], dtype=">u2").astype("<u2").tobytes()
        data, vr = swapped[start % 2 : start % 2 + length], "OB"
    else:
        data = source.read(source.offset + start, length)
    # pydicom wants an even length, as in a file.
    data += b"\0" * (len(data) % 2)
    pixels, _ = get_decoder(syntax).as_array(data, index=0, **options_of(form, vr))
    return _mask_overlay(pixels, form, source.header)


def _guess_syntax(source: PixelSource) -> uid.UID:
    implicit, little = source.header.original_encoding
    if little is False:
        return uid.ExplicitVRBigEndian
    return uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian


def _one_bit(source: PixelSource, form: PixelFormat, index: int) -> Pixels:
    """Unpack bits, first pixel in the least significant bit (PS3.5 8.1.1); frames are not byte-aligned."""
    count = form.rows * form.columns * form.samples
    first = index * count
    return unpack_bits(source.read(source.offset + first // 8, (first % 8 + count + 7) // 8), first % 8, form)


def _mask_overlay(pixels: Pixels, form: PixelFormat, ds: Dataset) -> Pixels:
    """Clear overlay planes kept in unused high bits (retired, PS3.3 C.9.2), and only those."""
    unused = form.bits_allocated - form.bits_stored
    planes = [ds.get((group, 0x0102)) for group in range(0x6000, 0x6020, 2)]
    if not unused or not any(plane is not None and (plane.value or 0) > 0 for plane in planes):
        return pixels
    return (pixels << unused) >> unused


def _compressed(source: PixelSource, form: PixelFormat, index: int) -> Pixels:
    spans = frame_spans(source, form.frames)[index]
    total = sum(length for _, length in spans)
    # Lossless coders expand noise by a few percent; a frame of twice its raw size is a bomb or a lie.
    if total > form.frame_bits // 4 + 2**16:
        raise DecodeError("a compressed frame is larger than twice its uncompressed size")
    frame = b"".join(source.read(offset, length) for offset, length in spans)
    return decode_worker().decode(frame, source.transfer_syntax_uid, form)


def _apply_palette(pixels: Pixels, ds: Dataset) -> Pixels:
    """Apply the palette (PS3.3 C.7.6.3.1.5 and C.7.9.2), refusing one that unpacks to more than it may."""
    for colour in ("Red", "Green", "Blue"):
        data = ds.get(f"Segmented{colour}PaletteColorLookupTableData")
        if data is None:
            continue
        wide = ds.get(f"{colour}PaletteColorLookupTableDescriptor", [0, 0, 16])[2] != 8
        if _unpacked_entries(np.frombuffer(data[: len(data) // 2 * 2], "<u2" if wide else "u1")) > 2**17:
            raise DecodeError("the segmented palette unpacks to more entries than a palette may have")
    return np.asarray(apply_color_lut(pixels, ds))


def _unpacked_entries(data: Pixels) -> int:
    """Return an upper bound of the entries of a segmented palette (PS3.3 C.7.9.2.1 to .3)."""
    at, total, longest = 0, 0, 0
    while at + 1 < len(data):
        opcode, length = int(data[at]), int(data[at + 1])
        if opcode == 2:
            total += length * longest
            at += 4
            continue
        total, longest = total + length, max(longest, length)
        at += 2 + length if opcode == 0 else 3
    return total
