"""The published scoring and ours on the same images, interleaved: core-seconds per slice and decisions.

Both see the same pixels, adapters, text and memory; each group of images is scored by one, then the other.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from adapters import reference as ref
from adapters.device import multiplies_bf16
from adapters.memory import bank, coreset, distance
from adapters.model import MVFA
from benchmarks import scoring_setup as setup
from benchmarks.published_scoring import PublishedScoring
from benchmarks.scoring_setup import spend
from training.augment import PUBLISHED_VIEWS, augment

SHOTS = 4
CORESET = 0.1
PUBLISHED, FULL, SMALL = "published", "ours, full bank", "ours, coreset"


@dataclass
class Side:
    """What one way of scoring said of all images, and what it took."""

    few: list[torch.Tensor]
    zero: list[torch.Tensor]
    core_s: float = 0.0
    wall_s: float = 0.0


class Contest:
    """Both scorings of one model.

    Parameters
    ----------
    model, size_px
        open_clip name and side of the input.
    precision
        Of ours: ``auto``, ``fp32`` or ``bf16``.
    """

    def __init__(self, model: str, size_px: int, precision: str = "auto") -> None:
        self.backbone, self.net = setup.large_model(model, size_px, "cpu", "fp32")
        self.size_px = size_px
        self.text = setup.short_text(self.backbone, "Breast ultrasound")
        self.slow = PublishedScoring(self.net, self.text)
        if precision == "bf16" or (precision == "auto" and multiplies_bf16()):
            self.backbone.use_precision("bf16")

    def run(self, task: str, count: int, batch: int, views: int = len(PUBLISHED_VIEWS)) -> dict[str, Any]:
        """Score ``count`` normal and ``count`` abnormal test images of a task both ways.

        With fewer ``views`` the bank is filled up to its published size with random rows: they cost what
        others cost and, at right angles to every token, are nobody's neighbour.
        """
        shots = [setup.read_image(p) for p in setup.pictures(task, "train", "normal", SHOTS)]
        normals = torch.stack([ref.preprocess_image(image, self.size_px) for image in shots])
        seen = ref.build_banks(self.net, augment(normals, PUBLISHED_VIEWS[:views]), "seg", batch)
        size = len(seen[0]) // views * len(PUBLISHED_VIEWS)
        banks = [_filled(level, size) for level in seen]
        rows = [bank(level) for level in banks]
        kept = [coreset(bank(level), round(CORESET * len(level)), seed=0) for level in seen]
        small = [_filled(level, round(CORESET * size)) for level in kept]
        pairs = [
            (path, label == "abnormal")
            for label in ("normal", "abnormal")
            for path in setup.pictures(task, "test", label, count)
        ]
        sides = {name: Side([], []) for name in (PUBLISHED, FULL, SMALL)}
        stages: dict[str, float] = defaultdict(float)
        for start in range(0, len(pairs), batch):
            group = [setup.read_image(path) for path, _ in pairs[start : start + batch]]
            for image in group:
                _, spent = spend(lambda image=image: self._published(image, banks, sides[PUBLISHED]))  # type: ignore[misc]
                sides[PUBLISHED].core_s += spent.core_s
                sides[PUBLISHED].wall_s += spent.wall_s
            self._ours(group, rows, small, sides, stages)
            done = min(start + batch, len(pairs))
            each = ", ".join(f"{name} {side.core_s / done:.3f}" for name, side in sides.items())
            sys.stderr.write(f"benchmark: {task} {done}/{len(pairs)}, core-s per slice: {each}\n")
        found = _decisions(task, pairs, sides)
        return {
            "task": task,
            "images": len(pairs),
            "batch": batch,
            "bank_rows": len(rows[0]),
            "views": views,
            "coreset_rows": len(small[0]),
            "precision": self.backbone.precision,
            "core_s_per_slice": {name: side.core_s / len(pairs) for name, side in sides.items()},
            "wall_s_per_slice": {name: side.wall_s / len(pairs) for name, side in sides.items()},
            "stages_core_s_per_slice": {name: value / len(pairs) for name, value in stages.items()},
            **found,
        }

    def _published(self, image: Any, banks: list[torch.Tensor], side: Side) -> None:
        tokens = self.slow.tokens(ref.preprocess_image(image, self.size_px)[None])
        side.few.append(self.slow.few_map(tokens.seg, banks, self.size_px))
        side.zero.append(self.slow.zero_map(tokens.seg, self.size_px))

    def _ours(
        self,
        group: list[Any],
        rows: list[torch.Tensor],
        small: list[torch.Tensor],
        sides: dict[str, Side],
        stages: dict[str, float],
    ) -> None:
        """Score a group once; each memory's share is added to the side that uses it alone."""
        images, prepared = spend(
            lambda: torch.stack([ref.preprocess_image(image, self.size_px) for image in group])
        )
        patches, modelled = spend(lambda: _patches(self.net, images))
        zero, texted = spend(lambda: ref.zero_map(ref.zero_logits(patches, self.text), self.size_px))
        for name, memory in ((FULL, rows), (SMALL, small)):
            low, remembered = spend(lambda memory=memory: few_levels(patches, memory))  # type: ignore[misc]
            few, resized = spend(lambda low=low: ref.few_map(low, self.size_px))  # type: ignore[misc]
            side = sides[name]
            side.few += list(few)
            side.zero += list(zero)
            parts = (prepared, modelled, texted, remembered, resized)
            side.core_s += sum(part.core_s for part in parts)
            side.wall_s += sum(part.wall_s for part in parts)
            stages[f"memory, {name}"] += remembered.core_s
            stages[f"resizing, {name}"] += resized.core_s
        stages["preprocessing"] += prepared.core_s
        stages["model"] += modelled.core_s
        stages["text and its maps"] += texted.core_s


def _filled(rows: torch.Tensor, size: int) -> torch.Tensor:
    """Append random unit rows up to ``size``."""
    generator = torch.Generator().manual_seed(0)
    more = torch.randn(size - len(rows), rows.shape[1], generator=generator)
    return torch.cat([rows, torch.nn.functional.normalize(more, dim=-1)])


@torch.no_grad()
def _patches(net: MVFA, images: torch.Tensor) -> list[torch.Tensor]:
    return [net.patches(tokens) for tokens in net(images).seg]


def few_levels(patches: list[torch.Tensor], memory: list[torch.Tensor]) -> torch.Tensor:
    """Return (B, L, g, g): distances of (B, P, D) patches from unit rows."""
    far = [distance(p, rows) for p, rows in zip(patches, memory, strict=True)]
    grid = round(far[0].shape[-1] ** 0.5)
    stacked = torch.stack(far, dim=1)  # (B, L, P)
    return stacked.reshape(*stacked.shape[:2], grid, grid)


def _decisions(task: str, pairs: list[Any], sides: dict[str, Side]) -> dict[str, Any]:
    """Fuse over the set as published; compare maps, image scores and both AUROCs with the published."""
    positive = np.array([abnormal for _, abnormal in pairs])
    fused = {n: ref.fuse(torch.stack(s.zero), torch.stack(s.few)) for n, s in sides.items()}
    scores = {n: ref.image_score(m).numpy() for n, m in fused.items()}
    masks = _masks(task, pairs, fused[PUBLISHED].shape[-1])
    out: dict[str, Any] = {"image_auroc": {n: setup.auroc(s, positive) for n, s in scores.items()}}
    if masks is not None:
        out["pixel_auroc"] = {n: setup.auroc(m.numpy().ravel(), masks.ravel()) for n, m in fused.items()}
    out["largest_score_difference"] = {
        n: float(np.abs(s - scores[PUBLISHED]).max()) for n, s in scores.items() if n != PUBLISHED
    }
    out["mean_map_difference"] = {
        n: float((m - fused[PUBLISHED]).abs().mean()) for n, m in fused.items() if n != PUBLISHED
    }
    out["largest_map_difference"] = {
        n: float((m - fused[PUBLISHED]).abs().max()) for n, m in fused.items() if n != PUBLISHED
    }
    return out


def _masks(task: str, pairs: list[Any], size_px: int) -> Any:
    folder = setup.IMAGES / task / "test" / "mask"
    if not folder.is_dir():
        return None
    masks = []
    for path, abnormal in pairs:
        known = folder / path.name
        if abnormal and known.exists():
            grey = setup.read_image(known)[..., 0]
            masks.append(ref.preprocess_mask(np.ascontiguousarray(grey), size_px)[0].numpy() > 0.5)
        else:
            masks.append(np.zeros((size_px, size_px), dtype=bool))
    return np.stack(masks)
