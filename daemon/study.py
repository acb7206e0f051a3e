"""Studies: spooled instances grouped into series groups that share geometry, in order of position."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset

from daemon.geometry import Placement
from daemon.instance import ImageInstance, read_image
from daemon.instance import Refusal as Refusal
from daemon.stacks import Located, stacks


@dataclass(frozen=True, slots=True)
class Frame:
    """One scorable frame of one instance: where its bytes are and where it lies in space.

    Parameters
    ----------
    path
        Spooled DICOM file.
    sop_class_uid, sop_instance_uid
        Of the instance.
    frame_number
        From 1.
    position
        ImagePositionPatient in mm (LPS) of this frame, or None for projections.
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    frame_number: int
    position: tuple[float, float, float] | None


@dataclass(frozen=True, slots=True)
class FrameGroup:
    """Frames of one series that share frame of reference, orientation, size and spacing.

    Parameters
    ----------
    series_instance_uid, modality, body_part, series_description
        Of the series ("" where absent). The description never leaves for a log.
    frame_of_reference_uid
        None for objects without one.
    orientation
        ImageOrientationPatient (row cosines, column cosines), or None.
    pixel_spacing_mm
        (between rows, between columns), or None.
    slice_spacing_mm
        Distance between neighbouring positions along the normal (median), or None for a single frame.
    rows, columns
        Of each frame.
    frames
        In order of position along the normal; in instance/frame order for projections.
    notes
        Things that an administrator should know: "2 missing slices", "gantry tilt 12.0°", ….
    station
        StationName of the scanner ("" where absent).
    """

    series_instance_uid: str
    modality: str
    body_part: str
    series_description: str
    frame_of_reference_uid: str | None
    orientation: tuple[float, float, float, float, float, float] | None
    pixel_spacing_mm: tuple[float, float] | None
    slice_spacing_mm: float | None
    rows: int
    columns: int
    frames: tuple[Frame, ...]
    notes: tuple[str, ...] = ()
    station: str = ""

    @property
    def is_volume(self) -> bool:
        """True if the frames are parallel slices in space with at least two positions."""
        return self.slice_spacing_mm is not None and len(self.frames) > 1

    @property
    def is_in_space(self) -> bool:
        """True if all frames have a frame of reference, plane and spacing, and no two the same position."""
        positions = {frame.position for frame in self.frames}
        return bool(
            self.frame_of_reference_uid
            and self.orientation
            and self.pixel_spacing_mm
            and None not in positions
            and len(positions) == len(self.frames)
        )

    @property
    def key(self) -> str:
        """16 hex digits that depend on the series and the frames alone: stable input for result UIDs."""
        frames = sorted((frame.sop_instance_uid, frame.frame_number) for frame in self.frames)
        return hashlib.sha256(repr((self.series_instance_uid, frames)).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Study:
    """A study without pixels: groups that can be scored, and refusals that say why the rest is not.

    Parameters
    ----------
    study_instance_uid
        Of the study.
    groups
        Scorable frame groups, ordered by series and geometry.
    refusals
        Everything else.
    """

    study_instance_uid: str
    groups: tuple[FrameGroup, ...]
    refusals: tuple[Refusal, ...]


def _never(ds: Dataset) -> bool:
    return False


def assemble(
    study_instance_uid: str,
    paths: Sequence[Path],
    *,
    max_frame_pixels: int,
    max_study_frames: int,
    is_own: Callable[[Dataset], bool] = _never,
) -> Study:
    """Put a study together from its stored instances, reading headers only.

    Parameters
    ----------
    study_instance_uid
        Of the study; instances of another one are refused.
    paths
        Stored instances, in any order.
    max_frame_pixels
        Limit for rows × columns × samples of one frame.
    max_study_frames
        Limit for the frames of the whole study; groups beyond it are refused.
    is_own
        Says whether a header is a result that this daemon made.

    Returns
    -------
    Study
        The same for the same files in any order. Every file is in a group or has a refusal.
    """
    images: dict[str, ImageInstance] = {}
    refusals: list[Refusal] = []
    for path in sorted(paths):
        image = read_image(
            path,
            study_instance_uid,
            max_frame_pixels=max_frame_pixels,
            max_study_frames=max_study_frames,
            is_own=is_own,
        )
        if isinstance(image, Refusal):
            refusals.append(image)
        elif image.sop_instance_uid in images:
            refusals.append(Refusal(image.sop_instance_uid, "a duplicate of an instance already there"))
        else:
            images[image.sop_instance_uid] = image
    groups, over = _limit(_groups(images.values()), max_study_frames)
    return Study(study_instance_uid, groups, (*refusals, *over))


def _groups(images: Iterable[ImageInstance]) -> list[FrameGroup]:
    """Group images by series, frame of reference and size, then by geometry."""
    groups: list[FrameGroup] = []
    spatial: dict[tuple[str, str, int, int], list[tuple[ImageInstance, int]]] = {}
    for image in sorted(images, key=_order):
        placed = [n for n, place in enumerate(image.places, 1) if place.position is not None]
        flat = [n for n in range(1, image.form.frames + 1) if image.places[n - 1].position is None]
        if flat:
            groups.append(_flat_group(image, flat))
        for number in placed:
            key = (
                image.series_instance_uid,
                image.frame_of_reference_uid or "",
                image.form.rows,
                image.form.columns,
            )
            spatial.setdefault(key, []).append((image, number))
    for members in spatial.values():
        groups.extend(_spatial_groups(members))
    # Stable: groups of one series stay in order of their first instance.
    return sorted(groups, key=lambda group: group.series_instance_uid)


def _order(image: ImageInstance) -> tuple[str, int, str]:
    return image.series_instance_uid, image.instance_number, image.sop_instance_uid


def _frame(image: ImageInstance, number: int) -> Frame:
    position = image.places[number - 1].position
    return Frame(image.path, image.sop_class_uid, image.sop_instance_uid, number, position)


def _flat_group(image: ImageInstance, numbers: Sequence[int]) -> FrameGroup:
    first = image.places[numbers[0] - 1]
    notes = [f"{len(numbers)} frames without a position, each by itself"] if len(numbers) > 1 else []
    notes += [first.note] if first.note else []
    return _group(image, [_frame(image, n) for n in numbers], first, None, tuple(notes))


def _spatial_groups(members: Sequence[tuple[ImageInstance, int]]) -> list[FrameGroup]:
    located = [
        Located(i, image.places[n - 1], (image.instance_number, n), image.phases[n - 1])
        for i, (image, n) in enumerate(members)
    ]
    groups = []
    for stack in stacks(located):
        frames = [_frame(*members[at.index]) for at in stack.members]
        first = stack.members[0]
        image = members[first.index][0]
        groups.append(_group(image, frames, first.place, stack.slice_spacing_mm, stack.notes))
    return groups


def _group(
    image: ImageInstance,
    frames: Sequence[Frame],
    place: Placement,
    spacing: float | None,
    notes: tuple[str, ...],
) -> FrameGroup:
    return FrameGroup(
        series_instance_uid=image.series_instance_uid,
        modality=image.modality,
        body_part=image.body_part,
        series_description=image.series_description,
        frame_of_reference_uid=image.frame_of_reference_uid,
        orientation=place.orientation,
        pixel_spacing_mm=place.spacing,
        slice_spacing_mm=spacing,
        rows=image.form.rows,
        columns=image.form.columns,
        frames=tuple(frames),
        notes=notes,
        station=image.station,
    )


def _limit(groups: Iterable[FrameGroup], limit: int) -> tuple[tuple[FrameGroup, ...], list[Refusal]]:
    """Keep whole groups within the study's limit: half a stack would be scored as if it were all."""
    kept: list[FrameGroup] = []
    refusals: list[Refusal] = []
    total = 0
    for group in groups:
        if total + len(group.frames) <= limit:
            total += len(group.frames)
            kept.append(group)
            continue
        reason = f"beyond the study's limit of {limit} frames (max_study_frames)"
        uids = dict.fromkeys(frame.sop_instance_uid for frame in group.frames)
        refusals.extend(Refusal(sop_instance_uid, reason) for sop_instance_uid in uids)
    return tuple(kept), refusals
