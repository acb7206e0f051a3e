"""Image Pixel module: the size and type of a frame as its header claims them, checked before use."""

from __future__ import annotations

from dataclasses import dataclass

from pydicom import Dataset
from pydicom.valuerep import IS

from adapters.errors import DecodeError


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """The Image Pixel module (PS3.3 C.7.6.3), checked.

    Parameters
    ----------
    rows, columns, samples, frames
        Of the image, each at least 1.
    bits_allocated, bits_stored
        Of one sample: 1, 8, 16, 32 or 64; and how many of them hold the value.
    signed
        True for PixelRepresentation 1.
    photometric
        PhotometricInterpretation.
    planar
        PlanarConfiguration, 0 where it does not apply.
    """

    rows: int
    columns: int
    samples: int
    frames: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    photometric: str
    planar: int

    @property
    def frame_bits(self) -> int:
        """Bits of one uncompressed frame; YBR_FULL_422 stores two samples per pixel."""
        samples = 2 if self.photometric == "YBR_FULL_422" else self.samples
        return self.rows * self.columns * samples * self.bits_allocated


def _number(ds: Dataset, keyword: str, default: int | None = None) -> int:
    value = ds.get(keyword)
    if value is None or value == "":
        if default is None:
            raise DecodeError(f"the header lacks {keyword}")
        return default
    if not isinstance(value, int | IS):
        raise DecodeError(f"{keyword} in the header is not a single whole number")
    return int(value)


def pixel_format(ds: Dataset, *, max_frame_pixels: int) -> PixelFormat:
    """Return the checked Image Pixel module of a header.

    Parameters
    ----------
    ds
        Header of an image.
    max_frame_pixels
        Limit for rows × columns × samples of one frame.

    Returns
    -------
    PixelFormat
        In which every number is possible and the frame within the limit.

    Raises
    ------
    DecodeError
        Something is missing, impossible or over the limit.
    """
    try:
        form = PixelFormat(
            rows=_number(ds, "Rows"),
            columns=_number(ds, "Columns"),
            samples=_number(ds, "SamplesPerPixel", 1),
            frames=_number(ds, "NumberOfFrames", 1) or 1,
            bits_allocated=_number(ds, "BitsAllocated"),
            bits_stored=_number(ds, "BitsStored", _number(ds, "BitsAllocated")),
            signed=_number(ds, "PixelRepresentation", 0) == 1,
            photometric=str(ds.get("PhotometricInterpretation") or "MONOCHROME2"),
            planar=_number(ds, "PlanarConfiguration", 0),
        )
    except DecodeError:
        raise
    # A value that its VR does not allow ("1A" frames) fails only when it is looked at.
    except Exception as error:
        raise DecodeError(
            f"a number of the image's size in the header cannot be read ({type(error).__name__})"
        ) from error
    _check_format(form, max_frame_pixels)
    return form


def _check_format(form: PixelFormat, max_frame_pixels: int) -> None:
    if form.rows < 1 or form.columns < 1 or form.frames < 1:
        raise DecodeError(f"the image has {form.rows} rows, {form.columns} columns, {form.frames} frames")
    if form.rows * form.columns * form.samples > max_frame_pixels:
        raise DecodeError(
            f"a frame of {form.rows} × {form.columns} × {form.samples} is over the limit of "
            f"{max_frame_pixels} pixel values (max_frame_pixels)"
        )
    if form.samples not in (1, 3, 4) or form.bits_allocated not in (1, 8, 16, 32, 64):
        raise DecodeError(
            f"{form.samples} samples of {form.bits_allocated} bits are not an image that can be read"
        )
    if not 1 <= form.bits_stored <= form.bits_allocated:
        raise DecodeError(f"BitsStored {form.bits_stored} does not fit BitsAllocated {form.bits_allocated}")
