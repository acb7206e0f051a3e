"""Site folders for the tests: studies with masks, and the annotations that sites have of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from factories import CT, base, ct_series, phantom, set_pixels, uid, write_all
from highdicom.seg import Segmentation, SegmentDescription
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import generate_uid

Mask = NDArray[np.bool_]
SPACING = (2.0, 1.0, 1.0)
CATEGORY = CodedConcept("49755003", "SCT", "Morphologically Abnormal Structure")
ANATOMY = CodedConcept("123037004", "SCT", "Anatomical Structure")
OLD_ANATOMY = CodedConcept("T-D000A", "SRT", "Anatomical Structure")
TISSUE = CodedConcept("85756007", "SCT", "Tissue")
LESION = CodedConcept("52988006", "SCT", "Lesion")
LIVER = CodedConcept("10200004", "SCT", "Liver")


def study(
    number: int, *, lesion: bool = True, n: int = 10, orientation: str = "axial", patient: str | None = None
) -> tuple[list[Dataset], Mask]:
    """Return CT images and the (slices, rows, columns) truth; the lesion is on slices 4 to 6."""
    where = (5.0, 14.0, 17.0, 3.5) if lesion else None
    images = ct_series(n, 32, 40, orientation=orientation, lesion=where, study=f"site/{number}", seed=number)
    for image in images:
        image.PatientID = f"CANARY-{number}" if patient is None else patient
    plain, drawn = (phantom(n, 32, 40, SPACING, w, seed=number) for w in (None, where))
    return images, plain != drawn


def save(folder: Path, *datasets: Dataset) -> list[Path]:
    """Write objects below `folder`."""
    return write_all(datasets, folder)


def image_study(name: str, pictures: Sequence[NDArray[np.uint8]], patient: str) -> list[Dataset]:
    """Return 8-bit images as slices of one CT study."""
    images = []
    for i, pixels in enumerate(pictures):
        ds = base(CT, "CT", study=name, n=i + 1)
        ds.PatientID, ds.ImageType, ds.KVP = patient, ["DERIVED", "SECONDARY", "AXIAL"], 120
        ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = uid(name, "frame"), ""
        ds.ImageOrientationPatient, ds.ImagePositionPatient = [0.8, 0.6, 0, -0.6, 0.8, 0], [-10, 5, 3.0 * i]
        ds.PixelSpacing, ds.SliceThickness = [0.7, 0.9], 3
        ds.RescaleIntercept, ds.RescaleSlope = 0, 1
        set_pixels(ds, pixels.astype(np.uint16), bits=12)
        images.append(ds)
    return images


def seg(
    images: Sequence[Dataset],
    masks: NDArray[Any],
    *,
    kind: str = "BINARY",
    algorithm: str = "MANUAL",
    categories: Sequence[CodedConcept] = (CATEGORY,),
    **more: Any,
) -> Segmentation:
    """Return a SEG of (slices, rows, columns) masks, label numbers, or fractions."""
    identification = None
    if algorithm != "MANUAL":
        identification = hd.AlgorithmIdentificationSequence(
            name="test", version="1", family=CodedConcept("123110", "DCM", "Artificial Intelligence")
        )
    descriptions = [
        SegmentDescription(
            segment_number=i,
            segment_label=f"segment {i}",
            segmented_property_category=category,
            segmented_property_type=LESION if category is CATEGORY else LIVER,
            algorithm_type=algorithm,
            algorithm_identification=identification,
        )
        for i, category in enumerate(categories, start=1)
    ]
    return Segmentation(
        source_images=list(images),
        pixel_array=masks if masks.dtype.kind == "f" else masks.astype(np.uint8),
        segmentation_type=kind,
        segment_descriptions=descriptions,
        series_instance_uid=generate_uid(),
        series_number=100,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Factory",
        manufacturer_model_name="Synthetic",
        software_versions="1",
        device_serial_number="1",
        **more,
    )


def loops(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Return the outlines of a (rows, columns) mask along its pixels' edges.

    (n, 2) each: column, row; pixel centres are whole numbers. Outer outlines have a positive area by the
    shoelace formula, holes a negative one.
    """
    padded = np.pad(mask, 1)
    follows: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for r, c in np.argwhere(padded):
        for (dr, dc), start, end in (
            ((-1, 0), (r, c), (r, c + 1)),
            ((0, 1), (r, c + 1), (r + 1, c + 1)),
            ((1, 0), (r + 1, c + 1), (r + 1, c)),
            ((0, -1), (r + 1, c), (r, c)),
        ):
            if not padded[r + dr, c + dc]:
                follows.setdefault(start, []).append(end)
    out = []
    while follows:
        start = next(iter(follows))
        path, at = [], start
        while True:
            path.append(at)
            ends = follows[at]
            at = ends.pop()
            if not ends:
                del follows[path[-1]]
            if at == start:
                break
        out.append(np.array([(c - 1.5, r - 1.5) for r, c in path], dtype=np.float64))
    return out


def area(polygon: NDArray[np.float64]) -> float:
    """Return the signed area of a polygon."""
    x, y = polygon[:, 0], polygon[:, 1]
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def to_space(image: Dataset, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (n, 3) mm of (n, 2) column, row."""
    cosines = np.array(image.ImageOrientationPatient, dtype=np.float64)
    rows, columns = (float(v) for v in image.PixelSpacing)
    return np.asarray(
        np.array(image.ImagePositionPatient, dtype=np.float64)
        + points[:, :1] * columns * cosines[:3]
        + points[:, 1:] * rows * cosines[3:]
    )


def rtstruct(
    images: Sequence[Dataset],
    masks: Mask,
    *,
    references: bool = True,
    frame_of_reference: str | None = None,
    shift_mm: float = 0.0,
    kind: str = "GTV",
    geometric: str = "CLOSED_PLANAR",
) -> Dataset:
    """Return a structure set with one ROI."""
    ds = base("1.2.840.10008.5.1.4.1.1.481.3", "RTSTRUCT", study=str(images[0].StudyInstanceUID))
    ds.StudyInstanceUID, ds.PatientID = images[0].StudyInstanceUID, images[0].PatientID
    ds.StructureSetLabel, ds.StructureSetDate, ds.StructureSetTime = "TEST", "20260102", "101112"
    roi, observation, drawn = Dataset(), Dataset(), Dataset()
    roi.ROINumber, roi.ROIName, roi.ROIGenerationAlgorithm = 1, "CANARY ROI", "MANUAL"
    roi.ReferencedFrameOfReferenceUID = frame_of_reference or images[0].FrameOfReferenceUID
    observation.ObservationNumber, observation.ReferencedROINumber = 1, 1
    observation.RTROIInterpretedType, observation.ROIInterpreter = kind, ""
    drawn.ReferencedROINumber, drawn.ContourSequence = 1, DicomSequence([])
    for image, mask in zip(images, masks, strict=True):
        cosines = np.array(image.ImageOrientationPatient, dtype=np.float64)
        off = shift_mm * np.cross(cosines[:3], cosines[3:])
        for polygon in loops(mask):
            contour, reference = Dataset(), Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = geometric, len(polygon)
            contour.ContourData = [f"{v:.10g}" for v in (to_space(image, polygon) + off).ravel()]
            reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = (
                image.SOPClassUID,
                image.SOPInstanceUID,
            )
            if references:
                contour.ContourImageSequence = DicomSequence([reference])
            drawn.ContourSequence.append(contour)
    ds.StructureSetROISequence = DicomSequence([roi])
    ds.RTROIObservationsSequence = DicomSequence([observation])
    ds.ROIContourSequence = DicomSequence([drawn])
    return ds


def regions(images: Sequence[Dataset], masks: Mask, *, space: bool = False) -> list[Any]:
    """Return outer outlines as SR regions: SCOORD polylines, or SCOORD3D polygons."""
    found: list[Any] = []
    for image, mask in zip(images, masks, strict=True):
        for polygon in loops(mask):
            if area(polygon) < 0:
                continue
            closed = np.concatenate([polygon, polygon[:1]])
            if space:
                found.append(
                    hd.sr.ImageRegion3D("POLYGON", to_space(image, closed), image.FrameOfReferenceUID)
                )
            else:
                found.append(region(image, "POLYLINE", closed + 0.5))
    return found


def region(image: Dataset, graphic: str, points: NDArray[np.float64]) -> hd.sr.ImageRegion:
    """Return an SCOORD region; points count from the corner of the first pixel."""
    source = hd.sr.SourceImageForRegion(image.SOPClassUID, image.SOPInstanceUID)
    return hd.sr.ImageRegion(graphic, points, source)


def report(images: Sequence[Dataset], groups: Sequence[Any], evidence: Sequence[Dataset] = ()) -> Dataset:
    """Return a TID 1500 report with one planar measurement group for each region or segment reference."""
    observer = hd.sr.ObserverContext(
        CodedConcept("121006", "DCM", "Person"), hd.sr.PersonObserverIdentifyingAttributes("Reader^A")
    )
    measured = []
    for i, item in enumerate(groups):
        is_segment = isinstance(item, hd.sr.ReferencedSegmentationFrame)
        measured.append(
            hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=hd.sr.TrackingIdentifier(generate_uid(), f"finding {i}"),
                referenced_segment=item if is_segment else None,
                referenced_region=None if is_segment else item,
                finding_type=LESION,
            )
        )
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_person_context=observer),
        procedure_reported=CodedConcept("77477000", "SCT", "CT"),
        imaging_measurements=measured,
    )
    return hd.sr.Comprehensive3DSR(
        evidence=[*images, *evidence],
        content=content[0],
        series_instance_uid=generate_uid(),
        series_number=200,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Factory",
        is_complete=True,
    )


def picture(path: Path, pixels: NDArray[np.generic]) -> Path:
    """Write a picture and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def gradient(rows: int = 24, columns: int = 30) -> NDArray[np.uint8]:
    """Return a picture that is not of one value."""
    return np.arange(rows * columns, dtype=np.uint32).reshape(rows, columns).__mod__(251).astype(np.uint8)


def spot(rows: int = 24, columns: int = 30) -> NDArray[np.uint8]:
    """Return a mask picture, 0 and 255."""
    out = np.zeros((rows, columns), np.uint8)
    out[4:9, 5:12] = 255
    return out
