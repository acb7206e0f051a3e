"""NIfTI volumes as images, and NIfTI masks of volumes or of DICOM series on the same grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom import Dataset

from adapters.slices import Normalisation, normalise
from training.annotate_pictures import beside, folder_label, mask_stem
from training.annotations import Mask, Outlines, SiteImage
from training.errors import AnnotationError
from training.planes import Plane, Points
from training.site_roots import Roots

SUFFIXES = (".nii", ".nii.gz")
# The way a reader sees the slices of an axial, sagittal or coronal volume, by the letter of its third axis.
_VIEWS = {"S": "LPS", "I": "LPS", "L": "PIR", "R": "PIR", "P": "LIP", "A": "LIP"}
_VOLUME_LIMIT = 2**31
# Its functions have no types.
_itk: Any = sitk


@dataclass(frozen=True, slots=True)
class Volume:
    """A NIfTI volume as it lies in space.

    Parameters
    ----------
    values
        (slices, rows, columns) as stored.
    origin, spacing
        (3,) mm in x, y, z of DICOM: centre of the first voxel, and steps along columns, rows, slices.
    direction
        (3, 3) whose columns are the unit vectors of columns, rows and slices.
    """

    values: NDArray[Any]
    origin: Points
    spacing: Points
    direction: Points

    def plane(self, index: int) -> Plane:
        """Where slice ``index`` lies."""
        return Plane(
            self.origin + index * self.spacing[2] * self.direction[:, 2],
            self.direction[:, 0],
            self.direction[:, 1],
            (float(self.spacing[1]), float(self.spacing[0])),
        )


def suffix_of(path: str) -> str:
    """Return ".nii.gz", ".nii" or "" of a path."""
    return next((s for s in reversed(SUFFIXES) if path.lower().endswith(s)), "")


def read_volume(file: Path, limit: int) -> Volume:
    """Read a NIfTI file, turned so that its slices look as a reader of DICOM sees them.

    Parameters
    ----------
    file
        .nii or .nii.gz.
    limit
        For rows × columns of a slice.

    Raises
    ------
    AnnotationError
        It can't be read, is over the limit or has no three dimensions.
    """
    status = file.stat()
    return _read_cached(file, limit, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1)
def _read_cached(file: Path, limit: int, mtime_ns: int, size: int) -> Volume:
    reader = _itk.ImageFileReader()
    reader.SetImageIO("NiftiImageIO")
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
        shape = reader.GetSize()
        if len([n for n in shape if n > 1]) > 3 or reader.GetNumberOfComponents() != 1:
            raise AnnotationError("the volume has more than three dimensions or several values a voxel")
        if len(shape) < 2 or shape[0] * shape[1] > limit or int(np.prod(shape)) > _VOLUME_LIMIT:
            raise AnnotationError(f"a slice is over the limit of {limit} pixel values (max_frame_pixels)")
        image = reader.Execute()
    except RuntimeError as error:
        # The library's message holds the path.
        raise AnnotationError("the NIfTI file is damaged or cannot be read") from error
    while image.GetDimension() > 3:
        image = image[..., 0]
    if image.GetDimension() == 2:
        image = _itk.JoinSeries(image)
    axes = _itk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
    image = _itk.DICOMOrient(image, _VIEWS[axes[2]])
    return Volume(
        _itk.GetArrayFromImage(image),
        np.array(image.GetOrigin()),
        np.array(image.GetSpacing()),
        np.array(image.GetDirection()).reshape(3, 3),
    )


def volume_images(
    root: Roots, path: str, *, normalisation: Normalisation, max_frame_pixels: int
) -> list[SiteImage]:
    """Return the slices of a volume.

    Raises
    ------
    AnnotationError
        It can't be read.
    """
    volume = read_volume(root / path, max_frame_pixels)
    slices, rows, columns = volume.values.shape
    attributes = {"rows": str(rows), "columns": str(columns), "type": str(volume.values.dtype)}
    load = partial(_load, root / path, normalisation, max_frame_pixels)
    return [
        SiteImage(
            key=(path, number),
            path=path,
            study=path,
            series=path,
            frame_of_reference=path,
            plane=volume.plane(number - 1),
            rows=rows,
            columns=columns,
            number=number,
            single=slices == 1,
            patient="",
            modality="",
            body_part="",
            folder_label=folder_label(path),
            load=partial(load, number - 1),
            attributes=attributes,
        )
        for number in range(1, slices + 1)
    ]


def _load(file: Path, normalisation: Normalisation, limit: int, index: int) -> NDArray[np.float32]:
    return normalise(read_volume(file, limit).values[index], Dataset(), normalisation)


def outline_nifti(
    root: Roots,
    path: str,
    volumes: Sequence[Sequence[SiteImage]],
    series: Sequence[Sequence[SiteImage]],
    outlines: Outlines,
    limit: int,
) -> None:
    """Add a mask to the volume of its name, or to the DICOM series beside it that is on its grid.

    Parameters
    ----------
    root, path
        The site folder and the mask below it.
    volumes, series
        The slices of each NIfTI volume, and of each DICOM series.
    outlines
        Where the masks go.
    limit
        For the pixels of a slice.

    Raises
    ------
    AnnotationError
        Nothing is on its grid, or it can't be read.
    """
    named = [v for v in volumes if _is_named(v[0].path, path)]
    near = named or [s for s in series if _shares_folder(s, path)]
    if not near:
        raise AnnotationError("a mask without an image volume of its name or a DICOM series in its folder")
    touched = [image for images in named for image in images]
    try:
        mask = read_volume(root / path, limit)
        laid = [(images, found) for images in near if (found := _lay(mask, images)) is not None]
    except AnnotationError as error:
        outlines.skip(path, str(error), touched)
        return
    if not named and len(laid) > 1:
        raise AnnotationError("a mask on the grid of several DICOM series; put it beside its own")
    if not laid:
        outlines.skip(path, _difference(mask, near), touched)
    for images, masks in laid:
        for image, drawn in zip(images, masks, strict=True):
            outlines.add(image, drawn, "NIfTI")


def _is_named(image: str, mask: str) -> bool:
    stem = (mask_stem(mask, suffix_of(mask)) or "").lower()
    name = PurePosixPath(image).name
    own = name[: len(name) - len(suffix_of(image))].lower()
    return beside(image, mask) and (not stem or own == stem or own.startswith(stem + "_"))


def _shares_folder(images: Sequence[SiteImage], mask: str) -> bool:
    """True if the series lies in the mask's folder, or below it, or the mask in one for masks beside it."""
    parent = PurePosixPath(mask).parent
    while mask_stem(str(parent / "x"), "") is not None and parent.parts:
        parent = parent.parent
    return any(PurePosixPath(image.path).is_relative_to(parent) for image in images)


def _lay(mask: Volume, images: Sequence[SiteImage]) -> list[Mask] | None:
    """The mask's part on each image; None if an image is not on the mask's grid."""
    out = []
    for image in images:
        plane = image.plane
        if plane is None:
            return None
        corners = np.array([[0, 0], [image.columns - 1, 0], [0, image.rows - 1]], dtype=np.float64)
        points = (
            plane.position
            + corners[:, :1] * plane.spacing[1] * plane.along_row
            + corners[:, 1:] * plane.spacing[0] * plane.along_column
        )
        exact = (points - mask.origin) @ mask.direction / mask.spacing
        index = np.round(exact).astype(int)
        if (np.abs(exact - index) > 0.1).any():
            return None
        drawn = _cut(mask.values, index, image)
        if drawn is None:
            return None
        out.append(drawn)
    return out


def _cut(values: NDArray[Any], index: NDArray[np.int_], image: SiteImage) -> Mask | None:
    """(rows, columns) bool from the voxel indices (x, y, z) of three corners of a slice."""
    first, right, down = index
    steps = [(right - first) / max(1, image.columns - 1), (down - first) / max(1, image.rows - 1)]
    if not all(np.allclose(step, np.round(step)) for step in steps):
        return None
    across, along = (np.round(step).astype(int) for step in steps)
    columns, rows = np.arange(image.columns), np.arange(image.rows)
    x, y, z = (
        first[axis] + across[axis] * columns[None, :] + along[axis] * rows[:, None] for axis in range(3)
    )
    size = values.shape[::-1]
    if any(v.min() < 0 or v.max() >= n for v, n in zip((x, y, z), size, strict=True)):
        return None
    # A probability counts from one half, a label from 1.
    return np.asarray(values[z, y, x] >= 0.5, dtype=np.bool_)


def _difference(mask: Volume, near: Sequence[Sequence[SiteImage]]) -> str:
    slices, rows, columns = mask.values.shape
    sizes = {(len(images), images[0].rows, images[0].columns) for images in near}
    if (slices, rows, columns) in sizes:
        return "the mask's grid in space is not its image's: another origin, spacing or direction"
    depth, height, width = min(sizes)
    return (
        f"the mask has {slices} slices of {rows} × {columns} pixels but its image {depth} of {height} × "
        f"{width}; export it again on the image's own grid"
    )
