"""The published protocol (arXiv 2403.12570) on the BMAD layout, to repeat the paper's table.

Scores are scaled over the whole test set and the best epoch is chosen on it, both as published: these
figures compare with the paper's and say nothing of a site. In zero-shot the published code tests five times
an epoch, this once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from adapters import reference as ref
from adapters.backbone import Backbone
from adapters.model import MVFA, Family, Tokens, default_levels, text_features
from training.augment import PUBLISHED_VIEWS, augment
from training.bmad import CLASSES, BmadSet, draw_shots, read_bmad
from training.errors import DataError
from training.loop import published_epoch
from training.metrics import auroc, tally
from training.options import Progress
from training.pixels import PixelCase, edges_of, pixel_tally

EPOCHS = 50
ZERO_SHOT_RATE = 1e-4


@dataclass(frozen=True, slots=True)
class ProtocolResult:
    """AUROC of one class, as published and as they would be without choosing on the test set.

    Parameters
    ----------
    class_name
        Key of :data:`CLASSES`.
    shots
        Per class; 0 for zero-shot.
    image_auroc, pixel_auroc
        Of the epoch that is best on the test set (sum of both); pixel is None without masks.
    best_epoch
        From 1.
    last_image_auroc, last_pixel_auroc
        Of the last epoch: nothing was chosen on the test set.
    chosen
        File names of the shots, normal then abnormal.
    """

    class_name: str
    shots: int
    image_auroc: float
    pixel_auroc: float | None
    best_epoch: int
    last_image_auroc: float
    last_pixel_auroc: float | None
    chosen: tuple[str, ...] = ()


def evaluate_mvfa(
    root: Path,
    backbone: Backbone,
    class_name: str,
    shots: int,
    *,
    names: tuple[Sequence[str], Sequence[str]] | None = None,
    epochs: int = EPOCHS,
    seed: int = 111,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> ProtocolResult:
    """Repeat the published few-shot or zero-shot protocol for one class.

    Parameters
    ----------
    root
        Folder of the ``<Class>_AD`` folders.
    backbone
        ViT-L-14-336 at 240 px with plain GELU for the paper's table; any other for a comparison.
    class_name
        Key of :data:`CLASSES`.
    shots
        Images per class; 0 trains on the test images of the *other* classes and scores by text alone.
    names
        File names of the normal and abnormal shots, such as the published lists; None draws by ``seed``.
    epochs, seed
        Of the fit.
    batch_size
        Of the scoring; the fit takes one image at a time, as published.
    progress
        Called with stage, epoch from 1, epochs and mean loss.

    Raises
    ------
    DataError
        The class is unknown, a folder is missing or has too few images.
    """
    if class_name not in CLASSES:
        raise DataError(f"class {class_name!r} is none of {', '.join(CLASSES)}")
    prompt, masked = CLASSES[class_name]
    text = text_features(backbone, prompt)
    test = read_bmad(root, class_name, "test", backbone.image_size_px)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MVFA(backbone, default_levels(backbone.blocks), ("seg", "det"), "published")
    # Adapters act after the first level's block: everything before it is computed once.
    stem = _stem(model, test.images, batch_size)
    losses, fitted, banks_of = (
        _few_shot(root, model, class_name, shots, names, epochs, seed, batch_size)
        if shots
        else _zero_shot(root, model, class_name, epochs, seed, batch_size)
    )
    results: list[tuple[float, float | None]] = []
    for epoch, loss in enumerate(losses, start=1):
        if progress is not None:
            progress("published protocol", epoch, epochs, loss)
        results.append(_score(model, stem, test, text, banks_of(), masked, batch_size))
    sums = [image + (pixel or 0.0) for image, pixel in results]
    best = max(range(len(sums)), key=lambda i: (sums[i], i))
    return ProtocolResult(class_name, shots, *results[best], best + 1, *results[-1], fitted)


Rounds = Iterator[float]
Banks = dict[Family, list[torch.Tensor]]


def _few_shot(
    root: Path,
    model: MVFA,
    class_name: str,
    shots: int,
    names: tuple[Sequence[str], Sequence[str]] | None,
    epochs: int,
    seed: int,
    batch_size: int,
) -> tuple[Rounds, tuple[str, ...], _BankOf]:
    chosen = names or draw_shots(root, class_name, shots, seed)
    data = read_bmad(root, class_name, "valid", model.backbone.image_size_px, chosen)
    views = augment(data.images, PUBLISHED_VIEWS)
    masks = None
    if data.masks is not None:
        masks = (augment(data.masks[:, None], PUBLISHED_VIEWS)[:, 0] > 0.5).float()
    labels = data.labels.repeat(len(PUBLISHED_VIEWS))
    stem = _stem(model, views, batch_size)
    text = text_features(model.backbone, CLASSES[class_name][0])
    losses = rounds(model, [(stem, masks, labels, text)], epochs, seed, 1e-3)
    return losses, data.names, _BankOf(model, stem[labels == 0], batch_size)


def _zero_shot(
    root: Path, model: MVFA, class_name: str, epochs: int, seed: int, batch_size: int
) -> tuple[Rounds, tuple[str, ...], _BankOf]:
    sets: list[TaskSet] = []
    for other, (prompt, _) in CLASSES.items():
        if other == class_name or not (root / f"{other}_AD").is_dir():
            continue
        data = read_bmad(root, other, "test", model.backbone.image_size_px)
        text = text_features(model.backbone, prompt)
        sets.append((_stem(model, data.images, batch_size), data.masks, data.labels, text))
    if not sets:
        raise DataError("zero-shot needs at least one other <Class>_AD folder to train on")
    return rounds(model, sets, epochs, seed, ZERO_SHOT_RATE), (), _BankOf(model, None, batch_size)


# Stem tokens, masks or None, labels, text features.
TaskSet = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]


def rounds(model: MVFA, sets: Sequence[TaskSet], epochs: int, seed: int, rate: float) -> Rounds:
    """Train epoch by epoch; of several sets, in random order with one optimiser per family."""
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.Adam(model.adapters(f).parameters(), lr=rate, betas=(0.5, 0.999)) for f in model.families
    ]
    generator = torch.Generator().manual_seed(seed)
    device = model.backbone.device
    index = [(s, i) for s, (stem, *_) in enumerate(sets) for i in range(len(stem))]
    for _ in range(epochs):
        losses: list[float] = []
        for at in torch.randperm(len(index), generator=generator).tolist():
            s, i = index[at]
            stem, masks, labels, text = sets[s]
            mask = None if masks is None else masks[i : i + 1].to(device)
            used = optimisers if masks is not None else optimisers[model.families.index("det") :]
            losses += published_epoch(
                model,
                stem[i : i + 1].to(device),
                mask,
                labels[i : i + 1].to(device),
                text,
                [0],
                optimisers=used,
            )
        yield sum(losses) / len(losses)


class _BankOf:
    """The memory banks of the current adapters; empty for zero-shot."""

    def __init__(self, model: MVFA, stem: torch.Tensor | None, batch_size: int) -> None:
        self.model, self.stem, self.batch_size = model, stem, batch_size

    def __call__(self) -> Banks:
        if self.stem is None:
            return {}
        parts: dict[Family, list[list[torch.Tensor]]] = {
            f: [[] for _ in self.model.levels] for f in _FAMILIES
        }
        for tokens in _tokens(self.model, self.stem, self.batch_size):
            for family, levels in parts.items():
                for level, x in zip(levels, tokens.of(family), strict=True):
                    level.append(x.flatten(0, 1))
        return {family: [torch.cat(level) for level in levels] for family, levels in parts.items()}


_FAMILIES: tuple[Family, ...] = ("seg", "det")


def _score(
    model: MVFA,
    stem: torch.Tensor,
    test: BmadSet,
    text: torch.Tensor,
    banks: Banks,
    masked: bool,
    batch_size: int,
) -> tuple[float, float | None]:
    """Return image and pixel AUROC of the test set, scored as published."""
    size = model.backbone.image_size_px
    zero_maps, few_maps, zero_scores, few_scores = [], [], [], []
    for tokens in _tokens(model, stem, batch_size):
        seg, det = ([model.patches(x) for x in tokens.of(f)] for f in _FAMILIES)
        zero_scores.append(ref.zero_score(det, text).cpu())
        if banks:
            few = ref.few_map(ref.few_levels(det, banks["det"]), size)
            few_scores.append(few.flatten(1).mean(1).cpu())
        if masked:
            zero_maps.append(ref.zero_map(ref.zero_logits(seg, text), size).cpu())
            if banks:
                few_maps.append(ref.few_map(ref.few_levels(seg, banks["seg"]), size).cpu())
    scores = _fused(zero_scores, few_scores)
    if not masked:
        return _auroc(scores.numpy(), test.labels.numpy()), None
    maps = _fused(zero_maps, few_maps)
    # Few-shot takes the map's maximum as the image score, zero-shot the detection family's text score.
    images = ref.image_score(maps) if banks else scores
    assert test.masks is not None  # masked sets are read with masks
    return _auroc(images.numpy(), test.labels.numpy()), _pixel_auroc(maps.numpy(), test.masks.numpy())


def _fused(zero: Sequence[torch.Tensor], few: Sequence[torch.Tensor]) -> torch.Tensor:
    if few:
        return ref.fuse(torch.cat(list(zero)), torch.cat(list(few)))
    return ref.set_minmax(torch.cat(list(zero)))


def _auroc(scores: NDArray[np.float32], labels: NDArray[np.float32]) -> float:
    counts = tally(scores, labels > 0.5, ["all"] * len(labels))
    return float(auroc(counts, np.ones((1, 1)))[0])


def _pixel_auroc(maps: NDArray[np.float32], masks: NDArray[np.float32]) -> float:
    truth = masks > 0.5
    edges = edges_of(list(maps), [maps[truth]])
    cases = (PixelCase("all", m, t) for m, t in zip(maps, truth, strict=True))
    return float(auroc(pixel_tally(cases, edges, ["all"]), np.ones((1, 1)))[0])


def _tokens(model: MVFA, stem: torch.Tensor, batch_size: int) -> Iterator[Tokens]:
    with torch.no_grad():
        for part in torch.split(stem, batch_size):
            yield model.head(part.to(model.backbone.device))


def _stem(model: MVFA, images: torch.Tensor, batch_size: int) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model.stem(part).cpu() for part in torch.split(images, batch_size)])
