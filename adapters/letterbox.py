"""Letterbox: a source grid on the model's square, aspect kept, with an exact way back.

All coordinates are pixel centres: pixel i covers [i - 0.5, i + 0.5], patch j of size p is centred on
model pixel (j + 0.5) p - 0.5. Corner-aligned resizing would misplace patches by up to half a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Where one source grid lies inside the model's square input.

    Parameters
    ----------
    rows, columns
        Source grid.
    size_px, patch_px
        Side of the model's input and of one patch, in model pixels.
    """

    rows: int
    columns: int
    size_px: int
    patch_px: int

    def __post_init__(self) -> None:
        if min(self.rows, self.columns) < 1:
            raise ValueError(f"the source grid is empty: {self.rows} x {self.columns}")
        if not 0 < self.patch_px <= self.size_px:
            raise ValueError(f"patch {self.patch_px} px does not fit in {self.size_px} px")

    @property
    def grid(self) -> int:
        """Patches per side; left-over pixels on the right and at the bottom belong to no patch."""
        return self.size_px // self.patch_px

    @property
    def content(self) -> tuple[int, int, int, int]:
        """Top, left, height and width of the image inside the square, in whole model pixels."""
        scale = self.size_px / max(self.rows, self.columns)
        height = max(1, round(self.rows * scale))
        width = max(1, round(self.columns * scale))
        return (self.size_px - height) // 2, (self.size_px - width) // 2, height, width

    def forward(self, pixels: NDArray[np.float32], *, mode: str = "bilinear") -> torch.Tensor:
        """Put an image on the model's square.

        Parameters
        ----------
        pixels
            (rows, columns) float32 in [0, 1], source grid.
        mode
            ``bilinear`` (antialiased) for images, ``area`` for masks (fraction of the pixel covered).

        Returns
        -------
        torch.Tensor
            (size_px, size_px) float32 in [0, 1]; outside the image 0.
        """
        if pixels.shape != (self.rows, self.columns):
            raise ValueError(f"the image is {pixels.shape}, not {(self.rows, self.columns)}")
        x = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
        return self.place(x[None], mode=mode)[0]

    def place(self, pixels: torch.Tensor, *, mode: str = "bilinear") -> torch.Tensor:
        """Put a batch of images on the model's square, where they are.

        Parameters
        ----------
        pixels
            (B, rows, columns) float32 in [0, 1], source grid, on any device.
        mode
            As for :meth:`forward`.

        Returns
        -------
        torch.Tensor
            (B, size_px, size_px) float32 in [0, 1] on the same device; outside the image 0.
        """
        top, left, height, width = self.content
        x = pixels[:, None]  # (B, 1, rows, columns)
        x = (
            F.interpolate(x, (height, width), mode="bilinear", antialias=True, align_corners=False)
            if mode == "bilinear"
            else F.interpolate(x, (height, width), mode="area")
        )
        out = x.new_zeros(len(x), self.size_px, self.size_px)
        out[:, top : top + height, left : left + width] = x[:, 0]
        return out

    def valid(self) -> NDArray[np.bool_]:
        """Return (grid, grid) bool: the patches whose centre lies in the image, at least one."""
        row = _inside(self._patch_axis(0))
        column = _inside(self._patch_axis(1))
        return np.asarray(row[:, None] & column[None, :])

    def backward(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bring a patch map back to the source grid, bilinear between patch centres, clamped outside them.

        Parameters
        ----------
        patches
            (grid, grid) float32, model grid.

        Returns
        -------
        numpy.ndarray
            (rows, columns) float32, source grid; values stay within those of the valid patches.
        """
        if patches.shape != (self.grid, self.grid):
            raise ValueError(f"the map is {patches.shape}, not {(self.grid, self.grid)}")
        r0, r1, fr = self._weights(0)
        c0, c1, fc = self._weights(1)
        p = np.asarray(patches, dtype=np.float32)
        lines = p[r0] + (p[r1] - p[r0]) * fr[:, None]  # (rows, grid)
        return np.asarray(lines[:, c0] + (lines[:, c1] - lines[:, c0]) * fc[None, :], dtype=np.float32)

    def spread(self, patches: torch.Tensor) -> torch.Tensor:
        """Bring a batch of patch maps back to the source grid, where they are: :meth:`backward`, to the bit.

        Not as a product with two matrices: a GPU multiplies fp32 with 10 bits (TF32) where it may, and a
        map's distance from the threshold would be rounded with them.

        Parameters
        ----------
        patches
            (B, grid, grid) float32, model grid, on any device.

        Returns
        -------
        torch.Tensor
            (B, rows, columns) float32, source grid, on the same device.
        """
        (r0, r1, fr), (c0, c1, fc) = _weights_on(self, patches.device)
        low = patches.index_select(1, r0)  # (B, rows, grid)
        lines = low + (patches.index_select(1, r1) - low) * fr[:, None]
        low = lines.index_select(2, c0)  # (B, rows, columns)
        return low + (lines.index_select(2, c1) - low) * fc

    def draw(self, patches: NDArray[np.float32], device: torch.device) -> NDArray[np.float32]:
        """Return :meth:`backward` of a map, made on the device."""
        if device.type == "cpu":
            return self.backward(patches)
        spread: NDArray[np.float32] = self.spread(torch.from_numpy(patches)[None].to(device))[0].cpu().numpy()
        return spread

    def patch_centres(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the patch centres in source pixels, rows (grid,) and columns (grid,)."""
        return self._patch_axis(0)[0], self._patch_axis(1)[0]

    def _axis(self, axis: int) -> tuple[int, int, float]:
        """Source length, offset in the square and scale (model pixels per source pixel) of one axis."""
        top, left, height, width = self.content
        if axis == 0:
            return self.rows, top, height / self.rows
        return self.columns, left, width / self.columns

    def _patch_axis(self, axis: int) -> tuple[NDArray[np.float64], int]:
        length, offset, scale = self._axis(axis)
        model = (np.arange(self.grid) + 0.5) * self.patch_px - 0.5
        centre: NDArray[np.float64] = np.asarray((model + 0.5 - offset) / scale - 0.5, dtype=np.float64)
        return centre, length

    def _weights(self, axis: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
        length, offset, scale = self._axis(axis)
        model = (np.arange(length) + 0.5) * scale - 0.5 + offset
        patch = (model + 0.5) / self.patch_px - 0.5
        # Patches in the padding never saw the image: clamp to those that did.
        usable = np.flatnonzero(_inside(self._patch_axis(axis)))
        patch = np.clip(patch, usable[0], usable[-1])
        low = np.floor(patch).astype(np.intp)
        high = np.minimum(low + 1, usable[-1])
        return low, high, (patch - low).astype(np.float32)


def to_square(
    pixels: Sequence[NDArray[np.float32]], size_px: int, patch_px: int, device: torch.device
) -> torch.Tensor:
    """Bring slices to the model's square: on the device, in one step where their grids are the same.

    Parameters
    ----------
    pixels
        (rows, columns) float32 in [0, 1] each; grids may differ.
    size_px, patch_px
        Of the model.
    device
        Where the squares are wanted.

    Returns
    -------
    torch.Tensor
        (B, size_px, size_px) float32 in [0, 1].
    """
    shapes = {p.shape for p in pixels}
    if len(shapes) > 1:
        return torch.cat([to_square([p], size_px, patch_px, device) for p in pixels])
    rows, columns = shapes.pop()
    stack = torch.from_numpy(np.stack(pixels))
    if device.type == "cuda":
        # Pinned memory is copied while the card computes the batch before.
        stack = stack.pin_memory().to(device, non_blocking=True)
    return Letterbox(rows, columns, size_px, patch_px).place(stack)


@lru_cache(maxsize=16)
def _weights_on(box: Letterbox, device: torch.device) -> tuple[tuple[torch.Tensor, ...], ...]:
    """Both axes' neighbours and shares on a device, kept: a series has one grid."""
    return tuple(tuple(torch.from_numpy(part).to(device) for part in box._weights(axis)) for axis in (0, 1))


def _inside(axis: tuple[NDArray[np.float64], int]) -> NDArray[np.bool_]:
    centre, length = axis
    inside = (centre >= -0.5) & (centre <= length - 0.5)
    if not inside.any():  # an image thinner than one patch
        inside[np.argmin(np.abs(centre - (length - 1) / 2))] = True
    return np.asarray(inside)
