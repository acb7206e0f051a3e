"""A large phantom study: the anatomy of ``daemon.phantom`` on 300 slices of 512 × 512 pixels.

The field of view is that of the small phantom (256 mm), so adapters fitted on the one see the same
picture in the other; the slices are 1 mm apart. It stands for no patient.
"""

from __future__ import annotations

import copy
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid

from daemon.phantom import make_case, write_case

SIDE_PX = 512
PIXEL_SPACING_MM = 0.5
SLICE_SPACING_MM = 1.0
# Noise is drawn on the small phantom's grid, so that it is as coarse as what the adapters were fitted on.
_NOISE_PX = 4
# (z as a share of the stack, x mm, y mm, radius mm)
_LESIONS = (
    (0.15, 38.0, -10.0, 14.0),
    (0.38, -46.0, 8.0, 12.0),
    (0.62, 30.0, 14.0, 16.0),
    (0.85, -30.0, -22.0, 13.0),
)


def write_study(folder: Path, *, slices: int, seed: int = 7) -> str:
    """Write the study as CT Image Storage, Explicit VR Little Endian, one file a slice.

    Parameters
    ----------
    folder
        Made if it does not exist.
    slices
        Number of slices.
    seed
        Of the noise and of the UIDs.

    Returns
    -------
    str
        Study Instance UID.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        case = make_case(700 + seed, abnormal=False, slices=1, seed=seed)
        template = dcmread(write_case(case, Path(scratch))[0])
    rng = np.random.default_rng(seed)
    for index in range(slices):
        ds = _instance(template, _draw(index, slices, rng), index, seed)
        ds.save_as(folder / f"{index + 1:04d}.dcm", enforce_file_format=True)
    return str(template.StudyInstanceUID)


def compress(source: Path, target: Path) -> None:
    """Write every file of a folder in JPEG Lossless SV1 (PS3.5 A.4.2) with DCMTK's dcmcjpeg."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        subprocess.run(["dcmcjpeg", str(file), str(target / file.name)], check=True, capture_output=True)


def _draw(index: int, slices: int, rng: np.random.Generator) -> NDArray[np.int16]:
    """One slice, (512, 512) int16 in HU."""
    axis = (np.arange(SIDE_PX) - (SIDE_PX - 1) / 2) * PIXEL_SPACING_MM
    y, x = np.meshgrid(axis, axis, indexing="ij")
    plane = np.full(x.shape, -1000.0)
    body = (x / 96) ** 2 + (y / 73) ** 2 < 1
    plane[body] = 40
    for side in (-1, 1):
        plane[((x - side * 48) / 26) ** 2 + ((y + 14) / 34) ** 2 < 1] = -780
    spine = (x / 13) ** 2 + ((y - 48) / 12) ** 2 < 1
    plane[spine] = 420
    for share, centre_x, centre_y, radius in _LESIONS:
        z = (index - share * (slices - 1)) * SLICE_SPACING_MM
        plane[((x - centre_x) ** 2 + (y - centre_y) ** 2 + z**2 < radius**2) & body & ~spine] = 240
    coarse = rng.normal(0, 14, (SIDE_PX // _NOISE_PX, SIDE_PX // _NOISE_PX))
    plane += coarse.repeat(_NOISE_PX, axis=0).repeat(_NOISE_PX, axis=1) + rng.normal(0, 6, plane.shape)
    return np.clip(np.round(plane), -1024, 3071).astype(np.int16)


def _instance(template: Dataset, pixels: NDArray[np.int16], index: int, seed: int) -> Dataset:
    ds = copy.deepcopy(template)
    uid = generate_uid(entropy_srcs=["benchmark", str(seed), str(index)])
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid
    ds.InstanceNumber = index + 1
    origin = -(SIDE_PX - 1) / 2 * PIXEL_SPACING_MM
    ds.ImagePositionPatient = [origin, origin, index * SLICE_SPACING_MM]
    ds.PixelSpacing = [PIXEL_SPACING_MM, PIXEL_SPACING_MM]
    ds.SliceThickness = SLICE_SPACING_MM
    ds.Rows = ds.Columns = SIDE_PX
    ds.PixelData = pixels.tobytes()
    return ds
