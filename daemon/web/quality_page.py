"""Score distributions per bundle and scanner over time, against the calibration set; drift; verdicts."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from daemon.records import ScoreRecord
from daemon.score_blocks import Origin, ScoreBlock
from daemon.web.desk import Desk, TheDesk, Viewer
from daemon.web.drift import ALPHA, BLOCK, drifted, p_value

router = APIRouter(include_in_schema=False)

_SPAN_S = 180 * 86_400.0
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 900, 200, 34, 22
_START = 110
_MOST_DOTS = 600
_MOST_BLOCKS = 100
# Of the calibration set; with fewer patients the test could not tell anything apart.
_LEAST_NORMALS = 5


@dataclass(frozen=True, slots=True)
class Box:
    """A distribution as five heights: the 5, 25, 50, 75 and 95 % points; and where it stands."""

    points: tuple[float, float, float, float, float]
    x: float = 60.0
    drifted: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One block in the table: how unlike the references it is."""

    start: float
    end: float
    scores: tuple[float, ...]
    p_first: float | None
    p_calibration: float | None
    complete: bool
    drifted: bool


@dataclass(frozen=True, slots=True)
class Panel:
    """One bundle version on one scanner: its series over time, beside its calibration set."""

    name: str
    version: str
    scanner: str
    modality: str
    series: int
    flagged: int
    dots: list[tuple[float, float]]
    ticks: list[tuple[float, str]]
    calibration: Box | None
    calibration_size: int
    threshold: float | None
    blocks: list[Line]
    boxes: list[Box]
    verdicts: dict[str, int]


@router.get("/quality")
def quality(request: Request, desk: TheDesk, visitor: Viewer) -> HTMLResponse:
    """One panel per bundle version and scanner."""
    return desk.page(
        request,
        "quality.html",
        visitor,
        panels=panels(desk),
        block=BLOCK,
        alpha=ALPHA,
        chart=(_WIDTH, _HEIGHT),
    )


def panels(desk: Desk) -> list[Panel]:
    """Every bundle version and scanner of the last half year, the last used first."""
    verdicts: dict[str, Counter[str]] = {}
    for verdict in desk.verdicts.newest().values():
        verdicts.setdefault(verdict.bundle_version, Counter())[verdict.verdict] += 1
    found = []
    since = time.time() - _SPAN_S
    for origin, scores in by_origin(desk.catalogue.recent_scores(since, shadows=False)).items():
        line = desk.bundles.line(origin.bundle_version)
        normals = [] if line is None else [float(score) for score in line.normal_scores]
        dots, ticks = _dots(scores)
        parts = desk.drift.blocks.of(origin, since, _MOST_BLOCKS)
        found.append(
            Panel(
                name=origin.bundle_name,
                version=origin.bundle_version,
                scanner=_station(desk, scores[-1]) if origin.scanner else "",
                modality=", ".join(sorted({s.modality for s in scores})),
                series=len(scores),
                flagged=sum(s.findings > 0 for s in scores),
                dots=dots,
                ticks=ticks,
                calibration=_box(normals) if normals else None,
                boxes=_boxes(parts, scores),
                calibration_size=len(normals),
                threshold=None if line is None else _y(line.slice_threshold),
                blocks=[_line(part, normals) for part in parts],
                verdicts=dict(verdicts.get(origin.bundle_version, {})),
            )
        )
    return found[::-1]


def by_origin(scores: Sequence[ScoreRecord]) -> dict[Origin, list[ScoreRecord]]:
    """Bundle version and scanner → its scores, each series once: as it was scored first.

    Parameters
    ----------
    scores
        Oldest first, without shadows.
    """
    found: dict[Origin, list[ScoreRecord]] = defaultdict(list)
    first: dict[tuple[Origin, str, str], int] = {}
    for score in scores:
        origin = Origin(score.bundle_name, score.bundle_version, score.scanner)
        series = (origin, score.study_instance_uid, score.series_instance_uid)
        if first.setdefault(series, score.revision) == score.revision:
            found[origin].append(score)
    return dict(found)


def _line(block: ScoreBlock, normals: Sequence[float]) -> Line:
    complete = block.number is not None
    comparable = complete and len(normals) >= _LEAST_NORMALS
    return Line(
        start=block.start,
        end=block.end,
        scores=block.scores,
        p_first=block.p_first,
        p_calibration=p_value(block.scores, normals) if comparable else None,
        complete=complete,
        drifted=drifted(block),
    )


def _station(desk: Desk, score: ScoreRecord) -> str:
    """The scanner's name where a file of it is still here and may be shown, else a part of its hash."""
    for line in desk.catalogue.series(score.study_instance_uid):
        if line.series_instance_uid == score.series_instance_uid:
            station = desk.patients.header(line.path).station
            if station:
                return station
    return score.scanner[:6]


def _boxes(parts: Sequence[ScoreBlock], scores: Sequence[ScoreRecord]) -> list[Box]:
    """The distribution of each full block, in the middle of its time; those before the dots are left out."""
    start, end = _span(scores)
    return [
        Box(_box(part.scores).points, round((_x(part.start, start, end) + _x(part.end, start, end)) / 2, 1),
            drifted(part))
        for part in parts
        if part.number is not None and part.start >= start
    ]  # fmt: skip


def _dots(scores: Sequence[ScoreRecord]) -> tuple[list[tuple[float, float]], list[tuple[float, str]]]:
    """Places of the newest series in the chart, and of a few dates below it."""
    start, end = _span(scores)
    form = "%H:%M" if end - start < 2 * 86_400 else "%d %b"
    ticks = [
        (_x(at, start, end), time.strftime(form, time.localtime(at))) for at in np.linspace(start, end, 4)
    ]
    return [(_x(s.scored_at, start, end), _y(s.maximum)) for s in scores[-_MOST_DOTS:]], ticks


def _span(scores: Sequence[ScoreRecord]) -> tuple[float, float]:
    """From the first dot to the last."""
    start = scores[-_MOST_DOTS:][0].scored_at
    return start, max(scores[-1].scored_at, start + 1)


def _x(at: float, start: float, end: float) -> float:
    return round(_START + 20 + (at - start) / (end - start) * (_WIDTH - _START - 50), 1)


def _y(score: float) -> float:
    return round(8 + (1 - score) * (_HEIGHT - _BOTTOM - 8), 1)


def _box(values: Sequence[float]) -> Box:
    low, q1, median, q3, high = (_y(float(v)) for v in np.percentile(values, (5, 25, 50, 75, 95)))
    return Box((low, q1, median, q3, high))
