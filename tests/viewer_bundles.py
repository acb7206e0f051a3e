"""Bundles fitted on the factories' own phantoms, one for each kind of image that a viewer is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import factories
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from adapters.backbone import BackboneSpec, load_backbone
from adapters.bundle import AdapterBundle
from adapters.slices import Normalisation, load_slice
from training.fit import Options, fit

Mask = NDArray[np.bool_]
SIZE = {"n": 10, "rows": 96, "cols": 112}
SPACING = (3.0, 1.0, 1.0)
_CASES = 8


def lesion_mask(shape: tuple[int, int, int], lesion: factories.Lesion) -> Mask:
    """Where the factories draw a lesion, (slices, rows, columns)."""
    plain, drawn = (factories.phantom(*shape, SPACING, where) for where in (None, lesion))
    return np.asarray(plain != drawn)


def radiograph(lesion: tuple[int, int, int] | None, seed: int = 0) -> Dataset:
    """A radiograph of 160 by 128 with a bright square: first row, first column, side."""
    ds = factories.dx(160, 128, seed=seed)
    if lesion is not None:
        pixels = ds.pixel_array.copy()
        row, column, side = lesion
        pixels[row : row + side, column : column + side] = 4095
        factories.set_pixels(ds, pixels, bits=12, mono="MONOCHROME2")
    return ds


def cine(lesion: tuple[int, int, int] | None, seed: int = 0) -> Dataset:
    """A cine loop of four frames, of which the third has the bright square."""
    ds = factories.us_cine(4, 64, 80)
    pixels = np.zeros_like(ds.pixel_array)
    noise = np.random.default_rng(seed).normal(90, 4, pixels.shape[:3])
    pixels[:, 5:60, 5:70] = np.round(noise)[:, 5:60, 5:70, None]
    if lesion is not None:
        row, column, side = lesion
        pixels[2, row : row + side, column : column + side] = 250
    factories.set_pixels(ds, pixels)
    return ds


def square(shape: tuple[int, int], lesion: tuple[int, int, int]) -> Mask:
    """(rows, columns) bool of the bright square."""
    mask = np.zeros(shape, dtype=bool)
    row, column, side = lesion
    mask[row : row + side, column : column + side] = True
    return mask


def fitted(modality: str, folder: Path) -> AdapterBundle:
    """A bundle for a modality, fitted on normal and abnormal phantoms of it."""
    normalisation = Normalisation(kind="object", size_px=128)
    normal: list[NDArray[np.float32]] = []
    abnormal: list[tuple[NDArray[np.float32], Mask | None]] = []
    keys: tuple[list[str], list[str]] = ([], [])
    for number in range(2 * _CASES):
        rng = np.random.default_rng([7, number])
        shots = _MAKE[modality](rng, number, number >= _CASES)
        paths = factories.write_all([ds for ds, _ in shots], folder / modality / str(number))
        for path, (ds, masks) in zip(paths, shots, strict=True):
            for frame in range(1, int(ds.get("NumberOfFrames", 1)) + 1):
                pixels = load_slice(
                    path, normalisation=normalisation, max_frame_pixels=1 << 20, frame_number=frame
                ).pixels
                mask = masks[frame - 1]
                if mask.any():
                    abnormal.append((pixels, mask))
                    keys[1].append(str(number))
                elif number < _CASES:
                    normal.append(pixels)
                    keys[0].append(str(number))
    return fit(
        load_backbone(BackboneSpec(), "cpu", "fp32"),
        normal,
        abnormal,
        name=f"phantom-{modality.lower()}",
        class_name="Brain" if modality == "MR" else "Chest",
        normalisation=normalisation,
        case_keys=[*keys[0], *keys[1]],
        options=Options(folds=2, epochs=12),
        modality=modality,
    )


Shots = list[tuple[Dataset, Sequence[Mask]]]


def _volume(make: Callable[..., list[Dataset]], rng: np.random.Generator, number: int, ill: bool) -> Shots:
    lesion = None
    if ill:
        lesion = (2.0, rng.uniform(34, 62), rng.uniform(40, 72), rng.uniform(8, 13))
    images = make(4, 96, 112, spacing=SPACING, lesion=lesion, study=f"fit {number}", seed=number)
    if make is factories.mr_series and number % 2:
        for image in images:  # as the enhanced ones have it
            image.WindowCenter, image.WindowWidth = 1000, 2000
    masks = np.zeros((4, 96, 112), bool) if lesion is None else lesion_mask((4, 96, 112), lesion)
    return [(ds, [mask]) for ds, mask in zip(images, masks, strict=True)]


def _place(
    rng: np.random.Generator, ill: bool, rows: int, columns: int, side: int
) -> tuple[int, int, int] | None:
    if not ill:
        return None
    return int(rng.integers(*_middle(rows))), int(rng.integers(*_middle(columns))), side


def _middle(size: int) -> tuple[int, int]:
    return size // 4, size // 2


def _radiograph(rng: np.random.Generator, number: int, ill: bool) -> Shots:
    place = _place(rng, ill, 160, 128, int(rng.integers(22, 34)))
    return [(radiograph(place, number), [square((160, 128), place or (0, 0, 0))])]


def _cine(rng: np.random.Generator, number: int, ill: bool) -> Shots:
    place = _place(rng, ill, 64, 80, int(rng.integers(16, 24)))
    empty = np.zeros((64, 80), bool)
    return [(cine(place, number), [empty, empty, square((64, 80), place or (0, 0, 0)), empty])]


_MAKE: dict[str, Callable[[np.random.Generator, int, bool], Shots]] = {
    "CT": lambda *case: _volume(factories.ct_series, *case),
    "MR": lambda *case: _volume(factories.mr_series, *case),
    "DX": _radiograph,
    "US": _cine,
}
MODALITIES = tuple(_MAKE)
