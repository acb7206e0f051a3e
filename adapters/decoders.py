"""Decoders: one compressed frame's bytes to values, with the open decoders in a fixed order.

pylibjpeg-libjpeg is never asked: it is GPL, and differed from two other decoders on a lossless file.
"""

from __future__ import annotations

import zlib
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder

from adapters.codestream import codestream_size
from adapters.errors import DecodeError
from adapters.image_pixel import PixelFormat

Pixels = NDArray[Any]

_JPEG = ("pillow", "gdcm", "imagecodecs")
_LOSSLESS = ("gdcm", "imagecodecs")
# pyjpegls fails on a 16-bit signed file that gdcm reads.
_JPEG_LS = ("gdcm", "pyjpegls", "imagecodecs")
_JPEG_2000 = ("pylibjpeg", "gdcm", "imagecodecs")
_JPEG_XL = {f"1.2.840.10008.1.2.4.{n}" for n in (110, 111, 112)}
_DEFLATED_FRAME = "1.2.840.10008.1.2.8.1"

# Decoders in the order in which they are tried, by transfer syntax (PS3.5 A.4).
DECODERS: dict[str, tuple[str, ...]] = {
    uid.RLELossless: ("pylibjpeg", "pydicom"),
    uid.JPEGBaseline8Bit: _JPEG,
    uid.JPEGExtended12Bit: _JPEG,
    # Retired processes that no plug-in of pydicom reads: 6 & 8 (spectral), 10 & 12 (progressive) and kin.
    **{f"1.2.840.10008.1.2.4.{n}": ("imagecodecs",) for n in (52, 53, 54, 55, 56, 58)},
    uid.JPEGLossless: _LOSSLESS,
    uid.JPEGLosslessSV1: _LOSSLESS,
    uid.JPEGLSLossless: _JPEG_LS,
    uid.JPEGLSNearLossless: _JPEG_LS,
    uid.JPEG2000Lossless: _JPEG_2000,
    uid.JPEG2000: _JPEG_2000,
    uid.HTJ2KLossless: ("pylibjpeg", "imagecodecs"),
    uid.HTJ2KLosslessRPCL: ("pylibjpeg", "imagecodecs"),
    uid.HTJ2K: ("pylibjpeg", "imagecodecs"),
    **dict.fromkeys(_JPEG_XL, ("imagecodecs",)),
    _DEFLATED_FRAME: ("zlib",),
}


def decode_codestream(frame: bytes, syntax: uid.UID, form: PixelFormat) -> Pixels:
    """Decode one compressed frame with the first decoder that reads it.

    Parameters
    ----------
    frame
        The frame's bytes, its fragments joined.
    syntax
        Transfer syntax, a key of `DECODERS`.
    form
        What the header says that comes out.

    Returns
    -------
    ndarray
        (rows, columns) or (rows, columns, samples), colour as RGB.

    Raises
    ------
    DecodeError
        Header and codestream disagree, or no decoder reads it.
    """
    bits = form.bits_stored
    if syntax not in (uid.RLELossless, _DEFLATED_FRAME):
        bits = _check_codestream(frame, form)
    causes = []
    for name in DECODERS[syntax]:
        try:
            return _decode_with(name, syntax, frame, form, bits)
        except (MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        # Each decoder fails in its own way, and the next one is tried. pylibjpeg-rle panics in Rust on
        # a damaged segment, which arrives as a BaseException and would end the process.
        except BaseException as error:
            causes.append(f"{name}: {type(error).__name__}")
    raise DecodeError(f"no decoder reads the frame ({', '.join(causes)}); it may be damaged")


def options_of(form: PixelFormat, vr: str = "") -> dict[str, Any]:
    """Return pydicom's decoding options for one frame."""
    colour = {"planar_configuration": form.planar} if form.samples > 1 else {}
    return {
        "rows": form.rows,
        "columns": form.columns,
        "number_of_frames": 1,
        "samples_per_pixel": form.samples,
        "photometric_interpretation": form.photometric,
        "bits_allocated": form.bits_allocated,
        "bits_stored": form.bits_stored,
        "pixel_representation": int(form.signed),
        "pixel_keyword": "PixelData",
        **colour,
        **({"pixel_vr": vr} if vr else {}),
    }


def unpack_bits(data: bytes, skip: int, form: PixelFormat) -> Pixels:
    """Unpack a one-bit frame after `skip` bits, lowest bit first (PS3.5 8.1.1)."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[skip:]
    return bits[: form.rows * form.columns * form.samples].reshape(_shape(form))


def _shape(form: PixelFormat) -> tuple[int, ...]:
    return (form.rows, form.columns) if form.samples == 1 else (form.rows, form.columns, form.samples)


def _check_codestream(frame: bytes, form: PixelFormat) -> int:
    """Return the codestream's own precision after comparing its size with the header's."""
    size = codestream_size(frame)
    if size is None:
        raise DecodeError("the compressed frame has no readable frame header")
    samples = size.samples or form.samples
    if (size.rows, size.columns, samples) != (form.rows, form.columns, form.samples):
        raise DecodeError(
            f"the compressed frame says {size.rows} × {size.columns} × {samples}, the header "
            f"{form.rows} × {form.columns} × {form.samples}"
        )
    if size.bits > form.bits_allocated:
        raise DecodeError(
            f"the compressed frame has {size.bits} bits, BitsAllocated is {form.bits_allocated}"
        )
    return size.bits


def _decode_with(name: str, syntax: uid.UID, frame: bytes, form: PixelFormat, bits: int) -> Pixels:
    if name == "imagecodecs":
        return _imagecodecs(syntax, frame, form)
    if name == "zlib":
        return _inflate(frame, form)
    # pillow reads 8-bit JPEG only, and gdcm returns 12-bit JPEG at the wrong length.
    if syntax == uid.JPEGExtended12Bit and bits > 8:
        raise DecodeError("12-bit JPEG is for imagecodecs")
    options = options_of(form, "OB")
    pixels, _ = get_decoder(syntax).as_array(encapsulate([frame]), index=0, decoding_plugin=name, **options)
    return pixels


def _inflate(frame: bytes, form: PixelFormat) -> Pixels:
    """Unpack a deflated frame (PS3.5 A.4.13), no further than its uncompressed length."""
    length = (form.frame_bits + 7) // 8
    data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(frame, length)
    if len(data) < length:
        raise DecodeError("the deflated frame is too short")
    if form.bits_allocated == 1:
        return unpack_bits(data, 0, form)
    data += b"\0" * (length % 2)
    options = options_of(form, "OB" if form.bits_allocated == 8 else "OW")
    return get_decoder(uid.ExplicitVRLittleEndian).as_array(data, index=0, **options)[0]


def _imagecodecs(syntax: uid.UID, frame: bytes, form: PixelFormat) -> Pixels:
    if syntax in _JPEG_XL:
        pixels = imagecodecs.jpegxl_decode(frame)
    elif syntax in (uid.JPEGLSLossless, uid.JPEGLSNearLossless):
        pixels = imagecodecs.jpegls_decode(frame)
    elif syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1):
        pixels = imagecodecs.ljpeg_decode(frame)
    elif frame.startswith(b"\xff\xd8"):
        pixels = imagecodecs.jpeg8_decode(frame)
    else:
        pixels = imagecodecs.jpeg2k_decode(frame)
    if pixels.shape != _shape(form):
        raise DecodeError("the decoded frame has another size than the header says")
    return _as_stored(pixels, form)


def _as_stored(pixels: Pixels, form: PixelFormat) -> Pixels:
    """Return the object's own integer type: a JPEG codestream knows no sign."""
    dtype = np.dtype(f"{'i' if form.signed else 'u'}{form.bits_allocated // 8}")
    if form.signed and pixels.dtype.kind == "u":
        shift = form.bits_allocated - form.bits_stored
        return (pixels.astype(dtype) << shift) >> shift
    return pixels.astype(dtype)
