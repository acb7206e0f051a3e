"""The published scoring as it is published (arXiv 2403.12570), to be measured against: slow on purpose.

One image at a time, fp32, attention weights computed for every block though nobody reads them, both
adapter families with what they put back, the image embedding that no score needs, the whole bank
normalised again for every image, each level's map resized on its own. It equals the published numbers:
``tests/test_published_scoring.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from adapters.model import LOGIT_SCALE, MVFA

Tokens = list[torch.Tensor]


@dataclass(frozen=True, slots=True)
class PublishedTokens:
    """Of one image: per level (N, D) tokens of both families, class token first, and the (1, D) embedding."""

    seg: Tokens
    det: Tokens
    pooled: torch.Tensor


class PublishedScoring:
    """The published scoring with its own copy of a model's weights.

    Parameters
    ----------
    net
        An fp32 model of both families with the published mix; its weights are copied.
    text
        (D, 2) unit text features.
    """

    def __init__(self, net: MVFA, text: torch.Tensor) -> None:
        if net.families != ("seg", "det") or net.mix != "published" or net.backbone.precision != "fp32":
            raise ValueError("the published scoring needs both families, the published mix, and fp32")
        self._visual: Any = copy.deepcopy(net.backbone.visual)
        self._seg: nn.ModuleList = copy.deepcopy(net.adapters("seg"))
        self._det: nn.ModuleList = copy.deepcopy(net.adapters("det"))
        self._levels = net.levels
        self._text = text

    @torch.no_grad()
    def tokens(self, image: torch.Tensor) -> PublishedTokens:
        """Run (1, 3, H, W) through every block."""
        x = self._visual._embeds(image)  # (1, N, W)
        seg: Tokens = []
        det: Tokens = []
        for number, block in enumerate(self._visual.transformer.resblocks, start=1):
            x, _ = _block(block, x)
            if number in self._levels:
                at = self._levels.index(number)
                seg_token, seg_back = self._seg[at](x)
                det_token, det_back = self._det[at](x)
                x = 0.8 * x + 0.1 * seg_back + 0.1 * det_back
                seg.append(seg_token[0])
                det.append(det_token[0])
        pooled = self._visual._pool(x)[0] @ self._visual.proj
        return PublishedTokens(seg, det, pooled)

    @torch.no_grad()
    def few_map(self, tokens: Tokens, banks: Sequence[torch.Tensor], size_px: int) -> torch.Tensor:
        """Return (size_px, size_px): distances from the bank, resized level by level, summed."""
        total = torch.zeros(size_px, size_px)
        for level, bank in zip(tokens, banks, strict=True):
            cosine = _cosines(bank, level[1:])  # (M, P)
            distance = (1 - cosine).min(dim=0).values
            total += _resized(distance[None], size_px)[0]
        return total

    @torch.no_grad()
    def zero_map(self, tokens: Tokens, size_px: int) -> torch.Tensor:
        """Return (size_px, size_px): abnormal probabilities by text, resized level by level, summed."""
        total = torch.zeros(size_px, size_px)
        for level in tokens:
            total += _resized(self._logits(level[1:]).T, size_px).softmax(dim=0)[1]
        return total

    @torch.no_grad()
    def zero_score(self, tokens: Tokens) -> float:
        """Return the sum over levels of the mean abnormal probability."""
        return float(sum(self._logits(level[1:]).softmax(dim=-1)[:, 1].mean() for level in tokens))

    def _logits(self, patches: torch.Tensor) -> torch.Tensor:
        return torch.mm(LOGIT_SCALE * patches / patches.norm(dim=-1, keepdim=True), self._text)  # (P, 2)


def _block(block: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a block's output and its attention weights, (1, N, N), averaged over the heads."""
    y = block.ln_1(x)
    mixed, weights = block.attn(y, y, y, need_weights=True)
    x = x + mixed
    hidden: torch.Tensor = block.mlp(block.ln_2(x))
    return x + hidden, weights


def _cosines(bank: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    rows = bank / bank.norm(dim=1, keepdim=True).clamp(min=1e-8)
    columns = patches / patches.norm(dim=1, keepdim=True).clamp(min=1e-8)
    return torch.mm(rows, columns.T)


def _resized(values: torch.Tensor, size_px: int) -> torch.Tensor:
    """Resize (C, P) to (C, size_px, size_px), corner-aligned."""
    grid = round(values.shape[-1] ** 0.5)
    square = values.reshape(1, -1, grid, grid)
    return F.interpolate(square, size=size_px, mode="bilinear", align_corners=True)[0]
