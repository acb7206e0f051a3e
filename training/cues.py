"""Trivial facts of an image that should not tell normal from abnormal."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

Image = NDArray[np.float32]
THUMB_PX = 24
# The frame in which scanners and viewers burn text in, as a share of the side.
BORDER = 0.14


@dataclass(frozen=True, slots=True)
class Cues:
    """Cheap facts of one image.

    Parameters
    ----------
    numbers
        By name: brightness, contrast, dark share, rows, columns, aspect, burned-in text.
    words
        By name: manufacturer, window and whatever else the reader of the data noted.
    thumb
        (24 x 24,) float32 with mean 0 and unit norm; all 0 for a flat image.
    digest
        CRC of the pixels.
    """

    numbers: Mapping[str, float]
    words: Mapping[str, str]
    thumb: NDArray[np.float32]
    digest: int


def cues_of(image: Image, attributes: Mapping[str, str]) -> Cues:
    """Return the cues of a (rows, columns) float32 image in [0, 1]."""
    rows, columns = image.shape
    numbers = {
        "mean brightness": float(image.mean()),
        "contrast": float(image.std()),
        "dark share": float((image < 0.02).mean()),
        "rows": float(rows),
        "columns": float(columns),
        "aspect": columns / rows,
        "burned-in text": text_like(image),
    }
    return Cues(numbers, dict(attributes), thumbnail(image), zlib.crc32(np.ascontiguousarray(image).data))


def thumbnail(image: Image) -> NDArray[np.float32]:
    """Return the image averaged to 24 x 24, its smooth part removed, as a unit vector."""
    x = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None, None]
    small = F.interpolate(x, (THUMB_PX, THUMB_PX), mode="area")
    # Every scan of an organ shares its broad shape; copies also share what is left without it.
    fine = (small - F.avg_pool2d(small, 7, stride=1, padding=3, count_include_pad=False)).flatten().numpy()
    norm = float(np.linalg.norm(fine))
    return np.asarray(fine / norm if norm > 1e-4 else fine * 0, dtype=np.float32)


def text_like(image: Image) -> float:
    """Return the share of border pixels in thin, saturated strokes: burned-in letters and markers.

    Anatomy at the border has soft or long edges; letters are small, jump by most of the range within a
    pixel or two and fall back again.
    """
    step = max(1, max(image.shape) // 512)
    x = image[::step, ::step]
    pixels = torch.from_numpy(np.ascontiguousarray(x))[None, None]
    # White top-hat with a 9-pixel window: what is brighter than everything wide around it.
    opened = F.max_pool2d(-F.max_pool2d(-pixels, 9, 1, 4), 9, 1, 4)
    strokes = (pixels - opened)[0, 0].numpy() > 0.5
    rows, columns = x.shape
    r, c = max(1, round(rows * BORDER)), max(1, round(columns * BORDER))
    frame = np.ones(x.shape, dtype=bool)
    frame[r : rows - r, c : columns - c] = False
    return float(strokes[frame].mean())
