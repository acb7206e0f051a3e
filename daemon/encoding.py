"""What the result objects have in common: equipment, creation times and the bytes (PS3.3 C.7.5, C.12.1)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from highdicom.base_content import ContributingEquipment
from highdicom.content import PixelMeasuresSequence
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from daemon import codes
from daemon.errors import EncodeError
from daemon.results import Analysis, Job
from daemon.source import Source
from daemon.uids import OWN_CREATOR_UID


def equipment(job: Job, analysis: Analysis) -> ContributingEquipment:
    """Contributing Equipment item of the algorithm (PS3.3 C.12.1, CID 7005; AIR).

    Parameters
    ----------
    job, analysis
        Which software, which bundle.

    Returns
    -------
    The item, with the Device UID that highdicom has no argument for.
    """
    item = ContributingEquipment(
        manufacturer=job.manufacturer,
        purpose_of_reference=codes.PROCESSING_EQUIPMENT,
        manufacturer_model_name=job.algorithm_name,
        software_versions=job.algorithm_version(analysis),
        device_serial_number=job.device_serial_number,
        contribution_description="Anomaly detection",
    )
    item.DeviceUID = job.algorithm_device_uid(analysis.bundle_version)
    return item


def identity(
    job: Job, analysis: Analysis, source: Source, name: str, series_number: int, suffix: str = ""
) -> dict[str, Any]:
    """What every image that we make is told alike: UIDs, dates, software, transfer syntax.

    Parameters
    ----------
    job, analysis, source
        What was made of which frame group.
    name
        Which object; part of its UIDs.
    series_number
        Of its series.
    suffix
        What tells variants of the object apart; part of their UIDs.

    Returns
    -------
    Arguments of highdicom's constructors.
    """
    created = job.local_time(source.timezone_offset)
    return {
        "series_instance_uid": job.uid(f"{name}-series{suffix}", analysis),
        "series_number": series_number,
        "sop_instance_uid": job.uid(f"{name}{suffix}", analysis),
        "instance_number": 1,
        "manufacturer": job.manufacturer,
        "manufacturer_model_name": job.algorithm_name,
        "software_versions": job.algorithm_version(analysis),
        "device_serial_number": job.device_serial_number,
        "transfer_syntax_uid": ExplicitVRLittleEndian,
        "contributing_equipment": [equipment(job, analysis)],
        "content_date": created.date(),
        "content_time": created.time(),
        "series_date": created.date(),
        "series_time": created.time(),
    }


@contextlib.contextmanager
def making(what: str) -> Iterator[None]:
    """Name the object whose making highdicom refuses.

    Raises
    ------
    EncodeError
        In place of highdicom's errors, whose texts can hold what the source says of the patient.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise EncodeError(f"highdicom refused to make a {what} of this frame group") from error


def finish(ds: Dataset, job: Job, source_timezone: str) -> None:
    """Fix what highdicom takes from the clock: creation and contribution times (PS3.3 C.12.1).

    Parameters
    ----------
    ds
        SEG or SR; changed in place.
    job
        Gives the time.
    source_timezone
        TimezoneOffsetFromUTC of the source, or "".
    """
    created = job.local_time(source_timezone)
    ds.InstanceCreationDate, ds.InstanceCreationTime = created.strftime("%Y%m%d"), created.strftime("%H%M%S")
    ds.InstanceCreatorUID = OWN_CREATOR_UID
    for item in ds.ContributingEquipmentSequence:
        item.ContributionDateTime = created.strftime("%Y%m%d%H%M%S")


def pixel_measures(source: Source) -> PixelMeasuresSequence:
    """Spacing of a frame group that is in space (PS3.3 C.7.6.16.2.1); a thickness is always given."""
    group = source.group
    return PixelMeasuresSequence(
        pixel_spacing=[abs(v) for v in group.pixel_spacing_mm or ()],
        slice_thickness=source.slice_thickness_mm,
        spacing_between_slices=abs(group.slice_spacing_mm) if group.slice_spacing_mm else None,
    )


def to_bytes(ds: Dataset) -> bytes:
    """Encode an object as a Part 10 file, Explicit VR Little Endian."""
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
