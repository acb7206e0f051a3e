"""What annotations say: images in space, masks on their grids, and where the masks came from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from training.cases import Label, Skipped
from training.errors import AnnotationError
from training.planes import Plane

# SOP Instance UID, or path below the site folder; and frame or slice number from 1.
ImageKey = tuple[str, int]
Mask = NDArray[np.bool_]

# Millimetres; a DS of six digits is off by less (PS3.5 6.2).
_SAME_MM = 0.01


@dataclass(frozen=True, slots=True)
class SiteImage:
    """One image of the site: a slice, a frame or a picture.

    Parameters
    ----------
    key
        What annotations refer to.
    path
        Of its file below the site folder, with "/".
    study, series
        UIDs, or the path for a picture or volume.
    frame_of_reference
        UID; "" if it has none.
    plane
        None if it does not lie in space.
    rows, columns
        Of its grid.
    number
        Orders images that do not lie in space.
    single
        True if its file holds this image alone.
    patient
        Hash of the patient; "" if unknown.
    modality, body_part
        As in DICOM.
    folder_label
        What the names of its folders say.
    load
        As in :class:`~training.cases.Shot`.
    attributes
        As in :class:`~training.cases.Shot`.
    """

    key: ImageKey
    path: str
    study: str
    series: str
    frame_of_reference: str
    plane: Plane | None
    rows: int
    columns: int
    number: int
    single: bool
    patient: str
    modality: str
    body_part: str
    folder_label: Label | None
    load: Callable[[], NDArray[np.float32]]
    attributes: Mapping[str, str] = field(default_factory=dict)


class Images:
    """Every image of the site, by what annotations refer to it."""

    def __init__(self, images: Iterable[SiteImage]) -> None:
        self.by_key: dict[ImageKey, SiteImage] = {image.key: image for image in images}
        self.by_instance: dict[str, list[SiteImage]] = {}
        self._in_space: dict[str, list[SiteImage]] = {}
        for image in self.by_key.values():
            self.by_instance.setdefault(image.key[0], []).append(image)
            if image.plane is not None and image.frame_of_reference:
                self._in_space.setdefault(image.frame_of_reference, []).append(image)

    def referenced(self, sop_instance_uid: str, frames: Sequence[int] = ()) -> list[SiteImage]:
        """Return the frames of an instance; all of them if none is named."""
        found = self.by_instance.get(sop_instance_uid, [])
        return [image for image in found if not frames or image.key[1] in frames]

    def of_frame_of_reference(self, uid: str) -> list[SiteImage]:
        """Return the images that lie in this frame of reference."""
        return self._in_space.get(uid, [])


class Outlines:
    """Masks, collected from every annotation.

    Attributes
    ----------
    masks
        The union of what was outlined, by image; never empty ones.
    sources
        What outlined an image: "SEG", "RTSTRUCT", "SR", "NIfTI", "PNG".
    unsafe_series
        Series in which an image without a mask can't be called normal at any distance: an annotation of it
        could not be used, or outlines one slice of what may reach further.
    unusable
        Images on which an annotation lies that could not be read.
    skipped
        Annotations and parts of them that were not used.
    """

    def __init__(self) -> None:
        self.masks: dict[ImageKey, Mask] = {}
        self.sources: dict[ImageKey, set[str]] = {}
        self.unsafe_series: set[str] = set()
        self.unusable: set[ImageKey] = set()
        self.skipped: list[Skipped] = []

    def add(self, image: SiteImage, mask: Mask, source: str, *, whole_volume: bool = True) -> None:
        """Add a mask to an image.

        Parameters
        ----------
        image
            On whose grid the mask is.
        mask
            (rows, columns) bool; an empty one says nothing.
        source
            What it came from.
        whole_volume
            False if the annotation may have left out further slices of the same lesion.
        """
        if mask.shape != (image.rows, image.columns):
            raise AnnotationError(size_message(mask.shape, image))
        if not mask.any():
            return
        before = self.masks.get(image.key)
        self.masks[image.key] = mask.copy() if before is None else before | mask
        self.sources.setdefault(image.key, set()).add(source)
        if not whole_volume:
            self.unsafe_series.add(image.series)

    def skip(self, path: str, reason: str, touched: Iterable[SiteImage] = ()) -> None:
        """Record what was not used; ``touched`` images are not used either, nor their series for normals."""
        self.skipped.append(Skipped(path, reason))
        for image in touched:
            self.unusable.add(image.key)
            self.unsafe_series.add(image.series)


def is_named(name: object, patterns: Iterable[str]) -> bool:
    """True if one of the patterns, such as "GTV*", is a name's, in capitals or not."""
    text = str(name or "").strip().casefold()
    return any(fnmatchcase(text, pattern.strip().casefold()) for pattern in patterns)


def size_message(shape: tuple[int, ...], image: SiteImage) -> str:
    """Say that a mask and its image differ in size."""
    return (
        f"the mask has {shape[0]} × {shape[1]} pixels but its image {image.rows} × {image.columns}; "
        "export it again on the image's own grid"
    )


def onto_grid(mask: Mask, plane: Plane | None, image: SiteImage) -> Mask:
    """Lay a mask on the grid of an image in the same plane.

    Parameters
    ----------
    mask
        (rows, columns) bool.
    plane
        Where the mask lies; None if it does not say, which means that the grids are the same.
    image
        Onto which.

    Returns
    -------
    (rows, columns) bool on the image's grid; a mask that is cropped to whole pixels is moved.

    Raises
    ------
    AnnotationError
        The grids differ by more than whole pixels.
    """
    same_size = mask.shape == (image.rows, image.columns)
    if plane is None or image.plane is None:
        if not same_size:
            raise AnnotationError(size_message(mask.shape, image))
        return mask
    spaced = np.allclose(plane.spacing, image.plane.spacing, rtol=1e-3)
    column, row, off = image.plane.to_pixels(plane.position[None])[0]
    whole = abs(column - round(column)) < 0.02 and abs(row - round(row)) < 0.02
    if not spaced or not whole or not plane.is_parallel(image.plane):
        if not same_size:
            raise AnnotationError(size_message(mask.shape, image))
        raise AnnotationError(
            "the mask's grid in space is not the image's; export it on the image's own grid"
        )
    if abs(off) > max(_SAME_MM, 0.25 * min(image.plane.spacing)):
        raise AnnotationError("the mask does not lie in the plane of the image that it refers to")
    out = np.zeros((image.rows, image.columns), dtype=np.bool_)
    row, column = round(row), round(column)
    top, left = max(row, 0), max(column, 0)
    bottom, right = min(row + mask.shape[0], image.rows), min(column + mask.shape[1], image.columns)
    if top < bottom and left < right:
        out[top:bottom, left:right] = mask[top - row : bottom - row, left - column : right - column]
    if out.sum() != mask.sum():
        raise AnnotationError(
            "the mask reaches beyond the edge of its image; export it on the image's own grid"
        )
    return out


def positions(images: Sequence[SiteImage]) -> list[int] | None:
    """Number the images of a series along its normal, or None if they are no stack of parallel planes.

    Parameters
    ----------
    images
        Of one series.

    Returns
    -------
    The position of each, from 0; images at the same place, as in a time series, share one.
    """
    first = images[0].plane
    if first is None or any(
        image.plane is None
        or not image.plane.is_parallel(first)
        or image.frame_of_reference != images[0].frame_of_reference
        for image in images
    ):
        return None
    along = [float(image.plane.position @ first.normal) for image in images if image.plane is not None]
    distinct: list[float] = []
    for value in sorted(along):
        if not distinct or value - distinct[-1] > _SAME_MM:
            distinct.append(value)
    return [int(np.argmin(np.abs(np.array(distinct) - value))) for value in along]


def slice_tolerance_mm(images: Sequence[SiteImage]) -> float:
    """Return how far from a plane a contour may be and still belong to it: a quarter of the spacing."""
    planes = [image.plane for image in images if image.plane is not None]
    along = np.unique(np.round([p.position @ planes[0].normal for p in planes], 3)) if planes else np.zeros(0)
    gaps = np.diff(along)
    gaps = gaps[gaps > _SAME_MM]
    return float(gaps.min()) / 4 if gaps.size else 0.5
