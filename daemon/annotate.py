"""What a person said of findings as DICOM annotations: accepted segments, and drawn polygons.

They are made for training, not for a PACS, and never sent.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.utils import pack_bits
from pydicom.sequence import Sequence as Items
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian

from daemon.uids import OWN_CREATOR_UID, derived

_COMPREHENSIVE_SR = UID("1.2.840.10008.5.1.4.1.1.88.33")
# Frame index → polygons of (column, row), the corner of the first pixel being (0, 0).
Drawing = Mapping[str, Sequence[Sequence[Sequence[float]]]]


def accepted_segments(segs: Sequence[Path], tracking_uids: Collection[str]) -> bytes | None:
    """A copy of a SEG with some segments alone, marked as looked at by a person.

    Parameters
    ----------
    segs
        Our SEGs of the revision.
    tracking_uids
        Of the segments to keep.

    Returns
    -------
    A Part 10 file, or None if no SEG has such a segment.
    """
    for path in segs:
        try:
            ds = dcmread(path)
        except (OSError, InvalidDicomError):
            continue
        kept = [s for s in ds.SegmentSequence if str(s.get("TrackingUID", "")) in tracking_uids]
        if kept:
            return _only(ds, kept)
    return None


def _only(ds: FileDataset, kept: Sequence[Dataset]) -> bytes:
    numbers = {int(segment.SegmentNumber): new for new, segment in enumerate(kept, 1)}
    items = ds.PerFrameFunctionalGroupsSequence
    frames = [i for i, item in enumerate(items) if _segment(item) in numbers]
    pixels = np.asarray(ds.pixel_array).reshape(len(items), ds.Rows, ds.Columns)[frames]
    for i in frames:
        items[i].SegmentIdentificationSequence[0].ReferencedSegmentNumber = numbers[_segment(items[i])]
    ds.PerFrameFunctionalGroupsSequence = Items([items[i] for i in frames])
    for segment in kept:
        segment.SegmentNumber = numbers[int(segment.SegmentNumber)]
        # PS3.3 C.8.20.2: a person looked at what an algorithm drew.
        segment.SegmentAlgorithmType = "SEMIAUTOMATIC"
    ds.SegmentSequence = Items(list(kept))
    ds.NumberOfFrames = len(frames)
    ds.PixelData = pack_bits(pixels) if ds.BitsAllocated == 1 else pixels.tobytes()
    uid = derived("accepted", str(ds.SOPInstanceUID), *sorted(str(s.TrackingUID) for s in kept))
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid  # type: ignore[assignment]
    return _bytes(ds)


def _segment(item: Dataset) -> int:
    return int(item.SegmentIdentificationSequence[0].ReferencedSegmentNumber)


def drawn_report(frames: Sequence[tuple[Path, int]], drawings: Sequence[Drawing], seed: str) -> bytes:
    """A report whose SCOORD polygons are what a person drew (PS3.3 C.18.6, PS3.16 TID 1410).

    Parameters
    ----------
    frames
        Of the series in order: file and frame number from 1.
    drawings
        Polygons by frame index.
    seed
        Of its UIDs.

    Returns
    -------
    A Part 10 file.
    """
    first = dcmread(frames[0][0], stop_before_pixels=True)
    regions = list(_regions(frames, drawings))
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = _COMPREHENSIVE_SR
    meta.MediaStorageSOPInstanceUID = UID(derived("drawn", seed, repr(drawings)))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(OWN_CREATOR_UID)
    ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)  # type: ignore[arg-type]
    for keyword in ("SpecificCharacterSet", "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
                    "StudyInstanceUID", "StudyDate", "StudyTime", "AccessionNumber", "StudyID",
                    "ReferringPhysicianName"):  # fmt: skip
        if keyword in first:
            ds[keyword] = first[keyword]
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.SeriesInstanceUID, ds.SeriesNumber, ds.InstanceNumber = derived("drawn series", seed), 9900, 1
    ds.Modality, ds.CompletionFlag, ds.VerificationFlag = "SR", "COMPLETE", "UNVERIFIED"
    group = _container(codes.DCM.MeasurementGroup, regions)
    root = _container(codes.DCM.ImagingMeasurementReport, [group])
    del root.RelationshipType
    ds.update(root)
    return _bytes(ds)


def _regions(frames: Sequence[tuple[Path, int]], drawings: Sequence[Drawing]) -> Iterator[Dataset]:
    for drawing in drawings:
        for index, polygons in sorted(drawing.items(), key=lambda pair: int(pair[0])):
            path, number = frames[int(index)]
            header = dcmread(path, stop_before_pixels=True)
            for polygon in polygons:
                yield _scoord(header, number, polygon)


def _scoord(header: Dataset, number: int, polygon: Sequence[Sequence[float]]) -> Dataset:
    image, item, reference = Dataset(), Dataset(), Dataset()
    reference.ReferencedSOPClassUID = header.SOPClassUID
    reference.ReferencedSOPInstanceUID = header.SOPInstanceUID
    if "NumberOfFrames" in header:
        reference.ReferencedFrameNumber = number
    image.RelationshipType, image.ValueType = "SELECTED FROM", "IMAGE"
    image.ReferencedSOPSequence = Items([reference])
    closed = [*polygon, polygon[0]]
    item.RelationshipType, item.ValueType, item.GraphicType = "CONTAINS", "SCOORD", "POLYLINE"
    item.ConceptNameCodeSequence = _code(codes.DCM.ImageRegion)
    item.GraphicData = [float(value) for point in closed for value in point]
    item.ContentSequence = Items([image])
    return item


def _container(name: Code, content: Sequence[Dataset]) -> Dataset:
    item = Dataset()
    item.RelationshipType, item.ValueType, item.ContinuityOfContent = "CONTAINS", "CONTAINER", "SEPARATE"
    item.ConceptNameCodeSequence = _code(name)
    item.ContentSequence = Items(list(content))
    return item


def _code(code: Code) -> Any:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = code.value, code.scheme_designator
    item.CodeMeaning = code.meaning
    return Items([item])


def _bytes(ds: FileDataset) -> bytes:
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()
