"""One study as a person reads it: its timeline, its series with who scored them, its findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from daemon.assessments import assess_all
from daemon.catalogue import SeriesLine
from daemon.corrections import Correction
from daemon.records import DeliveryRecord, ResultRecord, ScoreRecord, StudyRecord
from daemon.verdicts import Verdict, VerdictRecord
from daemon.web.patients import Header

if TYPE_CHECKING:
    from daemon.web.desk import Desk


@dataclass(frozen=True, slots=True)
class Event:
    """One point of the timeline."""

    at: float
    level: str
    what: str


@dataclass(frozen=True, slots=True)
class Scored:
    """What one bundle said of one frame group, and its view if there is one."""

    score: ScoreRecord
    view: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Series:
    """One received series and what became of it."""

    line: SeriesLine
    header: Header
    scored: list[Scored]
    shadows: list[ScoreRecord]
    reasons: list[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class FoundHere:
    """One finding with the group that it is in, the newest verdict on it, and a later annotation's."""

    finding: dict[str, Any]
    view: dict[str, Any]
    verdict: VerdictRecord | None
    correction: Correction | None = None
    said: Verdict | None = None


@dataclass(frozen=True, slots=True)
class Chronicle:
    """Everything on a study's page; ``revision`` is the newest one with results."""

    study: StudyRecord
    revision: int
    header: Header
    events: list[Event]
    series: list[Series]
    findings: list[FoundHere]
    corrections: list[Correction]
    results: list[ResultRecord]
    deliveries: list[DeliveryRecord]

    @property
    def lost(self) -> int:
        """How many findings were made whose view is not here: pruned, not written, or on another host."""
        return sum(one.score.findings for s in self.series for one in s.scored if one.view is None)

    @property
    def lost_reason(self) -> str:
        """Why they are not shown, and what brings them back."""
        if self.study.pruned_at is not None:
            return "their pictures and the study's files are no longer kept: send the study again"
        return "their pictures are no longer kept: score the study again"


def chronicle_of(desk: Desk, uid: str) -> Chronicle:
    """Read everything about one study.

    Raises
    ------
    StudyError
        It was never received.
    """
    study = desk.index.get_study(uid)
    results = desk.index.results_of(uid)
    scores = desk.index.scores(uid)
    deliveries = desk.index.deliveries(uid)
    revision = max((s.revision for s in scores), default=study.revision)
    lines = desk.catalogue.series(uid)
    series = _series(desk, uid, revision, lines, scores)
    verdicts = desk.verdicts.newest(uid)
    corrections = desk.corrections.received(uid)
    reports = [result.path for result in results if result.kind == "SR"]
    read = assess_all(corrections[::-1], desk.spool.path, reports)
    assessed = {
        tracking: (came, verdict)
        for came, assessment in read
        for tracking, verdict in assessment.verdicts.items()
    }
    findings = [
        _found(finding, item.view, verdicts.get(key), assessed.get(key))
        for one in series
        for item in one.scored
        if item.view
        for finding in item.view["findings"]
        for key in (finding["tracking_uid"],)
    ]
    return Chronicle(
        study=study,
        revision=revision,
        header=desk.patients.first([line.path for line in lines]),
        events=sorted(
            [
                *_events(desk, study, scores, results, deliveries, list(verdicts.values())),
                *(_came_back(came, assessment.reason) for came, assessment in read),
            ],
            key=lambda event: event.at,
        ),
        series=series,
        findings=sorted(findings, key=lambda f: -f.finding["peak"]),
        corrections=corrections,
        results=results,
        deliveries=deliveries,
    )


def _came_back(came: Correction, reason: str) -> Event:
    text = f"{came.kind} by a person came back from {came.calling_ae}"
    if reason:
        return Event(came.received_at, "warn", f"{text} and is not used: {reason}")
    return Event(came.received_at, "ok", text)


def _found(
    finding: dict[str, Any],
    view: dict[str, Any],
    verdict: VerdictRecord | None,
    came: tuple[Correction, Verdict] | None,
) -> FoundHere:
    """What was said last counts, on the page or over DICOM."""
    if came is None or (verdict is not None and verdict.given_at > came[0].received_at):
        return FoundHere(finding, view, verdict)
    return FoundHere(finding, view, verdict, *came)


def _series(
    desk: Desk, uid: str, revision: int, lines: Sequence[SeriesLine], scores: Sequence[ScoreRecord]
) -> list[Series]:
    of_instance = desk.catalogue.series_of_instances(uid)
    reasons: dict[str, Counter[str]] = {}
    for sop, reason in desk.views.refusals(uid, revision):
        reasons.setdefault(of_instance.get(sop, ""), Counter())[reason] += 1
    current = [s for s in scores if s.revision == revision]
    return [
        Series(
            line,
            desk.patients.header(line.path),
            [
                Scored(s, desk.views.read(uid, revision, s.group_key))
                for s in current
                if s.series_instance_uid == line.series_instance_uid and not s.shadow
            ],
            [s for s in current if s.series_instance_uid == line.series_instance_uid and s.shadow],
            reasons.get(line.series_instance_uid, Counter()).most_common(),
        )
        for line in lines
    ]


def _events(
    desk: Desk,
    study: StudyRecord,
    scores: Sequence[ScoreRecord],
    results: Sequence[ResultRecord],
    deliveries: Sequence[DeliveryRecord],
    verdicts: Sequence[VerdictRecord],
) -> list[Event]:
    events = [Event(study.first_received, "", "first instance received")]
    if study.last_received > study.first_received:
        text = f"last instance received, {study.instance_count} in all"
        events.append(Event(study.last_received, "", text))
    for revision in sorted({s.revision for s in scores}):
        mine = [s for s in scores if s.revision == revision and not s.shadow]
        if mine:
            names = ", ".join(sorted({f"{s.bundle_name} {s.bundle_version}" for s in mine}))
            events.append(Event(mine[0].scored_at, "", f"revision {revision}: scoring begins with {names}"))
    for result in results:
        try:
            written = desk.spool.path(result.path).stat().st_mtime
        except OSError:
            continue
        events.append(Event(written, "", f"revision {result.revision}: {result.kind} written"))
    for delivery in deliveries:
        kind = next((r.kind for r in results if r.sop_instance_uid == delivery.sop_instance_uid), "object")
        if delivery.state == "sent" and delivery.next_at:
            events.append(Event(delivery.next_at, "ok", f"{kind} delivered to {delivery.destination}"))
        elif delivery.state == "failed":
            text = f"{kind} to {delivery.destination}: next attempt"
            events.append(Event(delivery.next_at, "warn", text))
        elif delivery.state == "dead":
            text = f"{kind} to {delivery.destination} given up after {delivery.attempts} attempts"
            events.append(Event(delivery.expires_at, "bad", text))
    events += [Event(v.given_at, "", f"a finding was judged by {v.given_by}: {v.verdict}") for v in verdicts]
    return events
