"""The two training loops: the published one, step for step, and ours."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from adapters.model import MVFA, Family, abnormal_probability, text_logits
from training.losses import dice, focal, image_term, published_image_term
from training.stems import Stems
from training.whiten import fold, whiten

# Lesions cover few patches: focal alone would be a hundredth of Dice.
FOCAL_WEIGHT = 10.0

StepCallback = Callable[[int, float], None]


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Everything that one fit learns from.

    Parameters
    ----------
    stem
        (B, N, W) tokens before the first adapter, computed once.
    masks
        (B, H, W) 0 or 1 on the model's input, or None for a set without masks.
    labels
        (B,) float, 1 abnormal.
    valid
        (B, P) bool: patches inside the image.
    """

    stem: torch.Tensor | Stems
    masks: torch.Tensor | None
    labels: torch.Tensor
    valid: torch.Tensor


def published_epoch(
    model: MVFA,
    images: torch.Tensor | Stems,
    masks: torch.Tensor | None,
    labels: torch.Tensor,
    text: torch.Tensor,
    order: Sequence[int],
    *,
    optimisers: list[torch.optim.Optimizer] | None = None,
    after_step: StepCallback | None = None,
) -> list[float]:
    """Train one epoch as published: batch 1, Adam 1e-3, betas (0.5, 0.999), one optimiser per family.

    Parameters
    ----------
    model
        Trained in place; without masks the segmentation family stays as it is.
    images
        (B, 3, H, W), or (B, N, W) stem tokens.
    masks
        (B, H, W) 0 or 1, of any type, or None: then the image term trains the detection family alone.
    labels
        (B,) float, 1 abnormal.
    text
        (D, 2) text features.
    order
        Indices in the order of visit.
    optimisers
        Of an earlier epoch.
    after_step
        Called with the step's number and loss.

    Returns
    -------
    list of float
        The loss of each step.
    """
    families: tuple[Family, ...] = ("seg", "det") if masks is not None else ("det",)
    optimisers = optimisers if optimisers is not None else published_optimisers(model, families)
    losses: list[float] = []
    for step, i in enumerate(order):
        x = images[i : i + 1]
        tokens = model(x) if x.ndim == 4 else model.head(x)
        total = torch.zeros((), device=text.device)
        for level in range(len(model.levels)):
            probability = abnormal_probability(model.patches(tokens.det[level]), text).mean(dim=1)  # (1,)
            total = total + published_image_term(probability, labels[i : i + 1]).sum()
            if masks is not None:
                p = probability_map(model.patches(tokens.seg[level]), text, masks.shape[-1], corners=True)
                mask = masks[i : i + 1].float()
                total = total + (focal(p, mask) + dice(p, mask)).sum()
        for optimiser in optimisers:
            optimiser.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        for optimiser in optimisers:
            optimiser.step()
        losses.append(float(total.detach()))
        if after_step is not None:
            after_step(step, losses[-1])
    return losses


def published_optimisers(model: MVFA, families: Sequence[Family]) -> list[torch.optim.Optimizer]:
    """Return the published optimiser of each family."""
    return [torch.optim.Adam(model.adapters(f).parameters(), lr=1e-3, betas=(0.5, 0.999)) for f in families]


def probability_map(
    patches: torch.Tensor, text: torch.Tensor, size_px: int, *, corners: bool
) -> torch.Tensor:
    """Return (B, H, W) abnormal probability of (B, P, D): logits resized, then softmax.

    ``corners`` aligns corners as published; without it patch centres stay where they are.
    """
    logits = text_logits(patches, text).transpose(1, 2)  # (B, 2, P)
    grid = round(logits.shape[-1] ** 0.5)
    logits = logits.reshape(len(logits), 2, grid, grid)
    return F.interpolate(logits, (size_px, size_px), mode="bilinear", align_corners=corners).softmax(1)[:, 1]


def train_epochs(
    model: MVFA,
    data: TrainingSet,
    text: torch.Tensor,
    *,
    epochs: int,
    seed: int,
    batch_size: int,
    learning_rate: float,
) -> Generator[float, None, None]:
    """Train in place, batched, with a proper image term; yield the mean loss of each epoch.

    Losses are computed at patch resolution: a mask's fraction of a patch says as much as its upsampled
    outline and costs a hundredth. The learning rate falls along a cosine.
    """
    whiten(model, data.stem)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=1e-4)
    steps = epochs * -(-len(data.stem) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = torch.Generator().manual_seed(seed)
    try:
        for _ in range(epochs):
            losses: list[float] = []
            for rows in torch.split(torch.randperm(len(data.stem), generator=generator), batch_size):
                loss = batch_loss(model, data, rows.to(data.stem.device), text)
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                losses.append(float(loss.detach()))
            yield sum(losses) / len(losses)
    finally:
        # Also when the fit is stopped early: the model is left with ordinary matrices.
        fold(model)


def batch_loss(model: MVFA, data: TrainingSet, rows: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Return the sum over levels of focal + Dice (seg) and of the proper image term (det).

    Dice is taken over the whole batch: of one normal image it would say nothing but "predict nothing".
    """
    tokens = model.head(data.stem[rows].float())
    labels, valid = data.labels[rows], data.valid[rows]
    total = torch.zeros((), device=text.device)
    for seg in tokens.seg:
        assert data.masks is not None  # fit() builds a model with seg only when there are masks
        p = abnormal_probability(model.patches(seg), text) * valid  # (B, P)
        target = data.masks[rows]  # (B, P) fraction covered
        total = total + FOCAL_WEIGHT * focal(p, target.round()).mean()
        total = total + dice(p.reshape(1, -1), target.reshape(1, -1)).sum()
    for det in tokens.det:
        p = abnormal_probability(model.patches(det), text)
        total = total + image_term((p * valid).sum(1) / valid.sum(1), labels).mean()
    return total
