"""Instances: one stored file seen as an image that can be scored, or refused with a reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset

from adapters.decode import check_pixels
from adapters.errors import DecodeError
from adapters.image_pixel import PixelFormat
from adapters.source import PixelSource, read_source
from daemon.geometry import Placement, placement
from daemon.scorable import why_not_scored
from daemon.stacks import phases_of


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something of the study that is kept but not scored, and why in an administrator's words."""

    sop_instance_uid: str
    reason: str


@dataclass(frozen=True, slots=True)
class ImageInstance:
    """What is kept of one scorable instance's header.

    Parameters
    ----------
    path
        Of the stored file.
    sop_class_uid, sop_instance_uid, series_instance_uid, modality, body_part, series_description, station
        "" where absent.
    frame_of_reference_uid
        None where absent.
    instance_number
        0 where absent or no number.
    form
        The checked Image Pixel module.
    places, phases
        Of each frame.
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    modality: str
    body_part: str
    series_description: str
    station: str
    frame_of_reference_uid: str | None
    instance_number: int
    form: PixelFormat
    places: tuple[Placement, ...]
    phases: tuple[dict[str, str], ...]


def read_image(
    path: Path,
    study_instance_uid: str,
    *,
    max_frame_pixels: int,
    max_study_frames: int,
    is_own: Callable[[Dataset], bool],
) -> ImageInstance | Refusal:
    """Read one instance's header and decide whether it can be scored.

    Parameters
    ----------
    path
        Of the stored file.
    study_instance_uid
        Of the study that it should belong to.
    max_frame_pixels, max_study_frames
        Limits for one frame and for the frames of the study.
    is_own
        Says whether a header is a result that this daemon made.

    Returns
    -------
    ImageInstance | Refusal
        Never an exception, whatever the file holds.
    """
    sop_instance_uid = ""
    try:
        source = read_source(path)
        sop_instance_uid = _text(source.header, "SOPInstanceUID")
        reason = _why_not(source, study_instance_uid, is_own)
        if reason is not None:
            return Refusal(sop_instance_uid, reason)
        form = check_pixels(source, max_frame_pixels=max_frame_pixels)
        if form.frames > max_study_frames:
            return Refusal(
                sop_instance_uid,
                f"it has {form.frames} frames, the limit is {max_study_frames} (max_study_frames)",
            )
        return _image(path, source.header, form)
    except DecodeError as error:
        return Refusal(sop_instance_uid, str(error))
    # A damaged value shows only when pydicom converts it, and then as any exception, some of its own kinds.
    except Exception as e:
        return Refusal(sop_instance_uid, f"its header is damaged ({type(e).__name__})")


def _why_not(source: PixelSource, study: str, is_own: Callable[[Dataset], bool]) -> str | None:
    if is_own(source.header):
        return "a result of this daemon that came back"
    reason = why_not_scored(source.header, source.transfer_syntax_uid)
    if reason is not None:
        return reason
    if _text(source.header, "StudyInstanceUID") != study:
        return "an instance of another study, or of none"
    if not _text(source.header, "SeriesInstanceUID"):
        return "its Series Instance UID is missing"
    return None


def _text(ds: Dataset, keyword: str) -> str:
    value = ds.get(keyword)
    return "" if value is None else str(value)


def _image(path: Path, ds: Dataset, form: PixelFormat) -> ImageInstance:
    numbers = range(1, form.frames + 1)
    number = _text(ds, "InstanceNumber")
    return ImageInstance(
        path=path,
        sop_class_uid=_text(ds, "SOPClassUID"),
        sop_instance_uid=_text(ds, "SOPInstanceUID"),
        series_instance_uid=_text(ds, "SeriesInstanceUID"),
        modality=_text(ds, "Modality"),
        body_part=_text(ds, "BodyPartExamined"),
        series_description=_text(ds, "SeriesDescription"),
        station=_text(ds, "StationName"),
        frame_of_reference_uid=_text(ds, "FrameOfReferenceUID") or None,
        instance_number=int(number) if number.lstrip("-").isdigit() else 0,
        form=form,
        places=tuple(placement(ds, n, form.frames) for n in numbers),
        phases=tuple(phases_of(ds, n) for n in numbers),
    )
