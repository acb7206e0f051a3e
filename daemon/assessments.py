"""What a report that came back says of our findings: accepted, rejected or drawn anew (PS3.16 TID 1500).

A group is matched to a finding by its tracking UID (TID 300). That the lesion is absent, or the image
normal (CID 240, CID 242), rejects; coordinates or a SEG that are not ours correct; anything else, such as
the group as we sent it, accepts. A finding that the report leaves out is not judged. A copy that a router
made is no reader's word: a report that changes nothing counts only if it is verified (PS3.3 C.17.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.sr.codedict import codes

from daemon.attributes import attributes
from daemon.corrections import Correction, corrected_segments
from daemon.errors import SpoolError
from daemon.verdicts import Verdict

_DEEPEST = 32
_REJECTING = {
    (codes.SCT.Lesion.value, codes.SCT.Absent.value),
    (codes.DCM.Normality.value, codes.SCT.Normal.value),
}
_PRESENT = (codes.SCT.Lesion.value, codes.SCT.Present.value)
# PS3.16 TID 1411, TID 1410
_SEGMENTS = {codes.DCM.ReferencedSegment.value, codes.DCM.ReferencedSegmentationFrame.value}
# The strongest statement on a finding counts, whichever of its groups has it.
_ORDER: tuple[Verdict, ...] = ("accept", "correct", "reject")


@dataclass(frozen=True, slots=True)
class Region:
    """Coordinates or a referenced object, comparable with what we sent."""

    kind: str
    points: tuple[float, ...]
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Assessment:
    """What a report says.

    Parameters
    ----------
    verdicts
        By tracking UID.
    outlines
        True if it has a region that is not ours, of a finding that it does not reject.
    reason
        Why it says nothing, if it cannot be read.
    """

    verdicts: dict[str, Verdict]
    outlines: bool
    reason: str = ""


def own_regions(reports: Sequence[Path]) -> frozenset[Region]:
    """Every region of the reports that we sent; what is gone or cannot be read has none."""
    found: set[Region] = set()
    for path in reports:
        # What cannot be read has no regions: a report of ours that retention removed, say.
        with suppress(SpoolError), attributes(path, ("ContentSequence",)) as ds:
            found |= {region for group in _groups(ds) for region in _regions(group.content)}
    return frozenset(found)


def assess_all(
    came: Sequence[Correction], path_of: Callable[[str], Path], reports: Sequence[str]
) -> list[tuple[Correction, Assessment]]:
    """What each annotation of a study says, in the order given.

    Parameters
    ----------
    came
        The annotations. A SEG corrects each finding that it names; a structure set names none.
    path_of
        From a path of the index to the file.
    reports
        Paths of the reports that we sent on the study.
    """
    ours = frozenset[Region]()
    if any(one.kind == "SR" for one in came):
        ours = own_regions([path_of(path) for path in reports])
    return [(one, _assess(one, path_of(one.path), ours)) for one in came]


def _assess(one: Correction, path: Path, ours: frozenset[Region]) -> Assessment:
    if one.kind == "SR":
        return assess(path, ours)
    try:
        named = corrected_segments(path) if one.kind == "SEG" else set()
    except SpoolError as error:
        return Assessment({}, outlines=False, reason=str(error))
    return Assessment(dict.fromkeys(named, "correct"), outlines=True)


def assess(path: Path, ours: frozenset[Region]) -> Assessment:
    """Read what a report says of findings.

    Parameters
    ----------
    path
        The report; one that cannot be read within bounds says nothing.
    ours
        Regions of the reports that we sent.
    """
    try:
        with attributes(path, ("VerificationFlag", "ContentSequence")) as ds:
            return _said_in(ds, ours)
    except SpoolError as error:
        return Assessment({}, outlines=False, reason=str(error))


def _said_in(report: Dataset, ours: frozenset[Region]) -> Assessment:
    verdicts: dict[str, Verdict] = {}
    groups = list(_groups(report))
    said = [_verdict(group.content, ours) for group in groups]
    is_verified = str(report.get("VerificationFlag", "")) == "VERIFIED"
    if {*said} <= {"accept"} and not (is_verified or any(_says_present(g.content) for g in groups)):
        return Assessment({}, outlines=False)
    for group, verdict in zip(groups, said, strict=True):
        if group.tracking_uid:
            before = verdicts.get(group.tracking_uid, verdict)
            verdicts[group.tracking_uid] = max(before, verdict, key=_ORDER.index)
    return Assessment(verdicts, outlines="correct" in said)


@dataclass(frozen=True, slots=True)
class _Group:
    tracking_uid: str
    content: Sequence[Dataset]


def _groups(container: Dataset, depth: int = 0) -> Iterator[_Group]:
    """Containers that have a tracking UID, or coordinates or images that no finer container has."""
    content: Sequence[Dataset] = container.get("ContentSequence") or ()
    uids = [
        str(item.get("UID", "")) for item in content if _named(item, codes.DCM.TrackingUniqueIdentifier.value)
    ]
    if uids or any(True for _ in _regions(content)):
        yield _Group(uids[0] if uids else "", content)
    for item in content if depth < _DEEPEST else ():
        if item.get("ValueType") == "CONTAINER":
            yield from _groups(item, depth + 1)


def _named(item: Dataset, value: str) -> bool:
    return any(str(name.get("CodeValue", "")) == value for name in item.get("ConceptNameCodeSequence") or ())


def _codes(content: Sequence[Dataset]) -> set[tuple[str, str]]:
    """Names and values of coded items."""
    return {
        (str(name.get("CodeValue", "")), str(value.get("CodeValue", "")))
        for item in content
        for name in item.get("ConceptNameCodeSequence") or ()
        for value in item.get("ConceptCodeSequence") or ()
    }


def _says_present(content: Sequence[Dataset]) -> bool:
    """A reader's word in the group of a finding; ours stands in the group of a series, without regions."""
    return _PRESENT in _codes(content) and any(True for _ in _regions(content))


def _verdict(content: Sequence[Dataset], ours: frozenset[Region]) -> Verdict:
    if _codes(content) & _REJECTING:
        return "reject"
    return "correct" if any(region not in ours for region in _regions(content)) else "accept"


def _regions(content: Sequence[Dataset]) -> Iterator[Region]:
    """Regions that stand in the group itself: coordinates of a single measurement are none."""
    for item in content:
        kind = str(item.get("ValueType", ""))
        if kind in ("SCOORD", "SCOORD3D"):
            yield Region(kind, _points(item), tuple(_references(item.get("ContentSequence") or ())))
        elif kind == "IMAGE" and any(_named(item, code) for code in _SEGMENTS):
            yield Region(kind, (), tuple(_references([item])))


def _points(item: Dataset) -> tuple[float, ...]:
    values: Any = item.get("GraphicData") or ()
    return tuple(round(float(value), 2) for value in values)


def _references(items: Sequence[Dataset]) -> Iterator[str]:
    for item in items:
        for reference in item.get("ReferencedSOPSequence") or ():
            yield str(reference.get("ReferencedSOPInstanceUID", ""))
