"""Views of the few shots: the same transform for image and mask."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

# Sampling matrices in normalised coordinates, rows (x, y): output to input, as in torch's affine_grid.
Matrix = tuple[tuple[float, float, float], tuple[float, float, float]]

IDENTITY: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


def rotation(degrees: float) -> Matrix:
    """Return the sampling matrix [[cos, -sin, 0], [sin, cos, 0]]."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return ((c, -s, 0.0), (s, c, 0.0))


def shift(x: float, y: float) -> Matrix:
    """Return the matrix that moves the sampling grid by (x, y), half-widths of the image."""
    return ((1.0, 0.0, x), (0.0, 1.0, y))


ROTATIONS: tuple[Matrix, ...] = tuple(rotation(d) for d in (-22.5, -11.25, 11.25, 22.5))
SHIFTS: tuple[Matrix, ...] = tuple(
    shift(x, y) for x, y in ((0.1, 0.1), (-0.1, 0.1), (-0.1, -0.1), (0.1, -0.1))
)
FLIPS: tuple[Matrix, ...] = (((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0)), ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0)))

# The published 11 views, in the published order (arXiv 2403.12570).
PUBLISHED_VIEWS: tuple[Matrix, ...] = (IDENTITY, *ROTATIONS, *SHIFTS, *FLIPS)

# Without flips and with small movements: a flipped heart is no normal heart.
SAFE_VIEWS: tuple[Matrix, ...] = (
    IDENTITY,
    rotation(-8.0),
    rotation(8.0),
    shift(0.05, -0.04),
    shift(-0.05, 0.04),
)


def augment(images: torch.Tensor, views: tuple[Matrix, ...] = PUBLISHED_VIEWS) -> torch.Tensor:
    """Return every view of every image, view-major.

    Parameters
    ----------
    images
        (B, C, H, W) float32, images or masks; masks come back fractional.
    views
        Sampling matrices.

    Returns
    -------
    torch.Tensor
        (len(views) B, C, H, W): bilinear, reflection padding, half-pixel convention.
    """
    return torch.cat([_view(images, matrix) for matrix in views])


def _view(images: torch.Tensor, matrix: Matrix) -> torch.Tensor:
    if matrix == IDENTITY:
        return images
    theta = torch.tensor(matrix, dtype=images.dtype, device=images.device).expand(len(images), 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)  # (B, H, W, 2)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
