"""DICOM images of a site folder, frame by frame, and which objects are none."""

from __future__ import annotations

import hashlib
import hmac
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import UID

from adapters.decode import check_pixels
from adapters.errors import DecodeError
from adapters.image_pixel import PixelFormat
from adapters.slices import Normalisation, load_slice
from adapters.source import PixelSource
from adapters.values import functional_group
from training.annotations import SiteImage
from training.cases import Label
from training.errors import AnnotationError
from training.planes import Plane
from training.site_roots import Roots

# What the daemon writes into each result as the owner of its codes (PS3.3 C.12.1.4.1).
_OWN_ORGANIZATION = "pacs-anomaly-daemon"
_NO_IMAGES = ("Segmentation", "Whole Slide", "Video", "RT Image", "Single Bit", "Parametric", "Stored Print")


class Pseudonyms:
    """Keyed hashes of identifiers: the same patient gives the same hash, which tells nobody who it is.

    Parameters
    ----------
    key
        Secret of the site.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __call__(self, kind: str, *parts: str) -> str:
        """Return 16 hex digits for an identifier of a kind."""
        text = "\0".join((kind, *parts)).encode()
        return hmac.new(self._key, text, hashlib.sha256).hexdigest()[:16]

    def patient(self, patient_id: str, issuer: str = "") -> str:
        """Return the hash of a patient, "" without an identifier."""
        return self("patient", patient_id.strip(), issuer.strip()) if patient_id.strip() else ""


def is_own_result(ds: Dataset) -> bool:
    """True if the daemon made this object, or a person's copy of it kept its codes."""
    schemes = ds.get("CodingSchemeIdentificationSequence") or ()
    return any(s.get("CodingSchemeResponsibleOrganization") == _OWN_ORGANIZATION for s in schemes)


def why_no_image(source: PixelSource) -> str | None:
    """Return what an object is if it is no diagnostic image, None for an image."""
    ds = source.header
    sop_class = UID(str(ds.get("SOPClassUID", "") or ""))
    if "DirectoryRecordSequence" in ds:
        return "a media directory (DICOMDIR): its files are found without it"
    if not sop_class or not ds.get("SOPInstanceUID"):
        return "no DICOM object, or one whose SOP Class UID or SOP Instance UID is missing"
    if not sop_class.is_private:
        name = sop_class.name
        if name == sop_class:
            name = "an unknown SOP class"
        if "Image Storage" not in name or any(word in name for word in _NO_IMAGES):
            return f"{name}: not an image that can be trained on"
    elif not source.tag:
        return "a private object without pixel data: not an image"
    types = ds.get("ImageType") or ()
    if {"LOCALIZER", "SCOUT"} & {str(t).upper() for t in ([types] if isinstance(types, str) else types)}:
        return "a localizer (scout), which is not trained on"
    return None


def plane_of(ds: Dataset, number: int) -> Plane | None:
    """Return where a frame lies in space, None if the object does not say (PS3.3 C.7.6.2, C.7.6.16.2).

    Parameters
    ----------
    ds
        Header of an image or SEG.
    number
        Of the frame, from 1.
    """
    values = []
    for macro, keyword, size in (
        ("PlanePositionSequence", "ImagePositionPatient", 3),
        ("PlaneOrientationSequence", "ImageOrientationPatient", 6),
        ("PixelMeasuresSequence", "PixelSpacing", 2),
    ):
        group = functional_group(ds, macro, number) or ds
        try:
            value = np.array([float(v) for v in group.get(keyword) or ()], dtype=np.float64)
        except (TypeError, ValueError):
            return None
        if value.size != size or not np.isfinite(value).all():
            return None
        values.append(value)
    position, cosines, spacing = values
    row, column = cosines[:3], cosines[3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if (spacing <= 0).any() or not np.allclose(lengths, 1, atol=1e-2) or abs(row @ column) > 1e-2:
        return None
    return Plane(position, row / lengths[0], column / lengths[1], (float(spacing[0]), float(spacing[1])))


def dicom_images(
    source: PixelSource,
    root: Roots,
    path: str,
    *,
    normalisation: Normalisation,
    max_frame_pixels: int,
    pseudonyms: Pseudonyms,
    folder_label: Label | None,
) -> list[SiteImage]:
    """Return the frames of an image object.

    Parameters
    ----------
    source
        The object.
    root, path
        The site folder, and the file below it.
    normalisation, max_frame_pixels
        For loading.
    pseudonyms
        Hashes of the site.
    folder_label
        What the file's folders say.

    Raises
    ------
    AnnotationError
        It is no image, or one that can't be decoded.
    """
    reason = why_no_image(source)
    if reason:
        raise AnnotationError(reason)
    ds = source.header
    uid = str(ds.SOPInstanceUID)
    study, series = (str(ds.get(k, "") or "") for k in ("StudyInstanceUID", "SeriesInstanceUID"))
    if not study or not series:
        raise AnnotationError("its Study or Series Instance UID is missing")
    try:
        form = check_pixels(source, max_frame_pixels=max_frame_pixels)
    except DecodeError as error:
        raise AnnotationError(str(error)) from error
    # A position beside several frames is that of the first alone.
    is_placed = form.frames == 1 or "PerFrameFunctionalGroupsSequence" in ds
    patient = pseudonyms.patient(str(ds.get("PatientID") or ""), str(ds.get("IssuerOfPatientID") or ""))
    load = partial(_load, root / path, normalisation, max_frame_pixels)
    return [
        SiteImage(
            key=(uid, number),
            path=path,
            study=study,
            series=series,
            frame_of_reference=str(ds.get("FrameOfReferenceUID", "") or ""),
            plane=plane_of(ds, number) if is_placed else None,
            rows=form.rows,
            columns=form.columns,
            number=_instance_number(ds) * 1_000_000 + number,
            single=form.frames == 1,
            patient=patient,
            modality=str(ds.get("Modality", "") or ""),
            body_part=str(ds.get("BodyPartExamined", "") or ""),
            folder_label=folder_label,
            load=partial(load, number),
            attributes=_attributes(ds, form),
        )
        for number in range(1, form.frames + 1)
    ]


def _load(path: Path, normalisation: Normalisation, limit: int, number: int) -> NDArray[np.float32]:
    return load_slice(path, number, normalisation=normalisation, max_frame_pixels=limit).pixels


def _instance_number(ds: Dataset) -> int:
    try:
        return int(ds.get("InstanceNumber") or 0)
    except (TypeError, ValueError):
        return 0


def _attributes(ds: Dataset, form: PixelFormat) -> dict[str, str]:
    """Trivial facts that may give a label away; none of them is the patient's."""
    found = {
        "rows": str(form.rows),
        "columns": str(form.columns),
        "bits_stored": str(form.bits_stored),
        "photometric": form.photometric,
    }
    for keyword in ("Manufacturer", "ManufacturerModelName", "WindowCenter", "WindowWidth", "SliceThickness",
                    "PixelSpacing", "KVP", "BurnedInAnnotation"):  # fmt: skip
        value = ds.get(keyword)
        if value not in (None, ""):
            found[keyword] = str(value)
    return found
