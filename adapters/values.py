"""Values: from stored values to modality units and to what the object's own window shows (PS3.3 C.11)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi

# ITU-R BT.601 luminance of red, green, blue.
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)

VoiFunction = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]


@dataclass(frozen=True, slots=True)
class ValueTransform:
    """Modality and VOI transformation of one frame.

    Parameters
    ----------
    slope, intercept
        Of the rescale (PS3.3 C.11.1); 1 and 0 where there is none.
    modality
        A data set with ModalityLUTSequence, or None.
    voi
        A data set with VOILUTSequence, or None.
    window
        Centre, width and function (PS3.3 C.11.2.1.2), or None.
    """

    slope: float
    intercept: float
    modality: Dataset | None
    voi: Dataset | None
    window: tuple[float, float, VoiFunction] | None


def transform_of(ds: Dataset, frame_number: int) -> ValueTransform:
    """Return the transformation of one frame.

    Parameters
    ----------
    ds
        Header; functional groups of the frame go before shared ones, these before the data set itself.
    frame_number
        From 1.

    Returns
    -------
    ValueTransform
        With anything unusable (no number, a width below its minimum) left out.
    """
    rescale = functional_group(ds, "PixelValueTransformationSequence", frame_number) or ds
    view = functional_group(ds, "FrameVOILUTSequence", frame_number) or ds
    slope, intercept = _first(rescale, "RescaleSlope"), _first(rescale, "RescaleIntercept")
    usable = slope is not None and intercept is not None and slope != 0
    return ValueTransform(
        slope=cast(float, slope) if usable else 1.0,
        intercept=cast(float, intercept) if usable else 0.0,
        modality=ds if _has_items(ds, "ModalityLUTSequence") else None,
        voi=ds if _has_items(ds, "VOILUTSequence") else None,
        window=_window(view),
    )


def functional_group(ds: Dataset, keyword: str, frame_number: int) -> Dataset | None:
    """Return a functional group's item for one frame (PS3.3 C.7.6.16): its own, else the shared one.

    Parameters
    ----------
    ds
        Header of an object.
    keyword
        Of the macro's sequence.
    frame_number
        From 1.

    Returns
    -------
    Dataset | None
        None where the object has no such group for the frame.
    """
    per_frame = ds.get("PerFrameFunctionalGroupsSequence") or ()
    shared = ds.get("SharedFunctionalGroupsSequence") or ()
    own = per_frame[frame_number - 1 : frame_number]
    for group in (*own, *shared[:1]):
        items = group.get(keyword)
        if items:
            return cast(Dataset, items[0])
    return None


def _has_items(ds: Dataset, keyword: str) -> bool:
    return bool(ds.get(keyword))


def _first(ds: Dataset, keyword: str) -> float | None:
    """Return the first of a decimal string's values, None where it is absent, empty or no number."""
    try:
        value = ds.get(keyword)
        first = value[0] if isinstance(value, list) or hasattr(value, "__getitem__") else value
        number = float(first)
    # An empty list, "", None or "1,0": not a number, and so not there.
    except (TypeError, ValueError, IndexError):
        return None
    return number if np.isfinite(number) else None


def _window(ds: Dataset) -> tuple[float, float, VoiFunction] | None:
    centre, width = _first(ds, "WindowCenter"), _first(ds, "WindowWidth")
    function = str(ds.get("VOILUTFunction", "") or "LINEAR")
    if centre is None or width is None or function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        return None
    # C.11.2.1.2.1: at least 1 for LINEAR; C.11.2.1.3: more than 0 for the others.
    if width < 1 and (function == "LINEAR" or width <= 0):
        return None
    return centre, width, cast(VoiFunction, function)


def modality_values(pixels: NDArray[Any], transform: ValueTransform) -> NDArray[np.float32]:
    """Apply the modality LUT or rescale.

    Parameters
    ----------
    pixels
        Stored values, (rows, columns).
    transform
        Of the frame.

    Returns
    -------
    ndarray
        (rows, columns) float32 in modality units, such as Hounsfield units.
    """
    if transform.modality is not None and pixels.dtype.kind in "iu":
        try:
            return np.asarray(apply_modality_lut(pixels, transform.modality)).astype(np.float32)
        # A damaged table is as good as none; the values themselves are still a picture.
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, NotImplementedError):
            return pixels.astype(np.float32)
    # In double precision: 32-bit stored values lose digits in float32 before the intercept is added.
    return (pixels * np.float64(transform.slope) + transform.intercept).astype(np.float32)


def voi_levels(values: NDArray[np.float32], transform: ValueTransform) -> NDArray[np.float32] | None:
    """Apply the object's own VOI LUT, or its first window.

    Parameters
    ----------
    values
        (rows, columns) float32 in modality units.
    transform
        Of the frame.

    Returns
    -------
    ndarray | None
        (rows, columns) float32, [0, 1] inside the window; None where the object has neither.
    """
    if transform.voi is not None:
        levels = _voi_lut(values, transform.voi)
        if levels is not None:
            return levels
    if transform.window is None:
        return None
    return window_levels(values, *transform.window)


def _voi_lut(values: NDArray[np.float32], ds: Dataset) -> NDArray[np.float32] | None:
    try:
        # Index 8 to 16 bits (C.11.2.1.1): int32 holds both signs.
        index = np.round(np.clip(np.nan_to_num(values), -(2**31) + 128, 2**31 - 128)).astype(np.int32)
        bits = int(ds.VOILUTSequence[0].LUTDescriptor[2])
        return np.asarray(apply_voi(index, ds)).astype(np.float32) / np.float32(2**bits - 1)
    # A damaged table is as good as none; the window or the percentiles follow.
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, NotImplementedError):
        return None


def window_levels(
    values: NDArray[np.float32], centre: float, width: float, function: VoiFunction
) -> NDArray[np.float32]:
    """Apply a window.

    Parameters
    ----------
    values
        float32 in modality units.
    centre, width, function
        PS3.3 C.11.2.1.2: LINEAR and its half-unit shift, LINEAR_EXACT, SIGMOID.

    Returns
    -------
    ndarray
        Of the same shape, float32 in [0, 1].
    """
    x = values.astype(np.float64)
    if function == "SIGMOID":
        return cast(
            NDArray[np.float32],
            (1 / (1 + np.exp(np.clip(-4 * (x - centre) / width, -700, 700)))).astype(np.float32),
        )
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    if width == 0:
        return (x > centre).astype(np.float32)
    return np.clip((x - centre) / width + 0.5, 0, 1).astype(np.float32)


def padding_mask(pixels: NDArray[Any], ds: Dataset) -> NDArray[np.bool_]:
    """Return where stored values are padding (PS3.3 C.7.5.1.1.2).

    Parameters
    ----------
    pixels
        Stored values, (rows, columns).
    ds
        Header of the object.

    Returns
    -------
    ndarray
        (rows, columns) bool; PixelPaddingRangeLimit included.
    """
    value = _first(ds, "PixelPaddingValue")
    if value is None:
        return np.zeros(pixels.shape, np.bool_)
    low = high = _in_range(value, pixels.dtype)
    limit = _first(ds, "PixelPaddingRangeLimit")
    if limit is not None:
        other = _in_range(limit, pixels.dtype)
        low, high = min(low, other), max(low, other)
    return np.asarray((pixels >= low) & (pixels <= high))


def _in_range(value: float, dtype: np.dtype[Any]) -> float:
    """Read 63536 as −2000 for a signed type, and back: writers take the wrong one of US and SS."""
    if dtype.kind == "i" and value > np.iinfo(dtype).max:
        return value - 2.0**16
    if dtype.kind == "u" and value < 0:
        return value + 2.0**16
    return value


def grey_levels(pixels: NDArray[Any], ds: Dataset) -> tuple[NDArray[np.float32], float]:
    """Return a colour frame's luminance and its full scale.

    Parameters
    ----------
    pixels
        (rows, columns, 3 or 4) RGB, with or without alpha.
    ds
        Header of the object.

    Returns
    -------
    tuple
        (rows, columns) float32 luminance, and the largest value it can have.
    """
    grey = pixels[..., :3].astype(np.float32) @ _LUMINANCE
    if pixels.dtype.kind not in "iu":
        return grey, 1.0
    bits = pixels.dtype.itemsize * 8
    # A palette fills its own type; direct colour fills BitsStored.
    if str(ds.get("PhotometricInterpretation", "")) != "PALETTE COLOR":
        bits = min(bits, int(_first(ds, "BitsStored") or bits))
    return grey, float(2**bits - 1)
