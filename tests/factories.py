"""Synthetic DICOM objects for the tests: valid enough for dciodvfy, with fake names only."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRLittleEndian

from daemon.spool import Spool, StoredInstance

CANARY = "CANARY^X"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
# Rows and columns of a plane turned about two axes; orthonormal to 1e-6.
OBLIQUE = (0.8, 0.48, 0.36, 0.0, 0.6, -0.8)

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
MR = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
DX = "1.2.840.10008.5.1.4.1.1.1.1"
OP = "1.2.840.10008.5.1.4.1.1.77.1.5.1"
SC = "1.2.840.10008.5.1.4.1.1.7"
US_MULTIFRAME = "1.2.840.10008.5.1.4.1.1.3.1"

# Voxel centre (slice, row, column) and radius in mm.
Lesion = tuple[float, float, float, float]


def uid(*parts: object) -> str:
    """Return a UID that depends on nothing but `parts`."""
    return f"2.25.{int.from_bytes(sha256(repr(parts).encode()).digest()[:15], 'big')}"


def scanned(spool: Spool) -> list[StoredInstance]:
    """Return every instance that is on a spool's disk."""
    return [found for study in spool.studies() for found in spool.scan(study)]


def write(ds: Dataset, path: Path | str) -> Path:
    """Write `ds` as a Part 10 file and return its path."""
    path = Path(path)
    ds.save_as(path, enforce_file_format=True)
    return path


def write_all(datasets: Sequence[Dataset], folder: Path) -> list[Path]:
    """Write `datasets` under their SOP Instance UIDs and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    return [write(ds, folder / f"{ds.SOPInstanceUID}.dcm") for ds in datasets]


def base(
    sop_class: str, modality: str, *, study: str = "study", series: str = "series", n: int = 1
) -> Dataset:
    """Return patient, study, series, equipment and SOP common modules; `study`/`series` seed the UIDs."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = uid(study, series, sop_class, n)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = uid("factory")
    ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)  # type: ignore[arg-type]
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid(study), uid(study, series, sop_class)
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = CANARY, "CANARY-ID", "19500101", "O"
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = "20260102"
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = "101112"
    ds.AccessionNumber, ds.ReferringPhysicianName, ds.StudyID = "CANARY-ACC", "", "1"
    ds.StudyDescription, ds.SeriesDescription = "CANARY STUDY", "CANARY SERIES"
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = modality, 1, n
    ds.Manufacturer, ds.ManufacturerModelName = "Factory", "Synthetic"
    ds.DeviceSerialNumber, ds.SoftwareVersions = "1", "1"
    return ds


def set_pixels(ds: Dataset, pixels: NDArray[np.generic], *, bits: int | None = None, mono: str = "") -> None:
    """Set the Image Pixel module from `pixels`, (rows, columns[, 3]) or (frames, rows, columns[, 3])."""
    colour = pixels.shape[-1] == 3 and pixels.ndim > 2
    shape = pixels.shape[:-1] if colour else pixels.shape
    ds.SamplesPerPixel = 3 if colour else 1
    ds.PhotometricInterpretation = mono or ("RGB" if colour else "MONOCHROME2")
    if colour:
        ds.PlanarConfiguration = 0
    ds.Rows, ds.Columns = shape[-2:]
    if len(shape) == 3:
        ds.NumberOfFrames = shape[0]
    ds.BitsAllocated = pixels.dtype.itemsize * 8
    ds.BitsStored = bits or ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    data = pixels.tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"


def phantom(
    n: int, rows: int, cols: int, spacing: tuple[float, float, float], lesion: Lesion | None, seed: int = 0
) -> NDArray[np.int16]:
    """Return (n, rows, cols) int16: a body of about 40 in air of −1000, noise 5, a lesion of 200.

    `spacing` is (between slices, between rows, between columns) in mm.
    """
    z, y, x = np.meshgrid(np.arange(n), np.arange(rows), np.arange(cols), indexing="ij", sparse=True)
    body = ((y - rows / 2) / (0.42 * rows)) ** 2 + ((x - cols / 2) / (0.36 * cols)) ** 2 + 0.0 * z < 1
    noise = np.random.default_rng(seed).normal(0, 5, (n, rows, cols))
    volume = np.where(body, 40.0, -1000.0) + noise
    if lesion is not None:
        dz, dy, dx = spacing
        distance2 = ((z - lesion[0]) * dz) ** 2 + ((y - lesion[1]) * dy) ** 2 + ((x - lesion[2]) * dx) ** 2
        volume[distance2 <= lesion[3] ** 2] += 160
    return np.round(volume).astype(np.int16)


def cosines(name: str) -> tuple[float, ...]:
    """Return ImageOrientationPatient of "axial" or "oblique"."""
    return OBLIQUE if name == "oblique" else AXIAL


def positions(n: int, orientation: str, slice_spacing: float) -> NDArray[np.float64]:
    """Return (n, 3) positions in mm along the plane's normal, from (−50, −60, −70)."""
    iop = np.array(cosines(orientation))
    normal = np.cross(iop[:3], iop[3:])
    return np.array([-50.0, -60.0, -70.0]) + np.arange(n)[:, None] * slice_spacing * normal


def _plane(ds: Dataset, orientation: str, position: Sequence[float], spacing: Sequence[float]) -> None:
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = uid(ds.StudyInstanceUID, "frame"), ""
    ds.ImageOrientationPatient = [f"{v:.6g}" for v in cosines(orientation)]
    ds.ImagePositionPatient = [f"{v:.8g}" for v in position]
    ds.PixelSpacing, ds.SliceThickness = [spacing[1], spacing[2]], spacing[0]


def ct_series(
    n: int = 5,
    rows: int = 32,
    cols: int = 32,
    *,
    orientation: str = "axial",
    spacing: tuple[float, float, float] = (2.0, 1.0, 1.0),
    lesion: Lesion | None = None,
    study: str = "study",
    series: str = "series",
    seed: int = 0,
) -> list[Dataset]:
    """Return `n` CT images of a phantom; `spacing` is (slices, rows, columns) in mm."""
    volume, where = phantom(n, rows, cols, spacing, lesion, seed), positions(n, orientation, spacing[0])
    images = []
    for i in range(n):
        ds = base(CT, "CT", study=study, series=series, n=i + 1)
        ds.ImageType, ds.KVP, ds.AcquisitionNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], 120, 1
        ds.PatientPosition, ds.BodyPartExamined = "HFS", "CHEST"
        _plane(ds, orientation, where[i], spacing)
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = -1024, 1, "HU"
        ds.WindowCenter, ds.WindowWidth = 40, 400
        set_pixels(ds, np.clip(volume[i] + 1024, 0, 4095).astype(np.uint16), bits=12)
        images.append(ds)
    return images


def mr_series(
    n: int = 5,
    rows: int = 32,
    cols: int = 32,
    *,
    orientation: str = "oblique",
    spacing: tuple[float, float, float] = (3.0, 1.0, 1.0),
    lesion: Lesion | None = None,
    study: str = "study",
    series: str = "series",
    seed: int = 0,
) -> list[Dataset]:
    """Return `n` signed 16-bit MR images, oblique unless told otherwise."""
    volume, where = phantom(n, rows, cols, spacing, lesion, seed), positions(n, orientation, spacing[0])
    images = []
    for i in range(n):
        ds = base(MR, "MR", study=study, series=series, n=i + 1)
        ds.ImageType, ds.BodyPartExamined = ["ORIGINAL", "PRIMARY", "M"], "BRAIN"
        ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions, ds.MRAcquisitionType = "SE", "NONE", "", "2D"
        ds.RepetitionTime, ds.EchoTime, ds.EchoTrainLength = 500, 10, 1
        ds.PatientPosition, ds.SpacingBetweenSlices = "HFS", spacing[0]
        _plane(ds, orientation, where[i], spacing)
        set_pixels(ds, np.clip(volume[i] + 1000, 0, None).astype(np.int16))
        images.append(ds)
    return images


def dx(
    rows: int = 64, cols: int = 48, *, mono: str = "MONOCHROME2", series: str = "series", seed: int = 0
) -> Dataset:
    """Return a For Presentation digital radiograph without geometry in space."""
    ds = base(DX, "DX", series=series)
    ds.ImageType, ds.PresentationIntentType = ["ORIGINAL", "PRIMARY", ""], "FOR PRESENTATION"
    ds.PixelIntensityRelationship, ds.PixelIntensityRelationshipSign = "LOG", -1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 0, 1, "US"
    ds.PresentationLUTShape = "INVERSE" if mono == "MONOCHROME1" else "IDENTITY"
    ds.LossyImageCompression, ds.BurnedInAnnotation, ds.PatientOrientation = "00", "NO", ["L", "F"]
    ds.DetectorType, ds.ImagerPixelSpacing, ds.PixelSpacing = "DIRECT", [0.2, 0.2], [0.2, 0.2]
    ds.BodyPartExamined, ds.ImageLaterality, ds.ViewPosition = "CHEST", "U", "PA"
    ds.AnatomicRegionSequence = code("51185008", "SCT", "Chest")
    ds.ViewCodeSequence = code("399348003", "SCT", "postero-anterior")
    ds.ViewCodeSequence[0].ViewModifierCodeSequence = DicomSequence([])
    ds.PositionerType, ds.WindowCenter, ds.WindowWidth = "NONE", 2048, 4096
    ds.AcquisitionContextSequence = DicomSequence([])
    volume = phantom(1, rows, cols, (1, 1, 1), None, seed)[0]
    set_pixels(ds, np.clip((volume.astype(int) + 1100) * 3, 0, 4095).astype(np.uint16), bits=12, mono=mono)
    return ds


def code(value: str, scheme: str, meaning: str) -> DicomSequence:
    """Return a code sequence of one item."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return DicomSequence([item])


def _rgb(rows: int, cols: int, frames: int | None = None) -> NDArray[np.uint8]:
    shape = (rows, cols, 3) if frames is None else (frames, rows, cols, 3)
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def op(rows: int = 48, cols: int = 64) -> Dataset:
    """Return an RGB ophthalmic photograph (a fundus camera's)."""
    ds = base(OP, "OP")
    ds.ImageType, ds.InstanceNumber = ["ORIGINAL", "PRIMARY", "", "COLOR"], 1
    ds.PatientOrientation, ds.BurnedInAnnotation, ds.LossyImageCompression = ["L", "F"], "NO", "00"
    ds.ImageLaterality, ds.AcquisitionDateTime = "R", "20260102101112"
    ds.PixelSpacing = [0.01, 0.01]
    ds.AnatomicRegionSequence = code("5665001", "SCT", "Retina")
    ds.AcquisitionDeviceTypeCodeSequence = code("409898007", "SCT", "Fundus Camera")
    for keyword in ("IlluminationTypeCodeSequence", "LightPathFilterTypeStackCodeSequence",
                    "ImagePathFilterTypeStackCodeSequence", "LensesCodeSequence"):  # fmt: skip
        setattr(ds, keyword, DicomSequence([]))
    ds.DetectorType, ds.AcquisitionContextSequence = "CCD", DicomSequence([])
    ds.HorizontalFieldOfView, ds.RefractiveStateSequence, ds.EmmetropicMagnification = None, None, None
    ds.IntraOcularPressure, ds.PupilDilated, ds.PatientEyeMovementCommanded = None, "", ""
    ds.SynchronizationFrameOfReferenceUID, ds.SynchronizationTrigger = uid("clock"), "NO TRIGGER"
    ds.AcquisitionTimeSynchronized, ds.FrameIncrementPointer, ds.FrameTime = "N", 0x00181063, 40
    set_pixels(ds, _rgb(rows, cols, 1))
    return ds


def sc(
    rows: int = 40, cols: int = 50, *, pixels: NDArray[np.generic] | None = None, bits: int = 0
) -> Dataset:
    """Return a secondary capture, RGB unless `pixels` says otherwise."""
    ds = base(SC, "OT")
    ds.ConversionType, ds.ImageType, ds.PatientOrientation = "WSD", ["DERIVED", "SECONDARY"], ""
    ds.Laterality = ""
    set_pixels(ds, _rgb(rows, cols) if pixels is None else pixels, bits=bits or None)
    return ds


def palette(rows: int = 16, cols: int = 16) -> Dataset:
    """Return a palette colour secondary capture: index i is (i, 255 − i, 255 − i)."""
    ds = sc(pixels=np.arange(rows * cols, dtype=np.uint8).reshape(rows, cols))
    ds.PhotometricInterpretation = "PALETTE COLOR"
    ramp = np.arange(256, dtype=np.uint16) * 257
    for colour, table in (("Red", ramp), ("Green", 65535 - ramp), ("Blue", ramp[::-1])):
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(ds, f"{colour}PaletteColorLookupTableData", table.tobytes())
    return ds


def us_cine(frames: int = 4, rows: int = 32, cols: int = 40) -> Dataset:
    """Return an RGB ultrasound cine without geometry in space."""
    ds = base(US_MULTIFRAME, "US")
    ds.ImageType, ds.PatientOrientation, ds.Laterality = ["ORIGINAL", "PRIMARY", "", "0001"], "", ""
    ds.FrameTime, ds.LossyImageCompression, ds.UltrasoundColorDataPresent = 40, "00", 1
    ds.FrameIncrementPointer = 0x00181063
    set_pixels(ds, _rgb(rows, cols, frames))
    return ds


def localizer(*, study: str = "study", series: str = "series") -> Dataset:
    """Return a CT scout."""
    ds = ct_series(1, study=study, series=series)[0]
    ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid(study, series, "localizer")
    return ds
