"""Scorable: which objects of a study are images that a model can look at, and why the rest is not."""

from __future__ import annotations

from pydicom import Dataset
from pydicom.uid import UID

# By SOP class, longest prefix first (PS3.4 B.5); the words are an administrator's.
_BY_SOP_CLASS = {
    "1.2.840.10008.1.3.10": "a media directory (DICOMDIR), not an image",
    "1.2.840.10008.5.1.4.1.1.66": "raw data, a segmentation or a registration, not an image",
    "1.2.840.10008.5.1.4.1.1.66.1": "a spatial registration, not an image",
    "1.2.840.10008.5.1.4.1.1.66.2": "spatial fiducials, not an image",
    "1.2.840.10008.5.1.4.1.1.66.3": "a deformable registration, not an image",
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation, not an image",
    "1.2.840.10008.5.1.4.1.1.66.5": "a surface segmentation, not an image",
    "1.2.840.10008.5.1.4.1.1.66.6": "tractography, not an image",
    "1.2.840.10008.5.1.4.1.1.66.7": "a label map segmentation, not an image",
    "1.2.840.10008.5.1.4.1.1.67": "a real world value mapping, not an image",
    "1.2.840.10008.5.1.4.1.1.68": "a surface mesh, not an image",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map, not an image",
    "1.2.840.10008.5.1.4.1.1.4.2": "MR spectroscopy, not an image",
    "1.2.840.10008.5.1.4.1.1.7.1": "a one-bit secondary capture, which holds masks or text",
    "1.2.840.10008.5.1.4.1.1.9": "a waveform, not an image",
    "1.2.840.10008.5.1.4.1.1.11": "a presentation state, not an image",
    "1.2.840.10008.5.1.4.1.1.77.1.1.1": "a video, which is not scored",
    "1.2.840.10008.5.1.4.1.1.77.1.2.1": "a video, which is not scored",
    "1.2.840.10008.5.1.4.1.1.77.1.4.1": "a video, which is not scored",
    "1.2.840.10008.5.1.4.1.1.77.1.5.3": "a stereometric relationship, not an image",
    "1.2.840.10008.5.1.4.1.1.77.1.6": "whole slide microscopy, whose tiles are not scored",
    "1.2.840.10008.5.1.4.1.1.78": "an ophthalmic measurement, not an image",
    "1.2.840.10008.5.1.4.1.1.79": "an ophthalmic measurement, not an image",
    "1.2.840.10008.5.1.4.1.1.80": "an ophthalmic measurement, not an image",
    "1.2.840.10008.5.1.4.1.1.88": "a structured report, not an image",
    "1.2.840.10008.5.1.4.1.1.88.59": "a key object selection, not an image",
    "1.2.840.10008.5.1.4.1.1.90": "a content assessment result, not an image",
    "1.2.840.10008.5.1.4.1.1.91": "microscopy annotations, not an image",
    "1.2.840.10008.5.1.4.1.1.104": "an encapsulated document or model, not an image",
    "1.2.840.10008.5.1.4.1.1.131": "a stored print or display object, not an image",
    "1.2.840.10008.5.1.4.1.1.200": "a device configuration, not an image",
    "1.2.840.10008.5.1.4.1.1.201": "a storage management object, not an image",
    "1.2.840.10008.5.1.4.1.1.481": "a radiotherapy object, not a diagnostic image",
    "1.2.840.10008.5.1.4.1.1.481.2": "a radiotherapy dose, not an image",
    "1.2.840.10008.5.1.4.34": "a radiotherapy treatment record, not an image",
    "1.2.840.10008.5.1.4.38": "a hanging protocol, not an image",
    "1.2.840.10008.5.1.4.39": "a colour palette, not an image",
    "1.2.840.10008.5.1.4.43": "an implant template, not an image",
    "1.2.840.10008.5.1.4.44": "an implant template, not an image",
    "1.2.840.10008.5.1.4.45": "an implant template, not an image",
}

# For private SOP classes, which say what they are by Modality alone (PS3.3 C.7.3.1.1.1).
_BY_MODALITY = {
    "SEG": "a segmentation, not an image",
    "SR": "a structured report, not an image",
    "KO": "a key object selection, not an image",
    "PR": "a presentation state, not an image",
    "REG": "a registration, not an image",
    "DOC": "a document, not an image",
    "ECG": "a waveform, not an image",
    "RTSTRUCT": "a radiotherapy object, not a diagnostic image",
    "RTDOSE": "a radiotherapy dose, not an image",
    "RTPLAN": "a radiotherapy object, not a diagnostic image",
    "RTRECORD": "a radiotherapy object, not a diagnostic image",
    "SM": "whole slide microscopy, whose tiles are not scored",
}

_VIDEO = {f"1.2.840.10008.1.2.4.{n}" for n in range(100, 109)}


def why_not_scored(ds: Dataset, transfer_syntax_uid: str = "") -> str | None:
    """Say why an object is no image that a model can look at.

    Parameters
    ----------
    ds
        Header of the object.
    transfer_syntax_uid
        Of its file.

    Returns
    -------
    str | None
        What it is, in words for an administrator; None for an image. Whether its pixel data can be
        decoded is another question.
    """
    sop_class = str(ds.get("SOPClassUID", "") or "")
    if not sop_class or not ds.get("SOPInstanceUID"):
        return "its SOP Class UID or SOP Instance UID is missing"
    reason = _by_sop_class(sop_class)
    if reason is None:
        reason = _by_modality(ds)
    if reason is not None:
        return reason
    if transfer_syntax_uid in _VIDEO:
        return "a video, which is not scored"
    # PS3.3 C.8.2.1.1.1: value 3 of ImageType; enhanced objects have it there too.
    types = [str(v).upper() for v in _values(ds, "ImageType")]
    if "LOCALIZER" in types or "SCOUT" in types:
        return "a localizer (scout), which is not scored"
    return None


def _by_sop_class(sop_class: str) -> str | None:
    parts = sop_class.split(".")
    for length in range(len(parts), 0, -1):
        reason = _BY_SOP_CLASS.get(".".join(parts[:length]))
        if reason is not None:
            return reason
    return None


def _by_modality(ds: Dataset) -> str | None:
    modality = str(ds.get("Modality", "") or "")
    # A standard image class is an image whatever its Modality says.
    if not UID(str(ds.SOPClassUID)).is_private and modality != "SM":
        return None
    return _BY_MODALITY.get(modality)


def _values(ds: Dataset, keyword: str) -> list[object]:
    value = ds.get(keyword)
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str) else list(value)
