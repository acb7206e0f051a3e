"""All of MVFA: adapters in a frozen CLIP, level tokens, text features (Huang et al., arXiv 2403.12570).

Shapes: B images, N = 1 + P tokens (prefix tokens first), W transformer width, D embedding, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from adapters.backbone import Backbone
from adapters.prompts import prompts

Family = Literal["seg", "det"]
Mix = Literal["published", "renormalised"]

# The published logits: 100 x cosine, the exponential of CLIP's largest logit scale.
LOGIT_SCALE = 100.0


class Adapter(nn.Module):
    """One bottleneck without bias: m = LeakyReLU(A x) is the level token, y = LeakyReLU(B m) goes back."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.fc1 = nn.Sequential(nn.Linear(width, bottleneck, bias=False), nn.LeakyReLU())
        self.fc2 = nn.Sequential(nn.Linear(bottleneck, width, bias=False), nn.LeakyReLU())

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return m (B, N, D) and y (B, N, W) of x (B, N, W)."""
        m = self.token(x)  # (B, N, D)
        return m, self.fc2(m)  # (B, N, W)

    def token(self, x: torch.Tensor) -> torch.Tensor:
        """Return m (B, N, D) alone."""
        m: torch.Tensor = self.fc1(x)
        return m


@dataclass(frozen=True, slots=True)
class Tokens:
    """What one forward pass yields.

    Parameters
    ----------
    seg, det
        Per level (B, N, D), prefix tokens first, not normalised; empty where the family is absent.
    pooled
        (B, D) the image embedding after the last adapter, or None where it was not asked for.
    """

    seg: list[torch.Tensor]
    det: list[torch.Tensor]
    pooled: torch.Tensor | None = None

    def of(self, family: Family) -> list[torch.Tensor]:
        """Return the level tokens of one family."""
        return self.seg if family == "seg" else self.det


class MVFA(nn.Module):
    """A frozen backbone with adapters after some blocks.

    Parameters
    ----------
    backbone
        Any :class:`~adapters.backbone.Backbone`; its weights are no part of this module's state.
    levels
        Blocks (from 1) after which the adapters sit, increasing.
    families
        Which adapters exist. ``seg`` gives maps, ``det`` gives image scores.
    mix
        ``published``: x <- 0.8 x + 0.1 y_seg + 0.1 y_det; ``renormalised``: the weights of the families
        that exist are scaled to a sum of one, so that an absent family adds nothing and takes nothing away.
    """

    def __init__(
        self,
        backbone: Backbone,
        levels: Sequence[int],
        families: Sequence[Family] = ("seg", "det"),
        mix: Mix = "published",
    ) -> None:
        super().__init__()
        _check(levels, families, backbone.blocks)
        self.backbone = backbone
        self.levels = tuple(levels)
        self.families: tuple[Family, ...] = tuple(families)
        self.mix = mix
        for family in self.families:
            stack = nn.ModuleList(Adapter(backbone.width, backbone.embed_dim) for _ in levels)
            self.add_module(f"{family}_adapters", stack)
        self.to(backbone.device)

    def adapters(self, family: Family) -> nn.ModuleList:
        """Return the adapters of one family, one per level."""
        stack = getattr(self, f"{family}_adapters")
        assert isinstance(stack, nn.ModuleList)  # add_module above
        return stack

    def stem(self, images: torch.Tensor) -> torch.Tensor:
        """Return (B, N, W), the output of the first level's block: no adapter has acted, it can be cached."""
        x = self.backbone.embed(images)  # (B, N, W)
        return self.backbone.run_blocks(x, 0, self.levels[0])

    def head(self, x: torch.Tensor, *, pooled: bool = False) -> Tokens:
        """Go on from :meth:`stem` and return the level tokens.

        Parameters
        ----------
        x
            (B, N, W) output of block ``levels[0]``.
        pooled
            Also run the blocks after the last level and project the class token.
        """
        out: dict[Family, list[torch.Tensor]] = {"seg": [], "det": []}
        for i, level in enumerate(self.levels):
            if i:
                x = self.backbone.run_blocks(x, self.levels[i - 1], level)
            if i == len(self.levels) - 1 and not pooled:
                # Nobody reads what the last adapters would put back.
                with self._products():
                    for family in self.families:
                        out[family].append(self._adapter(family, i).token(x).float())
                return Tokens(out["seg"], out["det"])
            back: list[torch.Tensor] = []
            with self._products():
                for family in self.families:
                    m, y = self._adapter(family, i)(x)
                    out[family].append(m.float())
                    back.append(y)
            x = self._mix(x, back)
        x = self.backbone.run_blocks(x, self.levels[-1], self.backbone.blocks)
        return Tokens(out["seg"], out["det"], self.backbone.pool(x))

    def forward(self, images: torch.Tensor, *, pooled: bool = False) -> Tokens:
        """Return the level tokens of (B, 3, H, W) images in [0, 1], no mean or deviation removed."""
        return self.head(self.stem(images), pooled=pooled)

    def _adapter(self, family: Family, i: int) -> Adapter:
        adapter = self.adapters(family)[i]
        assert isinstance(adapter, Adapter)  # made in __init__
        return adapter

    def _products(self) -> AbstractContextManager[object]:
        """The backbone's precision for scoring; a fit keeps fp32 for its gradients."""
        return nullcontext() if torch.is_grad_enabled() else self.backbone.cast()

    def _mix(self, x: torch.Tensor, back: list[torch.Tensor]) -> torch.Tensor:
        share = 0.8 + 0.1 * len(back) if self.mix == "renormalised" else 1.0
        x = (0.8 / share) * x
        for y in back:
            x = x + (0.1 / share) * y
        return x  # (B, N, W)

    def patches(self, tokens: torch.Tensor) -> torch.Tensor:
        """Drop the prefix tokens: (B, N, D) to (B, P, D)."""
        return tokens[:, self.backbone.prefix :]


def text_features(backbone: Backbone, class_name: str) -> torch.Tensor:
    """Return the (D, 2) unit text features of a class: column 0 normal, column 1 abnormal.

    Each prompt's embedding is normalised, the group is averaged, the average is normalised.
    """
    columns = []
    for group in prompts(class_name):
        embedded = F.normalize(backbone.encode_text(group), dim=-1)  # (prompts, D)
        columns.append(F.normalize(embedded.mean(dim=0), dim=0))
    return torch.stack(columns, dim=1)  # (D, 2)


def text_logits(tokens: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Return 100 x cosine of (..., D) tokens with the (D, 2) text features: (..., 2) float32."""
    return LOGIT_SCALE * F.normalize(tokens.float(), dim=-1) @ text.float()


def abnormal_probability(tokens: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Return the (...) probability of the abnormal column for (..., D) tokens."""
    return text_logits(tokens, text).softmax(dim=-1)[..., 1]


def default_levels(blocks: int) -> tuple[int, ...]:
    """Return the quarter depths, (6, 12, 18, 24) for 24 blocks; of fewer than four only the last."""
    if blocks < 4:
        return (blocks,)
    return tuple(sorted({max(1, round(blocks * q / 4)) for q in (1, 2, 3, 4)}))


def _check(levels: Sequence[int], families: Sequence[str], blocks: int) -> None:
    if not levels or list(levels) != sorted(set(levels)) or levels[0] < 1 or levels[-1] > blocks:
        raise ValueError(f"levels {list(levels)} must increase within 1..{blocks}, the backbone's blocks")
    if not families or len(set(families)) != len(families) or set(families) - {"seg", "det"}:
        raise ValueError(f"families {list(families)} must be 'seg', 'det' or both")
