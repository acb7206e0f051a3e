"""Companions of SEG and SR for the destinations that want them: parametric map and secondary capture.

The parametric map (PS3.3 A.75) holds the score of every pixel; the secondary capture (PS3.3 A.8.1) is
a picture of the findings for a PACS that shows no SEG.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np
from highdicom.content import VOILUTTransformation
from highdicom.pm import ParametricMap, RealWorldValueMapping
from highdicom.sc import SCImage
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from daemon import codes
from daemon.encoding import finish, identity, making, pixel_measures, to_bytes
from daemon.log import event
from daemon.results import Analysis, Job, ResultObject
from daemon.source import Source, open_source

MAP_SERIES_NUMBER = 9002
CAPTURE_SERIES_NUMBER = 9003
# A larger map is left out: it would hold this much memory several times over.
MAXIMUM_MAP_BYTES = 1 << 30
_STEPS = 65_535


def encode_map(
    analysis: Analysis,
    maps: Sequence[NDArray[np.float32]],
    job: Job,
    *,
    form: Literal["integer", "float"],
    series_number: int = MAP_SERIES_NUMBER,
) -> ResultObject | None:
    """Encode the scores of one frame group as a Parametric Map (PS3.3 A.75).

    Parameters
    ----------
    analysis
        Of the group.
    maps
        (rows, columns) float32 in [0, 1] per frame of the group.
    job
        Gives every date and UID.
    form
        ``integer``: 16 bits, 65535 is 1.0; ``float``: 32 bits as they are.
    series_number
        Of its series.

    Returns
    -------
    The map; None without a frame of reference (the IOD needs one), or where it would be too large.

    Raises
    ------
    EncodeError
        If the source cannot be read.
    """
    source, group = open_source(analysis.group), analysis.group
    if not source.is_in_space:
        return None
    dtype = np.uint16 if form == "integer" else np.float32
    shape = (len(group.frames), group.rows, group.columns)
    if int(np.prod(shape)) * np.dtype(dtype).itemsize > MAXIMUM_MAP_BYTES:
        event("parametric map left out", level=logging.WARNING, reason="it would be too large")
        return None
    values: NDArray[np.uint16 | np.float32] = np.empty(shape, dtype)
    for i in range(len(group.frames)):
        score = np.clip(np.nan_to_num(maps[i]), 0, 1)
        values[i] = np.round(score * _STEPS) if form == "integer" else score
    suffix = f"-{form}"
    with making("parametric map"):
        ds = ParametricMap(
            source_images=[source.stand_in(i, in_space=True) for i in range(len(group.frames))],
            pixel_array=values,
            **identity(job, analysis, source, "map", series_number, suffix),
            contains_recognizable_visual_features=False,
            real_world_value_mappings=[_mapping(form)],
            voi_lut_transformations=[_window(form)],
            pixel_measures=pixel_measures(source),
            content_label="ANOMALY",
            content_description="Anomaly scores (research)",
            content_qualification="RESEARCH",
            series_description="Anomaly scores (research)",
        )
    _complete(ds, source, job)
    organization = job.uid(f"map-dimensions{suffix}", analysis)
    ds.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    for index in ds.DimensionIndexSequence:
        index.DimensionOrganizationUID = organization
    ds.CodingSchemeIdentificationSequence = [codes.private_scheme()]
    return _result(ds)


def encode_capture(
    analysis: Analysis,
    picture: NDArray[np.uint8],
    job: Job,
    *,
    series_number: int = CAPTURE_SERIES_NUMBER,
) -> ResultObject:
    """Encode a picture of one frame group as a Secondary Capture (PS3.3 A.8.1).

    Parameters
    ----------
    analysis
        Of the group.
    picture
        (rows, columns, 3) uint8 without patient data.
    job
        Gives every date and UID.
    series_number
        Of its series.

    Returns
    -------
    The secondary capture, on no grid of the patient's: nobody can measure in it by mistake.

    Raises
    ------
    EncodeError
        If the source cannot be read.
    """
    source = open_source(analysis.group)
    created = job.local_time(source.timezone_offset)
    with making("secondary capture"):
        ds = SCImage.from_ref_dataset(
            source.stand_in(0, in_space=False),
            pixel_array=picture,
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "P"),
            **identity(job, analysis, source, "capture", series_number),
            series_description="Anomaly overview (research)",
        )
    # A sheet of several slices has no orientation (Type 2C, PS3.3 C.7.6.1).
    setattr(ds, "PatientOrientation", None)  # noqa: B010 highdicom types it as a list
    setattr(ds, "DateOfSecondaryCapture", created.strftime("%Y%m%d"))  # noqa: B010 likewise
    setattr(ds, "TimeOfSecondaryCapture", created.strftime("%H%M%S"))  # noqa: B010
    ds.ConversionType = "WSD"
    ds.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    _complete(ds, source, job)
    return _result(ds)


def _mapping(form: str) -> RealWorldValueMapping:
    """What a stored value means (PS3.3 C.7.6.16.2.11)."""
    is_integer = form == "integer"
    return RealWorldValueMapping(
        lut_label="ANOMSCORE",
        lut_explanation="Anomaly score, 0 to 1 (research)",
        unit=codes.NO_UNITS,
        value_range=(0, _STEPS) if is_integer else (0.0, 1.0),
        slope=1 / _STEPS if is_integer else 1.0,
        intercept=0.0,
        quantity_definition=codes.ANOMALY_SCORE,
    )


def _window(form: str) -> VOILUTTransformation:
    width = float(_STEPS) if form == "integer" else 1.0
    return VOILUTTransformation(window_center=width / 2, window_width=width)


def _complete(ds: Dataset, source: Source, job: Job) -> None:
    """Set what highdicom leaves out or takes from the clock."""
    source.restore(ds)
    finish(ds, job, source.timezone_offset)
    ds.BurnedInAnnotation = "NO"
    if source.group.body_part:
        ds.BodyPartExamined = source.group.body_part
    elif not source.header.get("Laterality"):
        # Type 2C (PS3.3 C.7.3.1): of a body part that is not named it cannot be said that it is unpaired.
        ds.Laterality = None
    if source.header.get("Laterality"):
        ds.Laterality = source.header.Laterality


def _result(ds: Dataset) -> ResultObject:
    return ResultObject(
        sop_class_uid=str(ds.SOPClassUID),
        sop_instance_uid=str(ds.SOPInstanceUID),
        series_instance_uid=str(ds.SeriesInstanceUID),
        content=to_bytes(ds),
    )
