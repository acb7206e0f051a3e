"""Planes in space, and polygons filled on their grids."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Plane:
    """Where an image lies in space (PS3.3 C.7.6.2).

    Parameters
    ----------
    position
        (3,) mm: centre of the first pixel.
    along_row, along_column
        (3,) unit vectors: the direction in which the column, and the row, increases.
    spacing
        mm between rows and between columns.
    """

    position: Points
    along_row: Points
    along_column: Points
    spacing: tuple[float, float]

    @property
    def normal(self) -> Points:
        """(3,) unit vector."""
        return np.cross(self.along_row, self.along_column)

    def to_pixels(self, points: Points) -> Points:
        """Return (n, 3) column, row (pixel centres are whole numbers) and mm off the plane of (n, 3) mm."""
        rows = self.along_row / self.spacing[1], self.along_column / self.spacing[0], self.normal
        return np.asarray((points - self.position) @ np.stack(rows).T, dtype=np.float64)

    def is_same(self, other: Plane | None) -> bool:
        """True if both are the same grid to a hundredth of a millimetre."""
        return (
            other is not None
            and self.is_parallel(other)
            and np.allclose(self.position, other.position, atol=0.01)
            and np.allclose(self.spacing, other.spacing, rtol=1e-3)
        )

    def is_parallel(self, other: Plane) -> bool:
        """True if both have the same orientation."""
        return bool(
            np.allclose(self.along_row, other.along_row, atol=1e-3)
            and np.allclose(self.along_column, other.along_column, atol=1e-3)
        )


def fill(polygons: Iterable[Points], rows: int, columns: int) -> Mask:
    """Rasterise closed polygons by the even-odd rule, so that one inside another is a hole.

    Parameters
    ----------
    polygons
        (n, 2) each: column, row; pixel centres are whole numbers.
    rows, columns
        Of the grid.

    Returns
    -------
    (rows, columns) bool: pixels whose centre is inside.
    """
    inside = np.zeros((rows, columns), dtype=np.bool_)
    centres = np.arange(columns)
    for polygon in polygons:
        x, y = polygon[:, 0], polygon[:, 1]
        x2, y2 = np.roll(x, -1), np.roll(y, -1)
        first, last = max(0, int(np.ceil(y.min()))), min(rows - 1, int(np.floor(y.max())))
        for row in range(first, last + 1):
            crosses = (y <= row) != (y2 <= row)
            at = x[crosses] + (row - y[crosses]) / (y2 - y)[crosses] * (x2 - x)[crosses]
            inside[row] ^= np.searchsorted(np.sort(at), centres, side="right") % 2 == 1
    return inside
