"""Outlines: the border of a mask as closed polygons along the edges of its pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Point = tuple[int, int]


def outline(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Trace the outer boundary of a mask's largest part along the pixel edges.

    Parameters
    ----------
    mask
        (rows, columns) bool with at least one True.

    Returns
    -------
    (n, 2) float64 closed polygon of (column, row): pixel (r, c) covers [c, c+1] × [r, r+1],
    as the coordinates of an SCOORD do (PS3.3 C.18.6.1.1); only corners are listed.
    """
    return max(outlines(mask), key=_shoelace)


def outlines(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Trace every boundary of a mask, of parts and of holes; 8-connected parts make one loop.

    Parameters
    ----------
    mask
        (rows, columns) bool.

    Returns
    -------
    Closed polygons as `outline` gives them.
    """
    edges = _boundary_edges(mask)
    loops = []
    # The uppermost, then leftmost, corner is passed only once: a loop that starts there closes once.
    for start in sorted(edges, key=lambda point: (point[1], point[0])):
        while start in edges:
            loops.append(_loop(edges, start))
    return loops


def _loop(edges: dict[Point, list[Point]], start: Point) -> NDArray[np.float64]:
    """Take the edges of one loop out of those that are left, turning left where there is a choice."""
    point, heading = start, (0, 0)
    corners: list[Point] = []
    while not corners or point != start:
        ends = edges[point]
        left = (point[0] + heading[1], point[1] - heading[0])
        end = ends.pop(ends.index(left) if left in ends else 0)
        if not ends:
            del edges[point]
        step = (end[0] - point[0], end[1] - point[1])
        if step != heading:
            corners.append(point)
        point, heading = end, step
    return np.array([*corners, corners[0]], dtype=np.float64)


def _shoelace(loop: NDArray[np.float64]) -> float:
    x, y = loop[:, 0], loop[:, 1]
    return abs(float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))) / 2


def _boundary_edges(mask: NDArray[np.bool_]) -> dict[Point, list[Point]]:
    """Edges between inside and outside as start → ends in (column, row), the inside on the right."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    sides = (
        (~padded[:-2, 1:-1], (0, 0), (1, 0)),  # top, rightwards
        (~padded[1:-1, 2:], (1, 0), (1, 1)),  # right, downwards
        (~padded[2:, 1:-1], (1, 1), (0, 1)),  # bottom, leftwards
        (~padded[1:-1, :-2], (0, 1), (0, 0)),  # left, upwards
    )
    edges: dict[Point, list[Point]] = {}
    for outside, (x0, y0), (x1, y1) in sides:
        for r, c in np.argwhere(inside & outside).tolist():
            edges.setdefault((c + x0, r + y0), []).append((c + x1, r + y1))
    return edges
