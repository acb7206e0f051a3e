"""Stacks: the frames of one series sorted into sets of parallel slices, one slice per position."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from adapters.values import functional_group
from daemon.geometry import (
    Placement,
    depths,
    gap_notes,
    is_parallel,
    repeats,
    slice_spacing_mm,
    tilt_notes,
)

# What tells frames at one position apart, in the order in which it is tried: (macro or "", keyword).
_PHASES = (
    ("", "AcquisitionNumber"),
    ("", "TemporalPositionIdentifier"),
    ("FrameContentSequence", "TemporalPositionIndex"),
    ("FrameContentSequence", "StackID"),
    ("", "EchoNumbers"),
    ("", "EchoTime"),
    ("MREchoSequence", "EffectiveEchoTime"),
    ("", "DiffusionBValue"),
    ("MRDiffusionSequence", "DiffusionBValue"),
    ("", "NominalPercentageOfCardiacPhase"),
    ("", "TriggerTime"),
    ("", "ImageType"),
    ("", "ConvolutionKernel"),
    ("", "AcquisitionTime"),
    ("", "ContentTime"),
)


@dataclass(frozen=True, slots=True)
class Located:
    """One frame as the sorting sees it.

    Parameters
    ----------
    index
        Of the frame in the caller's list.
    place
        Where it lies; with position and orientation.
    order
        Instance number and frame number, for what geometry cannot tell apart.
    phases
        Values of what may tell repeated positions apart, by keyword.
    """

    index: int
    place: Placement
    order: tuple[int, int]
    phases: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Stack:
    """Parallel slices in order of position along the normal.

    Parameters
    ----------
    members
        Of one orientation and spacing, one per position.
    slice_spacing_mm
        Median distance of neighbours; None for one slice.
    notes
        What an administrator should know.
    """

    members: tuple[Located, ...]
    slice_spacing_mm: float | None
    notes: tuple[str, ...]


def phases_of(ds: Dataset, frame_number: int) -> dict[str, str]:
    """Return what may tell a frame apart from others at its position.

    Parameters
    ----------
    ds
        Header of the instance.
    frame_number
        From 1.

    Returns
    -------
    dict[str, str]
        By keyword; only what the object has.
    """
    found: dict[str, str] = {}
    for macro, keyword in _PHASES:
        item = functional_group(ds, macro, frame_number) if macro else ds
        value = item.get(keyword) if item is not None else None
        if value not in (None, ""):
            found.setdefault(keyword, str(value))
    return found


def stacks(frames: Sequence[Located]) -> tuple[Stack, ...]:
    """Sort frames of one series, frame of reference and size into stacks.

    Parameters
    ----------
    frames
        With positions, in any order.

    Returns
    -------
    tuple[Stack, ...]
        Every frame is in exactly one; ordered by first instance and frame number.
    """
    found: list[Stack] = []
    bundles = _parallel(sorted(frames, key=lambda frame: frame.order))
    for bundle in bundles:
        parts, note = _one_per_position(bundle)
        for part in parts:
            stack = _stack(part)
            found.append(replace(stack, notes=((note,) if note else ()) + stack.notes))
    if len(bundles) > 1:
        note = f"series split into {len(bundles)} orientations or pixel spacings"
        found = [replace(stack, notes=(note, *stack.notes)) for stack in found]
    return tuple(sorted(found, key=lambda stack: min(frame.order for frame in stack.members)))


def _parallel(frames: Iterable[Located]) -> list[list[Located]]:
    bundles: list[list[Located]] = []
    for frame in frames:
        for bundle in bundles:
            if _fits(bundle[0].place, frame.place):
                bundle.append(frame)
                break
        else:
            bundles.append([frame])
    return bundles


def _fits(a: Placement, b: Placement) -> bool:
    if not is_parallel(a.orientation, b.orientation):
        return False
    if a.spacing is None or b.spacing is None:
        return a.spacing is b.spacing
    return bool(np.allclose(a.spacing, b.spacing, rtol=1e-3, atol=0))


def _sorted(
    frames: Sequence[Located],
) -> tuple[tuple[Located, ...], NDArray[np.float64]]:
    orientation = frames[0].place.orientation
    assert orientation is not None  # by construction: only placed frames come here
    depth = depths([frame.place.position or (0.0, 0.0, 0.0) for frame in frames], orientation)
    order = sorted(range(len(frames)), key=lambda i: (round(float(depth[i]), 3), frames[i].order))
    return tuple(frames[i] for i in order), np.asarray(depth[order])


def _one_per_position(frames: list[Located]) -> tuple[list[list[Located]], str]:
    """Split frames at repeated positions by the first attribute that tells them apart, else by order."""
    if not repeats(_sorted(frames)[1]):
        return [frames], ""
    for _, keyword in _PHASES:
        parts: dict[str, list[Located]] = {}
        for frame in frames:
            parts.setdefault(frame.phases.get(keyword, ""), []).append(frame)
        if 1 < len(parts) < len(frames) and not any(repeats(_sorted(part)[1]) for part in parts.values()):
            return list(parts.values()), f"repeated positions, split into {len(parts)} by {keyword}"
    return _by_rank(frames)


def _by_rank(frames: list[Located]) -> tuple[list[list[Located]], str]:
    ordered, depth = _sorted(frames)
    parts: list[list[Located]] = []
    rank, last = 0, float("-inf")
    for frame, at in zip(ordered, depth, strict=True):
        # Against the first of its kind, so that a drift of tiny steps does not become one position.
        rank, last = (rank + 1, last) if at - last < 1e-2 else (0, float(at))
        if rank == len(parts):
            parts.append([])
        parts[rank].append(frame)
    return parts, f"repeated positions, split into {len(parts)} by instance number"


def _stack(frames: list[Located]) -> Stack:
    ordered, depth = _sorted(frames)
    positions = [frame.place.position or (0.0, 0.0, 0.0) for frame in ordered]
    orientation = ordered[0].place.orientation
    assert orientation is not None  # as above
    notes = gap_notes(depth) + tilt_notes(positions, orientation)
    odd = tuple(dict.fromkeys(frame.place.note for frame in ordered if frame.place.note))
    return Stack(ordered, slice_spacing_mm(depth), notes + odd)
