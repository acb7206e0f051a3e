"""The BMAD layout that the published protocol reads (arXiv 2306.11876).

Each data set, below one root::

    <Class>_AD/valid/{good,Ungood}/img, valid/Ungood/anomaly_mask      few-shot images
    <Class>_AD/test/{good,Ungood}/img,  test/Ungood/anomaly_mask       test images
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from adapters import reference as ref
from training.errors import DataError

# Class, what its prompts name, and whether it has masks.
CLASSES: Mapping[str, tuple[str, bool]] = {
    "Brain": ("Brain", True),
    "Liver": ("Liver", True),
    "Retina_RESC": ("retinal OCT", True),
    "Retina_OCT2017": ("retinal OCT", False),
    "Chest": ("Chest X-ray film", False),
    "Histopathology": ("histopathological image", False),
}
SUFFIXES = (".png", ".jpeg", ".jpg")


@dataclass(frozen=True, slots=True)
class BmadSet:
    """Images and masks of one part of a BMAD class, squashed to the model's square.

    Parameters
    ----------
    images
        (n, 3, H, W) float32 in [0, 1].
    masks
        (n, H, W) 0 or 1, or None without masks.
    labels
        (n,) float, 1 abnormal.
    names
        File names.
    """

    images: torch.Tensor
    masks: torch.Tensor | None
    labels: torch.Tensor
    names: tuple[str, ...]


def read_bmad(
    root: Path, class_name: str, part: str, size_px: int, chosen: Sequence[Sequence[str]] | None = None
) -> BmadSet:
    """Read one part (``test`` or ``valid``) of a class; ``chosen`` names the normal and abnormal files."""
    masked = CLASSES[class_name][1]
    base = root / f"{class_name}_AD" / part
    images, masks, labels, names = [], [], [], []
    for label, folder in enumerate(("good", "Ungood")):
        available = list_images(base / folder / "img")
        for name in chosen[label] if chosen is not None else available:
            if name not in available:
                raise DataError(f"{class_name}_AD/{part}/{folder}/img has no image {name}")
            images.append(ref.preprocess_image(_read(base / folder / "img" / name, "RGB"), size_px))
            labels.append(float(label))
            names.append(name)
            if masked:
                masks.append(_mask(base / folder, name, size_px, bool(label)))
    stacked = torch.stack(masks) if masked else None
    return BmadSet(torch.stack(images), stacked, torch.tensor(labels), tuple(names))


def list_images(folder: Path) -> list[str]:
    """Return the sorted names of a folder's images.

    Raises
    ------
    DataError
        It is missing or empty.
    """
    names = sorted(p.name for p in folder.glob("*") if p.suffix.lower() in SUFFIXES)
    if not names:
        where = "/".join(folder.parts[-4:])
        raise DataError(
            f"{where} has no images: the BMAD layout is <Class>_AD/{{valid,test}}/{{good,Ungood}}/img"
        )
    return names


def draw_shots(root: Path, class_name: str, shots: int, seed: int) -> tuple[list[str], list[str]]:
    """Draw the few-shot images from the validation part.

    Raises
    ------
    DataError
        There are fewer images than shots.
    """
    rng = random.Random(seed)
    chosen: list[list[str]] = []
    for folder in ("good", "Ungood"):
        names = list_images(root / f"{class_name}_AD" / "valid" / folder / "img")
        if len(names) < shots:
            raise DataError(
                f"{class_name}_AD/valid/{folder} has {len(names)} images, fewer than {shots} shots"
            )
        chosen.append(rng.sample(names, shots))
    return chosen[0], chosen[1]


def _read(path: Path, mode: str) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert(mode))


def _mask(base: Path, name: str, size_px: int, abnormal: bool) -> torch.Tensor:
    if not abnormal:
        return torch.zeros(size_px, size_px)
    path = base / "anomaly_mask" / name
    if not path.exists():
        raise DataError(f"{'/'.join(path.parts[-5:])} is missing: every abnormal image needs its mask")
    return ref.preprocess_mask(_read(path, "L"), size_px)[0]
