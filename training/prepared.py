"""Annotated images on the model's square."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from adapters.backbone import Backbone
from adapters.letterbox import Letterbox

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]


class Prepared:
    """Slices on the model's square: images (B, H, W), masks (B, H, W) in [0, 1], valid patches (B, g, g).

    Parameters
    ----------
    backbone
        Gives the square and the patch.
    pairs
        (rows, columns) float32 in [0, 1] and its bool mask or None; each image is let go once it is placed.
    """

    def __init__(self, backbone: Backbone, pairs: Iterable[tuple[Image, Mask | None]]) -> None:
        size, patch = backbone.image_size_px, backbone.patch_px
        self.boxes: list[Letterbox] = []
        self.masks: list[Mask | None] = []
        images, squares = [], []
        for image, mask in pairs:
            box = Letterbox(image.shape[0], image.shape[1], size, patch)
            self.boxes.append(box)
            self.masks.append(mask)
            images.append(box.forward(image))
            empty = mask is None
            squares.append(torch.zeros(size, size) if empty else box.forward(_float(mask), mode="area"))
        self.images = torch.stack(images)
        images.clear()
        self.squares = torch.stack(squares)
        self.valid = torch.from_numpy(np.stack([box.valid() for box in self.boxes]))


def _float(mask: Mask | None) -> Image:
    return np.asarray(mask, dtype=np.float32)
