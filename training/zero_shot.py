"""Zero-shot: train on some tasks, evaluate on one that was left out, by text alone (arXiv 2403.12570)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from adapters.backbone import Backbone
from adapters.model import MVFA, abnormal_probability, default_levels, text_features
from adapters.scorer import replicate
from training.cases import SiteData
from training.errors import DataError
from training.evaluate import SPECIFICITY, Evaluation, evaluate_records
from training.options import Progress
from training.pool import Pool, read_pool
from training.protocol_mvfa import ZERO_SHOT_RATE, TaskSet, rounds
from training.records import Record

EPOCHS = 10


def leave_out(
    tasks: Mapping[str, tuple[SiteData, str]],
    left_out: str,
    backbone: Backbone,
    *,
    epochs: int = EPOCHS,
    specificity: float = SPECIFICITY,
    alpha: float = 0.1,
    seed: int = 0,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Evaluation:
    """Fit adapters on all tasks but one with the published zero-shot recipe, and evaluate on that one.

    No image of the task left out is used before the evaluation: there is no memory, no calibration and no
    choice of the epoch. Its map threshold is 0.5, and the share of flagged patients is not meaningful.

    Parameters
    ----------
    tasks
        By name: the cases, and what the prompts name.
    left_out
        One of the names.
    backbone
        Frozen.
    epochs, seed, batch_size
        Of the fit (one image at a time, as published) and the scoring.
    specificity, alpha
        As in :func:`~training.evaluate.evaluate_records`.
    progress
        Called with stage, epoch from 1, epochs and mean loss.

    Raises
    ------
    DataError
        The name is unknown, there is no other task, or a class is missing in the one left out.
    """
    if left_out not in tasks:
        raise DataError(f"task {left_out!r} is none of {', '.join(tasks)}")
    if len(tasks) < 2:
        raise DataError("zero-shot needs at least one other task to train on")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MVFA(backbone, default_levels(backbone.blocks), ("seg", "det"), "published")
    sets = [
        _set(model, read_pool(site, backbone), text_features(backbone, name), batch_size)
        for task, (site, name) in tasks.items()
        if task != left_out
    ]
    for epoch, loss in enumerate(rounds(model, sets, epochs, seed, ZERO_SHOT_RATE), start=1):
        if progress is not None:
            progress("zero-shot", epoch, epochs, loss)
    site, class_name = tasks[left_out]
    records = _records(model, read_pool(site, backbone), text_features(backbone, class_name), batch_size)
    return evaluate_records(records, alpha=alpha, slice_threshold=0.5, specificity=specificity, seed=seed)


def _set(model: MVFA, pool: Pool, text: torch.Tensor, batch_size: int) -> TaskSet:
    """Return what one task is trained with; with masks its abnormal images without one are left out."""
    masked = any(mask is not None for mask in pool.data.masks)
    rows = [i for i, m in enumerate(pool.data.masks) if not masked or m is not None or not pool.labels[i]]
    images = pool.data.images[rows]
    with torch.no_grad():
        stem = torch.cat([model.stem(replicate(x)).cpu() for x in torch.split(images, batch_size)])
    masks = (pool.data.squares[rows] > 0.5).float() if masked else None
    return stem, masks, torch.from_numpy(pool.labels[rows]).float(), text


def _records(model: MVFA, pool: Pool, text: torch.Tensor, batch_size: int) -> list[Record]:
    """Score by text: the map by the segmentation family, the image by the detection family, level means."""
    maps, scores = [], []
    grid = model.backbone.grid
    with torch.no_grad():
        for x in torch.split(pool.data.images, batch_size):
            tokens = model(replicate(x))
            seg, det = (
                torch.stack([abnormal_probability(model.patches(t), text) for t in levels]).mean(0)
                for levels in (tokens.seg, tokens.det)
            )
            maps.append(seg.reshape(-1, grid, grid).cpu().numpy())
            scores.append(det.mean(dim=1).cpu().numpy())
    entries = zip(
        pool.cases, pool.shots, np.concatenate(scores), pool.data.boxes, np.concatenate(maps), strict=True
    )
    return [Record(case, shot, float(score), box, m, 0, 0.5) for case, shot, score, box, m in entries]
