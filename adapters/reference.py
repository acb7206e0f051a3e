"""The published scoring (arXiv 2403.12570), for parity and for tables; the daemon uses ``adapters.scorer``.

Scores are scaled over a whole set of images, maps are resized corner-aligned: both are as published and
neither is fit for a single study.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from adapters.memory import bank, distance
from adapters.model import MVFA, Family, abnormal_probability, text_logits


def preprocess_image(image: NDArray[np.uint8], size_px: int) -> torch.Tensor:
    """Squash an 8-bit image to the square: Pillow bicubic, / 255, no mean or deviation removed.

    Parameters
    ----------
    image
        (rows, columns, 3) or (rows, columns) uint8.
    size_px
        Side of the square.

    Returns
    -------
    torch.Tensor
        (3, size_px, size_px) float32 in [0, 1].
    """
    picture = Image.fromarray(image).convert("RGB").resize((size_px, size_px), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def preprocess_mask(mask: NDArray[np.uint8], size_px: int) -> torch.Tensor:
    """Squash a mask to the square: nearest neighbour, then > 0.5; (1, size_px, size_px) float32, 0 or 1."""
    picture = Image.fromarray(mask).convert("L").resize((size_px, size_px), Image.Resampling.NEAREST)
    return (torch.from_numpy(np.array(picture)).float() / 255 > 0.5).float()[None]


def build_banks(
    model: MVFA, normals: torch.Tensor, family: Family, batch_size: int = 16
) -> list[torch.Tensor]:
    """Return per level the (images x N, D) bank of all tokens, the class token included, not normalised.

    Parameters
    ----------
    model
        The fitted model.
    normals
        (B, 3, H, W) all augmented views of the normal shots.
    family
        Whose tokens.
    """
    parts: list[list[torch.Tensor]] = [[] for _ in model.levels]
    with torch.no_grad():
        for images in torch.split(normals, batch_size):
            for level, tokens in zip(parts, model(images).of(family), strict=True):
                level.append(tokens.flatten(0, 1))
    return [torch.cat(level) for level in parts]


def upsample(lowres: torch.Tensor, size_px: int) -> torch.Tensor:
    """Resize (B, C, g, g) to (B, C, size_px, size_px), bilinear, corner-aligned as published."""
    return F.interpolate(lowres, (size_px, size_px), mode="bilinear", align_corners=True)


def few_levels(patches: Sequence[torch.Tensor], banks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return (B, L, g, g): per patch 1 - the largest cosine with the bank, of L tensors (B, P, D)."""
    return torch.stack(
        [_square(distance(p, bank(rows))) for p, rows in zip(patches, banks, strict=True)], dim=1
    )


def zero_logits(patches: Sequence[torch.Tensor], text: torch.Tensor) -> torch.Tensor:
    """Return (B, L, 2, g, g) text logits of L tensors (B, P, D)."""
    levels = [text_logits(p, text).transpose(1, 2) for p in patches]  # (B, 2, P)
    return torch.stack([_square(logits) for logits in levels], dim=1)


def few_map(lowres: torch.Tensor, size_px: int) -> torch.Tensor:
    """Return (B, H, W) in [0, 2 L]: the levels' maps resized and summed."""
    return upsample(lowres, size_px).sum(dim=1)


def zero_map(logits: torch.Tensor, size_px: int) -> torch.Tensor:
    """Return (B, H, W) in [0, L]: logits resized, softmax, abnormal, summed over levels."""
    levels = [upsample(logits[:, i], size_px).softmax(dim=1)[:, 1] for i in range(logits.shape[1])]
    return torch.stack(levels, dim=1).sum(dim=1)


def zero_score(patches: Sequence[torch.Tensor], text: torch.Tensor) -> torch.Tensor:
    """Return (B,): the sum over levels of the mean abnormal probability over patches."""
    return torch.stack([abnormal_probability(p, text).mean(dim=1) for p in patches]).sum(dim=0)


def set_minmax(values: torch.Tensor) -> torch.Tensor:
    """Scale to [0, 1] over the whole set, as published; one image alone becomes NaN."""
    return (values - values.min()) / (values.max() - values.min())


def fuse(zero: torch.Tensor, few: torch.Tensor) -> torch.Tensor:
    """Return the mean of both, each scaled over the whole set."""
    return 0.5 * set_minmax(zero) + 0.5 * set_minmax(few)


def image_score(fused: torch.Tensor) -> torch.Tensor:
    """Return (B,) the maximum of each (H, W) map."""
    return fused.flatten(1).amax(dim=1)


def _square(values: torch.Tensor) -> torch.Tensor:
    grid = round(values.shape[-1] ** 0.5)
    return values.reshape(*values.shape[:-1], grid, grid)
