"""What a person said of findings as DICOM annotations: accepted segments, and drawn polygons.

They are made for training, not for a PACS, and never sent.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
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


def accepted_segments(segs: Sequence[Path], tracking_uids: Collection[str]) -> list[bytes] | None:
    """Copies of SEGs with some segments alone, marked as looked at by a person.

    Images without a place in space have a SEG per frame, so that findings of one series are in several;
    where destinations got different forms of a SEG, each finding is taken from one of them.

    Parameters
    ----------
    segs
        Our SEGs of the revision.
    tracking_uids
        Of the segments to keep.

    Returns
    -------
    Part 10 files that have every such segment once, or None if a segment is in no SEG that can be read.
    """
    wanted, found = set(tracking_uids), []
    for path in segs:
        try:
            ds = dcmread(path)
        except (OSError, InvalidDicomError):
            continue
        kept = [s for s in ds.get("SegmentSequence") or () if str(s.get("TrackingUID", "")) in wanted]
        if kept:
            wanted -= {str(segment.TrackingUID) for segment in kept}
            found.append(_only(ds, kept))
    return None if wanted else found


def _only(ds: FileDataset, kept: Sequence[Dataset]) -> bytes:
    numbers = {int(segment.SegmentNumber): new for new, segment in enumerate(kept, 1)}
    items = ds.PerFrameFunctionalGroupsSequence
    pixels = np.asarray(ds.pixel_array).reshape(len(items), ds.Rows, ds.Columns)
    if ds.get("SegmentationType") == "LABELMAP":
        # Its frames are of no segment: the pixel values are the segments' numbers (PS3.3 C.8.20.2).
        pixels = _relabelled(pixels, numbers)
        frames = [i for i, plane in enumerate(pixels) if plane.any()]
    else:
        holders = [_holder(ds, item) for item in items]
        frames = [i for i, holder in enumerate(holders) if int(holder.ReferencedSegmentNumber) in numbers]
        # Several frames may share a holder: it is renumbered once.
        for holder in {id(holders[i]): holders[i] for i in frames}.values():
            holder.ReferencedSegmentNumber = numbers[int(holder.ReferencedSegmentNumber)]
    ds.PerFrameFunctionalGroupsSequence = Items([items[i] for i in frames])
    for segment in kept:
        segment.SegmentNumber = numbers[int(segment.SegmentNumber)]
        # PS3.3 C.8.20.2: a person looked at what an algorithm drew.
        segment.SegmentAlgorithmType = "SEMIAUTOMATIC"
    ds.SegmentSequence = Items(list(kept))
    ds.NumberOfFrames = len(frames)
    values = pixels[frames]
    # Of even length (PS3.5 8.1.1).
    ds.PixelData = pack_bits(values) if ds.BitsAllocated == 1 else values.tobytes() + bytes(values.nbytes % 2)
    uid = derived("accepted", str(ds.SOPInstanceUID), *sorted(str(s.TrackingUID) for s in kept))
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid  # type: ignore[assignment]
    return _bytes(ds)


def _relabelled(pixels: NDArray[Any], numbers: Mapping[int, int]) -> NDArray[Any]:
    """Labels by their new numbers, 0 where they have none."""
    changed = np.zeros_like(pixels)
    for old, new in numbers.items():
        changed[pixels == old] = new
    return changed


def _holder(ds: Dataset, item: Dataset) -> Dataset:
    """What says of which segment a frame is; one for all frames may stand in the shared groups."""
    groups = item if "SegmentIdentificationSequence" in item else ds.SharedFunctionalGroupsSequence[0]
    holder: Dataset = groups.SegmentIdentificationSequence[0]
    return holder


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
