"""The shots of one fit: prepared once, fitted on subsets, scored by models that have not seen them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from adapters.backbone import Backbone
from adapters.model import MVFA, Family, abnormal_probability, default_levels, text_features
from adapters.scorer import patch_terms, replicate
from training.augment import PUBLISHED_VIEWS, SAFE_VIEWS, augment
from training.loop import TrainingSet, published_epoch, published_optimisers, train_epochs
from training.options import EPOCHS, Options, Progress, Recipe
from training.prepared import Image, Mask, Prepared
from training.stems import Stems, StemStore, draw

__all__ = ["EPOCHS", "Expert", "Image", "Mask", "Options", "Prepared", "Progress", "Recipe", "Shots"]
Rows = NDArray[np.intp]
Maps = NDArray[np.float32]
# Called after each epoch with the model and the epoch from 1; True stops the fit.
Watch = Callable[[MVFA, int], bool]
_PLAIN = -1


@dataclass(frozen=True, slots=True)
class Expert:
    """A fitted model.

    Parameters
    ----------
    model
        In eval mode, without gradients.
    memory
        Per level (M, D) unit rows of its normals.
    epochs
        How many it was fitted for.
    interrupted
        Whether Ctrl-C ended the fit.
    chosen
        Whether the number of epochs was chosen on held-out patients.
    """

    model: MVFA
    memory: list[torch.Tensor]
    epochs: int = 0
    interrupted: bool = False
    chosen: bool = False


class Shots:
    """All shots of one fit; their stem tokens are computed once, experts are fitted on subsets of them.

    Parameters
    ----------
    backbone
        Frozen.
    data
        The images with their masks.
    labels
        (n,) 0 normal, 1 abnormal.
    class_name
        What the prompts name.
    options
        How to fit.
    spill
        Folder for tokens that memory has no room for; None for that of temporary files.
    """

    def __init__(
        self,
        backbone: Backbone,
        data: Prepared,
        labels: Rows,
        class_name: str,
        options: Options,
        spill: Path | None = None,
    ) -> None:
        self.backbone, self.options, self.data, self.labels = backbone, options, data, labels
        self.reference = options.recipe == "reference"
        self.epochs = options.total_epochs
        self.levels = options.levels or default_levels(backbone.blocks)
        self.masked = any(mask is not None for mask in data.masks)
        self.families: tuple[Family, ...] = ("seg",) if self.masked else ("det",)
        if self.reference:
            self.families = ("seg", "det") if self.masked else ("det",)
        self.text = text_features(backbone, class_name)
        self.views = PUBLISHED_VIEWS if self.reference else SAFE_VIEWS
        # By row and view; the image itself is view -1.
        self.store = StemStore(backbone.device, spill or Path(tempfile.gettempdir()))
        self.valid = data.valid.flatten(1).to(backbone.device)  # (n, P)

    def fit(
        self,
        rows: Rows,
        stage: str,
        progress: Progress | None,
        watch: Watch | None = None,
        *,
        keep: bool = False,
    ) -> Expert:
        """Fit on some slices.

        Parameters
        ----------
        rows
            Indices; with masks in the data every abnormal one needs its own.
        stage, progress
            Whom to tell of each epoch.
        watch
            Asked after each epoch whether to stop.
        keep
            Whether Ctrl-C after the first epoch ends the fit with what it has; else it is raised.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.options.seed)
            mix: Literal["published", "renormalised"] = "published" if self.reference else "renormalised"
            model = MVFA(self.backbone, self.levels, self.families, mix)
        losses = self._published(model, rows) if self.reference else self._ours(model, rows)
        epoch, interrupted = 0, False
        try:
            for epoch, loss in enumerate(losses, start=1):
                if progress is not None:
                    progress(stage, epoch, self.epochs, loss)
                if watch is not None and watch(model, epoch):
                    break
        except KeyboardInterrupt:
            if not keep or not epoch:
                raise
            interrupted = True
        finally:
            losses.close()  # folds the whitening back into the matrices
        model.eval().requires_grad_(False)
        return Expert(model, self.memory(model, rows), epoch, interrupted)

    def terms(self, expert: Expert, rows: Rows) -> tuple[Maps, Maps]:
        """Return the two raw terms (B, g, g) of slices, as :func:`~adapters.scorer.patch_terms`."""
        parts = []
        with torch.no_grad():
            for part in np.array_split(rows, max(1, -(-len(rows) // 32))):
                tokens = expert.model.head(self.plain(part)).of(self.families[0])
                parts.append(patch_terms(expert.model, tokens, self.text, expert.memory))
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def text_maps(self, model: MVFA, rows: Rows) -> Maps:
        """Return (B, P) abnormal probability by text, mean over levels: what a fit moves directly."""
        parts = []
        with torch.no_grad():
            for part in np.array_split(rows, max(1, -(-len(rows) // 32))):
                tokens = model.head(self.plain(part)).of(self.families[0])
                levels = [abnormal_probability(model.patches(x), self.text) for x in tokens]
                parts.append(torch.stack(levels).mean(0).cpu().numpy())
        return np.concatenate(parts)

    def covered(self, rows: Rows) -> Maps:
        """Return (B, P) the share of each patch that the mask covers."""
        squares = self.data.squares[torch.from_numpy(rows)][:, None]
        return torch.nn.functional.avg_pool2d(squares, self.backbone.patch_px).flatten(1).numpy()

    def plain(self, rows: Rows) -> torch.Tensor:
        """Return (B, N, W) stem tokens of the images as they are, cached."""
        missing = [int(i) for i in rows if (int(i), _PLAIN) not in self.store]
        for part in _batches(missing, 32):
            for i, x in zip(part, self._stem(self.data.images[part]), strict=True):
                self.store.put((i, _PLAIN), x)
        return self.store.take((int(i), _PLAIN) for i in rows)

    def memory(self, model: MVFA, rows: Rows) -> list[torch.Tensor]:
        """Return the coreset per level of the valid patches of every view of the normal rows."""

        def levels(x: torch.Tensor) -> list[torch.Tensor]:
            return [model.patches(tokens) for tokens in model.head(x).of(self.families[0])]

        return self.drawn(levels, rows[self.labels[rows] == 0])

    def drawn(self, levels: Callable[[torch.Tensor], list[torch.Tensor]], rows: Rows) -> list[torch.Tensor]:
        """Return the coreset per level of the valid patches of every view of rows."""
        stem, valid = self.views_of(rows), self.valid[torch.from_numpy(rows)].repeat(len(self.views), 1)
        parts = zip(stem.split(32), torch.split(valid, 32), strict=True)
        with torch.no_grad():
            patches = ([tokens[inside] for tokens in levels(x)] for x, inside in parts)
            return draw(patches, int(valid.sum()), self.options.memory_rows, self.options.seed)

    def views_of(self, rows: Rows) -> Stems:
        """Return (V B, N, W) stem tokens of all views, view-major, cached."""
        # The last view, since Ctrl-C may come between two of them.
        missing = [int(i) for i in rows if (int(i), len(self.views) - 1) not in self.store]
        for part in _batches(missing, 8):
            views = augment(self.data.images[part][:, None], self.views)[:, 0]  # (V B, H, W)
            stem = self._stem(views)
            stem = stem.reshape(len(self.views), len(part), *stem.shape[1:])  # (V, B, N, W)
            for view, tokens in enumerate(stem):
                for i, x in zip(part, tokens, strict=True):
                    self.store.put((i, view), x)
        return Stems(self.store, [(int(i), view) for view in range(len(self.views)) for i in rows])

    def token_bytes(self, images: int, fitted: int) -> int:
        """Return what the tokens of images take, of which so many are fitted on."""
        positions = self.backbone.grid**2 + self.backbone.prefix
        return (images + fitted * len(self.views)) * positions * self.backbone.width * 4

    def _masks_of(self, rows: Rows, reduce: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Return (V B, …) of what ``reduce`` makes of (V b, H, W) masks, a few images at a time."""
        parts = []
        for part in _batches(rows.tolist(), 32):
            made = reduce(augment(self.data.squares[part][:, None], self.views)[:, 0])
            parts.append(made.reshape(len(self.views), len(part), *made.shape[1:]))
        return torch.cat(parts, dim=1).flatten(0, 1).to(self.backbone.device)

    def _labels_of(self, rows: Rows) -> torch.Tensor:
        labels = torch.from_numpy(np.tile(self.labels[rows], len(self.views)))
        return labels.float().to(self.backbone.device)

    def _stem(self, images: torch.Tensor) -> torch.Tensor:
        backbone, first = self.backbone, self.levels[0]
        with torch.no_grad():
            parts = [
                backbone.run_blocks(backbone.embed(replicate(x)), 0, first) for x in torch.split(images, 32)
            ]
        return torch.cat(parts)

    def _ours(self, model: MVFA, rows: Rows) -> Generator[float, None, None]:
        def covered(squares: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.avg_pool2d(squares[:, None], self.backbone.patch_px).flatten(1)

        masks = self._masks_of(rows, covered) if self.masked else None  # (V B, P)
        valid = self.valid[torch.from_numpy(rows)].repeat(len(self.views), 1)
        data = TrainingSet(self.views_of(rows), masks, self._labels_of(rows), valid)
        return train_epochs(
            model,
            data,
            self.text,
            epochs=self.epochs,
            seed=self.options.seed,
            batch_size=self.options.batch_size,
            learning_rate=self.options.learning_rate,
        )

    def _published(self, model: MVFA, rows: Rows) -> Generator[float, None, None]:
        stem, labels = self.views_of(rows), self._labels_of(rows)
        masks = self._masks_of(rows, lambda squares: squares > 0.5) if self.masked else None
        optimisers = published_optimisers(model, self.families)
        generator = torch.Generator().manual_seed(self.options.seed)
        for _ in range(self.epochs):
            order = torch.randperm(len(stem), generator=generator).tolist()
            losses = published_epoch(model, stem, masks, labels, self.text, order, optimisers=optimisers)
            yield sum(losses) / len(losses)


def _batches(rows: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(rows), size):
        yield list(rows[start : start + size])
