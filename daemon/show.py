"""Tables for people: studies, one study, what was scored. UIDs and counts; no patient data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from daemon.errors import StudyError
from daemon.index import DeliveryRecord, Index
from daemon.records import ScoreRecord

if TYPE_CHECKING:  # it brings torch along, which a list of studies does not need
    from daemon.offline import ScoredStudy


def resolve_study(index: Index, text: str) -> str:
    """Study Instance UID from itself or from its end.

    Raises
    ------
    StudyError
        None or several studies match.
    """
    found = [s.study_instance_uid for s in index.list_studies() if s.study_instance_uid.endswith(text)]
    if text in found:
        return text
    if len(found) != 1:
        raise StudyError(f"{len(found)} studies end in {text!r}; `daemon studies` lists them all")
    return found[0]


def studies_table(index: Index) -> Table:
    """All studies, newest first, with what became of their deliveries."""
    table = Table("received", "study", "instances", "revision", "state", "deliveries", "why", box=None)
    for study in index.list_studies():
        states = Counter(d.state for d in index.deliveries(study.study_instance_uid))
        table.add_row(
            _time(study.last_received),
            study.study_instance_uid,
            str(study.instance_count),
            str(study.revision),
            study.state,
            ", ".join(f"{count} {state}" for state, count in sorted(states.items())),
            study.state_reason,
        )
    return table


def print_study(console: Console, index: Index, uid: str, committing: Collection[str] = ()) -> None:
    """Everything that the index knows of one study.

    Parameters
    ----------
    console, index, uid
        Where to, from where, which study.
    committing
        Names of the destinations that are asked for storage commitment.
    """
    study = index.get_study(uid)
    console.print(f"study      {uid}", highlight=False)
    console.print(f"received   {_time(study.first_received)} … {_time(study.last_received)}", highlight=False)
    console.print(f"instances  {study.instance_count}", highlight=False)
    console.print(f"state      {study.state} (revision {study.revision}) {study.state_reason}", markup=False)
    for score in index.scores(uid):
        by = f"{score.bundle_name} {score.bundle_version}{' (shadow)' if score.shadow else ''}"
        console.print(
            f"series     …{score.series_instance_uid[-12:]} {score.modality} revision {score.revision}: "
            f"scored by {by}, {score.slices} slices, highest {score.maximum:.2f}, {score.findings} findings",
            highlight=False,
            markup=False,
        )
    for result in index.results_of(uid):
        console.print(f"result     revision {result.revision} {result.kind} {result.sop_instance_uid}")
    for delivery in index.deliveries(uid):
        console.print(
            f"delivery   {delivery.destination}: {delivery.state} after {delivery.attempts} attempts"
            f"{_commitment(index, delivery, committing)} {delivery.last_error}",
            markup=False,
        )


def print_scored(console: Console, scored: list[ScoredStudy]) -> None:
    """What ``daemon score`` found, per study and finding."""
    for item in scored:
        console.print(f"study {item.study_instance_uid}", highlight=False)
        table = Table(
            "series", "finding", "slices", "volume mm³", "area mm²", "diameter mm", "peak", "mean", box=None
        )
        for analysis in item.result.analyses:
            series = analysis.group.series_instance_uid[-12:]
            for f in analysis.findings:
                first, last = f.origin[0] + 1, f.origin[0] + f.mask.shape[0]
                numbers = [_number(v) for v in (f.volume_mm3, f.area_mm2, f.diameter_mm)]
                table.add_row(
                    series, str(f.number), f"{first}–{last}", *numbers, f"{f.peak:.2f}", f"{f.mean:.2f}"
                )
            if not analysis.findings:
                table.add_row(series, "none", f"{analysis.scored} scored", "", "", "", "", "")
        console.print(table)
        for reason, count in Counter(r.reason for r in item.result.refusals).items():
            console.print(f"not scored: {count} × {reason}", markup=False)
        for path in item.files:
            console.print(f"wrote {path}", markup=False, highlight=False)


def scored_as_dict(item: ScoredStudy) -> dict[str, Any]:
    """The same as plain values for ``--json``."""
    return {
        "study_instance_uid": item.study_instance_uid,
        "series": [
            {
                "series_instance_uid": a.group.series_instance_uid,
                "scored": a.scored,
                "total": a.total,
                "threshold": a.threshold,
                "bundle": a.bundle_version,
                "notes": list(a.group.notes),
                "slice_scores": [None if s is None else round(float(s), 4) for s in a.slice_scores],
                "findings": [
                    {
                        "number": f.number,
                        "tracking_uid": f.tracking_uid,
                        "first_slice": f.origin[0] + 1,
                        "last_slice": f.origin[0] + f.mask.shape[0],
                        "volume_mm3": f.volume_mm3,
                        "area_mm2": f.area_mm2,
                        "diameter_mm": f.diameter_mm,
                        "peak": f.peak,
                        "mean": f.mean,
                    }
                    for f in a.findings
                ],
            }
            for a in item.result.analyses
        ],
        "not_scored": [
            {"sop_instance_uid": r.sop_instance_uid, "reason": r.reason} for r in item.result.refusals
        ],
        "files": [str(path) for path in item.files],
    }


def _commitment(index: Index, delivery: DeliveryRecord, committing: Collection[str]) -> str:
    """Whether it is committed; if not, how many requests the destination took, and did not take lately."""
    words = delivery.commitment(committing)
    if words == "not committed":
        asked = index.pledges.asked(delivery.study_instance_uid, delivery.revision, delivery.destination)
        words += f" ({asked.accepted} requests accepted, then {asked.failed} not)"
    return words and f", {words}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def shadows_table(scores: Iterable[ScoreRecord]) -> Table:
    """What shadows said beside the bundles in use, on the same series; no row if no shadow has scored."""
    scores = list(scores)
    main = {(s.study_instance_uid, s.revision, s.group_key): s for s in scores if not s.shadow}
    table = Table(
        "scored", "study", "series", "in use", "max", "findings", "shadow", "max", "findings", box=None
    )
    for shadow in (s for s in scores if s.shadow):
        used = main.get((shadow.study_instance_uid, shadow.revision, shadow.group_key))
        if used is None:
            continue
        table.add_row(
            datetime.fromtimestamp(shadow.scored_at, UTC).strftime("%Y-%m-%d %H:%M"),
            f"…{shadow.study_instance_uid[-12:]}",
            f"…{shadow.series_instance_uid[-12:]}",
            f"{used.bundle_name} {used.bundle_version}",
            f"{used.maximum:.2f}",
            str(used.findings),
            f"{shadow.bundle_name} {shadow.bundle_version}",
            f"{shadow.maximum:.2f}",
            str(shadow.findings),
        )
    return table
