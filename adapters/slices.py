"""Slices: one frame's pixels on its own grid, and the normalisation that fit and score share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from adapters.decode import decode_frame
from adapters.source import read_source
from adapters.values import grey_levels, modality_values, padding_mask, transform_of, voi_levels


@dataclass(frozen=True, slots=True)
class Slice:
    """One normalised frame.

    Parameters
    ----------
    sop_class_uid, sop_instance_uid
        Of the source instance.
    frame_number
        From 1 (PS3.3 C.7.6.16), 1 for a single-frame object.
    pixels
        (rows, columns) float32 in [0, 1] on the source grid; colour objects are reduced to luminance.
    """

    sop_class_uid: str
    sop_instance_uid: str
    frame_number: int
    pixels: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Normalisation:
    """How stored pixel values become [0, 1]; recorded in the bundle, identical in fit and score.

    Parameters
    ----------
    kind
        ``window``: the values low..high after the modality LUT (bundle's own window);
        ``object``: the object's VOI LUT or window, else percentiles;
        ``percentile``: percentiles low..high of the frame; ``full``: the frame's whole range.
    low, high
        Modality units for ``window``, percent for ``percentile``, unused otherwise.
    size_px
        Side of the model's square input.
    """

    kind: Literal["window", "object", "percentile", "full"]
    low: float = 0.5
    high: float = 99.5
    size_px: int = 240

    def __post_init__(self) -> None:
        """Refuse a range that no value can lie in."""
        if self.kind not in ("window", "object", "percentile", "full"):
            raise ValueError(f"normalisation kind {self.kind!r} is none of window, object, percentile, full")
        if self.kind == "window" and not self.low < self.high:
            raise ValueError(f"the window {self.low} to {self.high} is empty")
        if self.kind in ("percentile", "object") and not 0 <= self.low < self.high <= 100:
            raise ValueError(f"{self.low} to {self.high} are not percentiles in order")
        if self.size_px < 1:
            raise ValueError(f"size_px {self.size_px} is not positive")


def load_slice(
    path: Path,
    frame_number: int = 1,
    *,
    normalisation: Normalisation,
    max_frame_pixels: int,
    sop_class_uid: str = "",
    sop_instance_uid: str = "",
) -> Slice:
    """Decode and normalise one frame of a stored instance.

    Parameters
    ----------
    path
        Of the instance; its header is kept for the next frame.
    frame_number
        From 1.
    normalisation
        Of the bundle.
    max_frame_pixels
        Limit for rows × columns × samples.
    sop_class_uid, sop_instance_uid
        Of the instance; read from its header where empty.

    Returns
    -------
    Slice
        On the frame's own grid.

    Raises
    ------
    DecodeError
        The frame cannot be decoded or is over the limit.
    """
    source = read_source(path)
    stored = decode_frame(source, frame_number, max_frame_pixels=max_frame_pixels)
    pixels = normalise(stored, source.header, normalisation, frame_number=frame_number)
    return Slice(
        sop_class_uid or str(source.header.get("SOPClassUID", "")),
        sop_instance_uid or str(source.header.get("SOPInstanceUID", "")),
        frame_number,
        pixels,
    )


def normalise(
    pixels: NDArray[Any], ds: Dataset, normalisation: Normalisation, *, frame_number: int = 1
) -> NDArray[np.float32]:
    """Bring stored values to [0, 1]: modality LUT, window or range, polarity, padding.

    Parameters
    ----------
    pixels
        Stored values, (rows, columns) of any integer or float type, or (rows, columns, 3) RGB.
    ds
        Header of the object.
    normalisation
        Of the bundle.
    frame_number
        From 1; an enhanced object may transform each frame differently (PS3.3 C.7.6.16.2.9, .10).

    Returns
    -------
    ndarray
        (rows, columns) float32 in [0, 1] on the same grid; padding, values that are no number, and a
        frame of one value alone are 0. MONOCHROME1 is inverted: 1 is bright for a reader.
    """
    if pixels.ndim == 3:
        # Colour has no modality or VOI LUT (PS3.3 C.11.1, C.11.2): its own full scale is its window.
        grey, scale = grey_levels(pixels, ds)
        unusable = ~np.isfinite(grey)
        return _to_unit(grey, unusable, normalisation, grey / np.float32(scale))
    transform = transform_of(ds, frame_number)
    unusable = padding_mask(pixels, ds)
    values = modality_values(pixels, transform)
    unusable |= ~np.isfinite(values)
    viewed = voi_levels(values, transform) if normalisation.kind == "object" else None
    unit = _to_unit(values, unusable, normalisation, viewed)
    if str(ds.get("PhotometricInterpretation", "")) == "MONOCHROME1":
        return _blank(1 - unit, unusable, values)
    return unit


def _to_unit(
    values: NDArray[np.float32],
    unusable: NDArray[np.bool_],
    normalisation: Normalisation,
    viewed: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    if normalisation.kind == "object" and viewed is not None:
        return _blank(viewed, unusable, values)
    usable = values[~unusable]
    if not usable.size:
        return np.zeros(values.shape, np.float32)
    if normalisation.kind == "window":
        low, high = normalisation.low, normalisation.high
    elif normalisation.kind == "full":
        low, high = float(usable.min()), float(usable.max())
    else:
        low, high = (float(v) for v in np.percentile(usable, (normalisation.low, normalisation.high)))
        if high <= low:
            # More than 99 % of the frame is one value: its rare rest still is the picture.
            low, high = float(usable.min()), float(usable.max())
    if high <= low:
        return np.zeros(values.shape, np.float32)
    return _blank((values - np.float32(low)) / np.float32(high - low), unusable, values)


def _blank(
    unit: NDArray[np.float32], unusable: NDArray[np.bool_], values: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Clip to [0, 1] and set what holds no picture to 0."""
    usable = values[~unusable]
    if not usable.size or usable.min() == usable.max():
        return np.zeros(unit.shape, np.float32)
    out = np.clip(np.nan_to_num(unit, nan=0.0, posinf=1.0, neginf=0.0), 0, 1).astype(np.float32, copy=False)
    out[unusable] = 0
    return out
