"""Losses of the few-shot fit, each with its formula; probabilities in, one value per image out."""

from __future__ import annotations

import torch
import torch.nn.functional as F

# The published focal loss smooths its one-hot target and its probability by this much.
SMOOTH = 1e-5


def focal(abnormal: torch.Tensor, mask: torch.Tensor, gamma: float = 2.0) -> torch.Tensor:
    """Return the mean over pixels of -(1 - p_t)^gamma ln p_t (arXiv 1708.02002), on probabilities.

    p_t = (1 - 1e-5) p_true + 1e-5 p_other + 1e-5, as in the published implementation.

    Parameters
    ----------
    abnormal
        (B, H, W) probability of the abnormal class.
    mask
        (B, H, W) 0 or 1.
    gamma
        Focusing exponent.

    Returns
    -------
    torch.Tensor
        (B,).
    """
    true = torch.where(mask > 0.5, abnormal, 1 - abnormal)
    p = (1 - SMOOTH) * true + SMOOTH * (1 - true) + SMOOTH
    return (-((1 - p) ** gamma) * p.log()).flatten(1).mean(dim=1)


def dice(abnormal: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return 1 - (2 sum(p m) + 1) / (sum p + sum m + 1) per image, of (B, H, W) each: (B,)."""
    overlap = (abnormal * mask).flatten(1).sum(dim=1)
    total = abnormal.flatten(1).sum(dim=1) + mask.flatten(1).sum(dim=1)
    return 1 - (2 * overlap + 1) / (total + 1)


def published_image_term(probability: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Return BCE-with-logits of a probability, (B,), as published: never below 0.31 or 0.69."""
    return F.binary_cross_entropy_with_logits(probability, label, reduction="none")


def image_term(probability: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Return the binary cross entropy of a probability, (B,): -y ln p - (1 - y) ln(1 - p)."""
    return F.binary_cross_entropy(probability.clamp(1e-6, 1 - 1e-6), label, reduction="none")
