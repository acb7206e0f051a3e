"""Bundle and backbone to scores: batched, streaming, calibrated without any statistics of the test set."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from adapters.backbone import Backbone
from adapters.bundle import AdapterBundle
from adapters.calibration import Scale, p_value
from adapters.device import ToHost, automatic_batch_size, resolve_device, resolve_precision, slice_bytes
from adapters.errors import BundleError
from adapters.letterbox import Letterbox, to_square
from adapters.memory import distance
from adapters.model import MVFA, abnormal_probability
from adapters.score import SliceScore
from adapters.slices import Slice

Array = NDArray[np.float32]
Terms = tuple[torch.Tensor, torch.Tensor]
T = TypeVar("T")
U = TypeVar("U")
V = TypeVar("V")


class Scorer:
    """Scores slices with one bundle.

    Parameters
    ----------
    backbone
        The one that the bundle was fitted on; moved to ``device``.
    bundle
        What was fitted.
    device, precision
        As in :func:`~adapters.backbone.load_backbone`; ``auto`` keeps the backbone's own.
    batch_size
        Slices per forward pass; no more than these are held (on a GPU twice as many: while it computes
        one batch, the next is read). 0 chooses what fits the device's free memory.

    Raises
    ------
    BundleError
        The bundle was fitted on another backbone or input size.
    """

    def __init__(
        self,
        backbone: Backbone,
        bundle: AdapterBundle,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int = 16,
    ) -> None:
        if batch_size < 0:
            raise ValueError(f"batch_size must be at least 1, or 0 to choose it, not {batch_size}")
        bundle.check_backbone(backbone.sha256)
        shape = (bundle.image_size_px, bundle.patch_px, bool(bundle.backbone["quick_gelu"]))
        if shape != (backbone.image_size_px, backbone.patch_px, backbone.spec.quick_gelu):
            raise BundleError(
                f"bundle {bundle.name} was fitted at {bundle.image_size_px} px, patch {bundle.patch_px}, "
                f"quick_gelu {shape[2]}: load the backbone with the same values"
            )
        if device != "auto":
            backbone.to(resolve_device(device))
        if precision != "auto":
            backbone.use_precision(resolve_precision(precision, backbone.device))
        self.backbone = backbone
        self.bundle = bundle
        self._model = load_model(backbone, bundle)
        self._text = torch.from_numpy(bundle.text).to(backbone.device)
        self._memory = [torch.from_numpy(rows).to(backbone.device) for rows in bundle.memory]
        self._blank: Array | None = None
        self.batch_size = batch_size or self._fitting_batch()

    def score(self, slices: Iterable[Slice]) -> Iterator[SliceScore]:
        """Yield the score of each slice, in order, holding one batch at a time.

        Parameters
        ----------
        slices
            Normalised as the bundle's ``normalisation`` says; grids may differ.
        """
        stream = iter(slices)
        groups = iter(lambda: list(islice(stream, self.batch_size)), [])
        ahead = 1 if self.backbone.device.type == "cuda" else 0
        yield from overlapped(groups, self._launch, self._finish, ahead)

    def p_value(self, score: float) -> float:
        """Return the conformal p-value of a slice score among the bundle's held-out normals."""
        return p_value(score, self.bundle.normal_scores)

    def _fitting_batch(self) -> int:
        tokens = len(self.bundle.levels) * len(self.bundle.families)
        rows = max((len(rows) for rows in self._memory), default=0)
        size = slice_bytes(self.backbone, self.backbone.precision, tokens, rows)
        return automatic_batch_size(size, self.backbone.device)

    def _launch(self, group: Sequence[Slice]) -> tuple[list[bool], ToHost | None]:
        """Start a batch; on a GPU this returns before it is done."""
        images = to_square(
            [s.pixels for s in group],
            self.bundle.image_size_px,
            self.bundle.patch_px,
            self.backbone.device,
        )
        # Asked of the source: asking the card would wait for it.
        filled = [bool(s.pixels.any()) for s in group]
        if not any(filled):
            return filled, None
        return filled, ToHost(self._terms(images if all(filled) else images[filled]))

    def _terms(self, images: torch.Tensor) -> Terms:
        with torch.no_grad():
            tokens = self._model(replicate(images))
            return map_terms(self._model, tokens.of(self.bundle.families[0]), self._text, self._memory)

    def _fused(self, terms: ToHost) -> list[Array]:
        text, far = terms.wait()
        return [fuse(t, d, self.bundle.distance_scale) for t, d in zip(text, far, strict=True)]

    def _finish(
        self, group: Sequence[Slice], started: tuple[list[bool], ToHost | None]
    ) -> Iterator[SliceScore]:
        filled, terms = started
        maps = iter(self._fused(terms) if terms is not None else ())
        for item, has_picture in zip(group, filled, strict=True):
            patches = next(maps) if has_picture else self._blank_map()
            place = (item.sop_instance_uid, item.frame_number, item.pixels.shape)
            yield from_patches(self.bundle, *place, patches, self.backbone.device)

    def _blank_map(self) -> Array:
        """The map of a black image: always the same, made once."""
        if self._blank is None:
            size = self.bundle.image_size_px
            self._blank = self._fused(ToHost(self._terms(torch.zeros(1, size, size))))[0]
        return self._blank


def overlapped(
    items: Iterable[T], launch: Callable[[T], U], finish: Callable[[T, U], Iterable[V]], ahead: int
) -> Iterator[V]:
    """Yield what ``finish`` makes of each launched item, in order, launching ``ahead`` items early.

    Parameters
    ----------
    items
        Pulled when they are launched.
    launch
        Starts the work; may return before it is done.
    finish
        Waits for it.
    ahead
        How many more items are launched before the oldest is waited for.
    """
    running: deque[tuple[T, U]] = deque()
    for item in items:
        running.append((item, launch(item)))
        if len(running) > ahead:
            yield from finish(*running.popleft())
    while running:
        yield from finish(*running.popleft())


def from_patches(
    bundle: AdapterBundle,
    sop_instance_uid: str,
    frame_number: int,
    shape: tuple[int, ...],
    patches: Array,
    device: torch.device,
) -> SliceScore:
    """Return a slice's score from its map on the patch grid; the model is needed for that map alone.

    Parameters
    ----------
    bundle
        That made the map.
    sop_instance_uid, frame_number
        The source frame.
    shape
        (rows, columns) of the source grid.
    patches
        (grid, grid) float32 in [0, 1], the fused map.
    device
        Draws the map on the source grid when it is looked at.
    """
    box = Letterbox(shape[0], shape[1], bundle.image_size_px, bundle.patch_px)
    raw = slice_score(patches, box.valid(), bundle.top_fraction)
    score = float(bundle.slice_scale(raw))
    return SliceScore(sop_instance_uid, frame_number, score, partial(box.draw, patches, device), patches)


def load_model(backbone: Backbone, bundle: AdapterBundle) -> MVFA:
    """Return the model with the bundle's adapters, in eval mode.

    Raises
    ------
    BundleError
        Its adapters do not fit the backbone.
    """
    model = MVFA(backbone, bundle.levels, bundle.families, bundle.mix)
    try:
        model.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in bundle.weights.items()})
    except RuntimeError as error:
        raise BundleError(f"bundle {bundle.name}: its adapters do not fit the backbone's sizes") from error
    return model.eval().requires_grad_(False)


def replicate(images: torch.Tensor) -> torch.Tensor:
    """Turn (B, H, W) grey images into (B, 3, H, W)."""
    return images[:, None].expand(-1, 3, -1, -1)


def patch_terms(
    model: MVFA, levels: Sequence[torch.Tensor], text: torch.Tensor, memory: Sequence[torch.Tensor]
) -> tuple[Array, Array]:
    """Return what :func:`map_terms` does as numpy arrays, (B, g, g) each."""
    probability, far = map_terms(model, levels, text, memory)
    return probability.cpu().numpy(), far.cpu().numpy()


def map_terms(
    model: MVFA, levels: Sequence[torch.Tensor], text: torch.Tensor, memory: Sequence[torch.Tensor]
) -> Terms:
    """Return the two raw terms of the map, on the model's device.

    Parameters
    ----------
    model
        Knows the prefix tokens.
    levels
        Per level (B, N, D) tokens of one family.
    text
        (D, 2) unit text features.
    memory
        Per level (M, D) unit rows of normal patches.

    Returns
    -------
    tuple of torch.Tensor
        (B, g, g) float32 each: abnormal probability by text, mean over levels, in [0, 1]; distance from the
        nearest normal patch, mean over levels, in [0, 2].
    """
    patches = [model.patches(x) for x in levels]
    probability = torch.stack([abnormal_probability(p, text) for p in patches]).mean(dim=0)  # (B, P)
    far = torch.stack([distance(p, rows) for p, rows in zip(patches, memory, strict=True)]).mean(dim=0)
    grid = model.backbone.grid
    shape = (len(far), grid, grid)
    return probability.reshape(shape), far.reshape(shape)


def fuse(probability: Array, far: Array, scale: Scale) -> Array:
    """Return the map in [0, 1]: the mean of the text probability and the calibrated distance."""
    return np.asarray(0.5 * probability + 0.5 * scale(far), dtype=np.float32)


def slice_score(fused: Array, valid: NDArray[np.bool_], top_fraction: float) -> float:
    """Return the mean of the highest patches inside the image: one hot patch does not decide alone.

    Parameters
    ----------
    fused
        (g, g) map in [0, 1].
    valid
        (g, g) bool, at least one True.
    top_fraction
        Share of the valid patches that counts, at least one patch.
    """
    values = np.sort(fused[valid])
    return float(values[-max(1, round(top_fraction * values.size)) :].mean())
