"""PNG and JPEG pictures, and masks that belong to them by name and folder."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset

from adapters.slices import Normalisation, normalise
from training.annotations import Mask, Outlines, SiteImage
from training.cases import Label
from training.errors import AnnotationError
from training.site_roots import Roots

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MASK_FOLDERS = frozenset(
    "mask masks label labels labelstr labelsts annotation annotations ground_truth".split()
)
IMAGE_FOLDERS = frozenset("img imgs image images imagestr imagests".split())
_MASK_NAME = re.compile(
    r"^(?P<stem>.*?)[ ._-]?(?<![a-z])(mask|masks|seg|segmentation|label|labels|gt)(?P<number>[ ._-]?\d+)?$",
    re.I,
)


def mask_stem(path: str, suffix: str) -> str | None:
    """Return the name of the image that a mask file belongs to; None if the file is no mask by its name."""
    pure = PurePosixPath(path)
    stem = pure.name[: len(pure.name) - len(suffix)]
    match = _MASK_NAME.match(stem)
    if match:
        return match["stem"] or (match["number"] or "").lstrip(" ._-")
    in_mask_folder = any(part.lower() in MASK_FOLDERS for part in pure.parts[:-1])
    return stem if in_mask_folder else None


def beside(image: str, mask: str) -> bool:
    """True if a mask's folder is the image's, or stands beside or below it.

    Folders called mask, label, img or image, and normal or abnormal beside mask, are looked through.
    """
    return _place(image) == _place(mask) or _outer(image) == _place(mask)


def _place(path: str) -> tuple[str, ...]:
    """Folders without those that only say what kind of file is inside."""
    parts = PurePosixPath(path).parts[:-1]
    return tuple(p for p in parts if p.lower() not in MASK_FOLDERS | IMAGE_FOLDERS)


def _outer(path: str) -> tuple[str, ...]:
    """The same without the last folder that says normal or abnormal."""
    place = _place(path)
    return place[:-1] if place and label_of_folder(place[-1]) else place


_NORMAL = frozenset("normal normals good healthy negative".split())
_ABNORMAL = frozenset("abnormal abnormals ungood bad anomaly anomalous pathological positive".split())


def label_of_folder(name: str) -> Label | None:
    """Return what a folder's name says of the images in it."""
    if name.lower() in _NORMAL:
        return "normal"
    return "abnormal" if name.lower() in _ABNORMAL else None


def folder_label(path: str) -> Label | None:
    """Return what the innermost telling folder of a path says."""
    labels = [label_of_folder(part) for part in PurePosixPath(path).parts[:-1]]
    return next((label for label in reversed(labels) if label), None)


def read_picture(file: Path, limit: int) -> NDArray[np.generic]:
    """Read a picture's values.

    Parameters
    ----------
    file
        PNG, JPEG, BMP or TIFF.
    limit
        For rows × columns × samples.

    Returns
    -------
    ndarray
        (rows, columns) uint8, uint16, int32 or float32, or (rows, columns, 3) uint8; palettes are resolved.

    Raises
    ------
    AnnotationError
        It can't be read or is over the limit.
    """
    return _read(file, limit, indices=False)


def _read(file: Path, limit: int, *, indices: bool) -> NDArray[np.generic]:
    try:
        with warnings.catch_warnings():
            # Our own limit is checked before anything is unpacked.
            warnings.simplefilter("ignore")
            with Image.open(file) as picture:
                if picture.width * picture.height * len(picture.getbands()) > limit:
                    raise AnnotationError(
                        f"the picture of {picture.height} × {picture.width} is over the limit of {limit} "
                        "pixel values (max_frame_pixels)"
                    )
                mode = picture.mode
                if mode == "P" and indices:
                    return np.asarray(picture)
                if mode == "1":
                    return np.asarray(picture.convert("L"))
                if mode == "LA":
                    return np.asarray(picture.convert("L"))
                if mode not in ("L", "I", "F", "RGB") and not mode.startswith("I;16"):
                    return np.asarray(picture.convert("RGB"))
                return np.asarray(picture)
    except AnnotationError:
        raise
    # Pillow raises OSError, SyntaxError, ValueError, struct.error, … on damaged files.
    except Exception as error:
        raise AnnotationError(f"the picture cannot be read ({type(error).__name__})") from error


def picture_image(
    root: Roots,
    path: str,
    *,
    normalisation: Normalisation,
    max_frame_pixels: int,
) -> SiteImage:
    """Return a picture as an image of the site; it is read once to be sure that it can be.

    Raises
    ------
    AnnotationError
        It can't be read.
    """
    pixels = read_picture(root / path, max_frame_pixels)
    return SiteImage(
        key=(path, 1),
        path=path,
        study=path,
        series=path,
        frame_of_reference="",
        plane=None,
        rows=pixels.shape[0],
        columns=pixels.shape[1],
        number=1,
        single=True,
        patient="",
        modality="",
        body_part="",
        folder_label=folder_label(path),
        load=partial(_load, root / path, normalisation, max_frame_pixels),
        attributes={
            "rows": str(pixels.shape[0]),
            "columns": str(pixels.shape[1]),
            "samples": str(1 if pixels.ndim == 2 else pixels.shape[2]),
            "type": str(pixels.dtype),
            "suffix": PurePosixPath(path).suffix.lower(),
        },
    )


def _load(file: Path, normalisation: Normalisation, limit: int) -> NDArray[np.float32]:
    pixels = read_picture(file, limit)
    header = Dataset()
    if pixels.dtype.kind == "u":
        header.BitsAllocated = header.BitsStored = pixels.dtype.itemsize * 8
    return normalise(pixels.astype(pixels.dtype.newbyteorder("=")), header, normalisation)


def read_mask(file: Path, limit: int) -> Mask:
    """Return a mask picture as (rows, columns) bool: labels above 0, or the brighter half of many levels."""
    values: NDArray[Any] = _read(file, limit, indices=True)
    if values.ndim == 3:
        values = values.max(axis=2)
    levels = np.unique(values)
    # JPEG and antialiasing give a mask of 0 and 255 many levels between.
    cut = float(levels[-1]) / 2 if len(levels) > 16 else 0.0
    return np.asarray(values > cut, dtype=np.bool_)


def outline_pictures(
    root: Roots, masks: Sequence[str], images: Iterable[SiteImage], outlines: Outlines, limit: int
) -> None:
    """Add mask pictures to the pictures of the same name.

    Parameters
    ----------
    root, masks
        The site folder and mask files below it.
    images
        The pictures.
    outlines
        Where the masks go.
    limit
        For the pixels of a mask.
    """
    by_stem: dict[str, list[SiteImage]] = {}
    for image in images:
        by_stem.setdefault(PurePosixPath(image.path).stem.lower(), []).append(image)
    for path in masks:
        pure = PurePosixPath(path)
        names = {(mask_stem(path, pure.suffix) or "").lower(), pure.stem.lower()}
        found = [i for name in sorted(names) for i in by_stem.get(name, ()) if beside(i.path, path)]
        # x/img/1.png and x/1.png both lie beside x/mask/1.png.
        same = [i for i in found if PurePosixPath(i.path).parent == pure.parent]
        found = same or found
        if len(found) > 1:
            found = [i for i in found if i.folder_label == "abnormal"] or found
        if len(found) != 1:
            outlines.skip(
                path, "a mask without an image of its name" if not found else "a mask of several images"
            )
            for image in found:
                outlines.unusable.add(image.key)
            continue
        try:
            mask = read_mask(root / path, limit)
            outlines.add(found[0], mask, "PNG")
            if not mask.any() and found[0].folder_label == "abnormal":
                outlines.skip(path, "the mask of an image declared abnormal is empty", found)
        except AnnotationError as error:
            outlines.skip(path, str(error), found)
