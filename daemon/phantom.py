"""A phantom site: CT-like series with and without lesions, as proper DICOM with known truth.

Used by ``daemon demo`` and the tests. The phantom is an ellipse of soft tissue with a spine, two
darker lungs and vessels; a lesion is a brighter ball with a rough edge. It stands for no patient.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

ROWS = COLUMNS = 128
PIXEL_SPACING_MM = 2.0
SLICE_SPACING_MM = 4.0


@dataclass(frozen=True, slots=True)
class PhantomCase:
    """One phantom study.

    Parameters
    ----------
    study_instance_uid
        Of the study.
    hounsfield
        (slices, rows, columns) int16 in HU.
    lesion
        (slices, rows, columns) bool, the truth; all False for a normal case.
    """

    study_instance_uid: str
    series_instance_uid: str
    frame_of_reference_uid: str
    number: int
    hounsfield: NDArray[np.int16]
    lesion: NDArray[np.bool_]

    @property
    def abnormal(self) -> bool:
        """True if the case has a lesion."""
        return bool(self.lesion.any())


def make_case(number: int, *, abnormal: bool, slices: int = 12, seed: int = 0) -> PhantomCase:
    """Draw one phantom case.

    Parameters
    ----------
    number
        Of the case; with ``seed`` it fixes everything, the UIDs included.
    abnormal
        Whether it has a lesion.
    slices
        Number of slices.
    seed
        Of the random numbers.

    Returns
    -------
    PhantomCase
        Volume in HU and the true lesion mask.
    """
    rng = np.random.default_rng([seed, number])
    z, y, x = np.meshgrid(
        np.arange(slices) - (slices - 1) / 2, np.arange(ROWS) - 63.5, np.arange(COLUMNS) - 63.5, indexing="ij"
    )
    x, y, z = x * PIXEL_SPACING_MM, y * PIXEL_SPACING_MM, z * SLICE_SPACING_MM
    volume = np.full(x.shape, -1000.0)
    half = rng.uniform([88, 66], [104, 80])
    body = (x / half[0]) ** 2 + (y / half[1]) ** 2 < 1
    volume[body] = 40
    for side in (-1, 1):
        lung = ((x - side * half[0] * 0.5) / 26) ** 2 + ((y + 14) / 34) ** 2 + (z / 90) ** 2 < 1
        volume[lung] = -780 + rng.uniform(-25, 25)
    spine = (x / 13) ** 2 + ((y - half[1] * 0.66) / 12) ** 2 < 1
    volume[spine] = 420 + rng.uniform(-40, 40)
    lesion = np.zeros(x.shape, dtype=bool)
    if abnormal:
        centre, radius = _place_lesion(rng, half, slices)
        wobble = 1 + 0.12 * np.sin(3 * np.arctan2(y - centre[1], x - centre[0]) + rng.uniform(0, 6))
        distance = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2)
        lesion = (distance < radius * wobble) & body & ~spine
        volume[lesion] = 240 + rng.uniform(-30, 30)
    volume += rng.normal(0, 14, volume.shape)
    prefix = [f"phantom/{seed}/{number}"]
    return PhantomCase(
        study_instance_uid=generate_uid(entropy_srcs=[*prefix, "study"]),
        series_instance_uid=generate_uid(entropy_srcs=[*prefix, "series"]),
        frame_of_reference_uid=generate_uid(entropy_srcs=[*prefix, "frame of reference"]),
        number=number,
        hounsfield=np.clip(np.round(volume), -1024, 3071).astype(np.int16),
        lesion=lesion,
    )


def _place_lesion(
    rng: np.random.Generator, half: NDArray[np.float64], slices: int
) -> tuple[tuple[float, float, float], float]:
    """A centre in the soft tissue or a lung, off the spine, and a radius of 10 to 16 mm."""
    radius = float(rng.uniform(10, 16))
    side = rng.choice([-1, 1])
    centre_x = float(side * rng.uniform(18, half[0] * 0.62))
    centre_y = float(rng.uniform(-half[1] * 0.45, half[1] * 0.3))
    reach = max(0.0, (slices / 2 - 2) * SLICE_SPACING_MM - radius)
    return (centre_x, centre_y, float(rng.uniform(-reach, reach))), radius


def write_case(case: PhantomCase, folder: Path) -> tuple[Path, ...]:
    """Write the case as CT Image Storage instances (PS3.3 A.3), one file a slice.

    Parameters
    ----------
    case
        What to write.
    folder
        Made if it does not exist.

    Returns
    -------
    tuple of Path
        The files, by slice position.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(case.hounsfield.shape[0]):
        path = folder / f"{index + 1:04d}.dcm"
        _slice_dataset(case, index).save_as(path, enforce_file_format=True)
        paths.append(path)
    return tuple(paths)


def _slice_dataset(case: PhantomCase, index: int) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    uid = generate_uid(entropy_srcs=[case.series_instance_uid, str(index)])
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid
    _add_patient_and_study(ds, case)
    ds.Modality = "CT"
    ds.SeriesInstanceUID = case.series_instance_uid
    ds.SeriesNumber = 2
    ds.SeriesDescription = "PHANTOM AXIAL"
    ds.BodyPartExamined = "CHEST"
    ds.FrameOfReferenceUID = case.frame_of_reference_uid
    ds.PositionReferenceIndicator = ""
    ds.Manufacturer = "Phantom"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.KVP = "120"
    ds.AcquisitionNumber = 1
    ds.InstanceNumber = index + 1
    origin = -(COLUMNS - 1) / 2 * PIXEL_SPACING_MM
    ds.ImagePositionPatient = [origin, origin, index * SLICE_SPACING_MM]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing = [PIXEL_SPACING_MM, PIXEL_SPACING_MM]
    ds.SliceThickness = SLICE_SPACING_MM
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = ROWS, COLUMNS
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 0, 1, "HU"
    ds.WindowCenter, ds.WindowWidth = 40, 1600
    ds.PixelData = case.hounsfield[index].tobytes()
    return ds


def _add_patient_and_study(ds: Dataset, case: PhantomCase) -> None:
    day = datetime.date(2026, 1, 1) + datetime.timedelta(days=case.number)
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientName = f"PHANTOM^{case.number:03d}"
    ds.PatientID = f"PHANTOM{case.number:03d}"
    ds.PatientBirthDate = ""
    ds.PatientSex = "O"
    ds.StudyInstanceUID = case.study_instance_uid
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = ds.AcquisitionDate = day.strftime("%Y%m%d")
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = ds.AcquisitionTime = "080000"
    ds.StudyID = str(case.number)
    ds.AccessionNumber = f"A{case.number:05d}"
    ds.ReferringPhysicianName = ""
    ds.PatientPosition = "HFS"
