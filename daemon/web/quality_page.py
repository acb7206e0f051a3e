"""Score distributions per bundle and scanner over time, against the calibration set; drift; verdicts."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from daemon.records import ScoreRecord
from daemon.web.desk import Desk, TheDesk, Viewer
from daemon.web.drift import ALPHA, BLOCK, Block, blocks, by_scanner

router = APIRouter(include_in_schema=False)

_SPAN_S = 180 * 86_400.0
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 900, 200, 34, 22
_START = 110
_MOST_DOTS = 600


@dataclass(frozen=True, slots=True)
class Box:
    """A distribution as five heights: the 5, 25, 50, 75 and 95 % points; and where it stands."""

    points: tuple[float, float, float, float, float]
    x: float = 60.0
    drifted: bool = False


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
    blocks: list[Block]
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
    recent = desk.catalogue.recent_scores(time.time() - _SPAN_S)
    for (name, version, scanner), scores in by_scanner(recent).items():
        line = desk.bundles.line(version)
        normals = [] if line is None else [float(score) for score in line.normal_scores]
        dots, ticks = _dots(scores)
        parts = blocks(scores, normals)
        found.append(
            Panel(
                name=name,
                version=version,
                scanner=_station(desk, scores[-1]) if scanner else "",
                modality=", ".join(sorted({s.modality for s in scores})),
                series=len(scores),
                flagged=sum(s.findings > 0 for s in scores),
                dots=dots,
                ticks=ticks,
                calibration=_box(normals) if normals else None,
                boxes=_boxes(parts, scores, dots),
                calibration_size=len(normals),
                threshold=None if line is None else _y(line.slice_threshold),
                blocks=parts,
                verdicts=dict(verdicts.get(version, {})),
            )
        )
    return found[::-1]


def _station(desk: Desk, score: ScoreRecord) -> str:
    """The scanner's name where a file of it is still here and may be shown, else a part of its hash."""
    for line in desk.catalogue.series(score.study_instance_uid):
        if line.series_instance_uid == score.series_instance_uid:
            station = desk.patients.header(line.path).station
            if station:
                return station
    return score.scanner[:6]


def _boxes(parts: list[Block], scores: list[ScoreRecord], dots: list[tuple[float, float]]) -> list[Box]:
    """The distribution of each complete block, in the middle of its dots."""
    hidden, found = len(scores) - len(dots), []
    for number, part in enumerate(parts):
        first, last = number * BLOCK - hidden, number * BLOCK + len(part.scores) - 1 - hidden
        if part.complete and first >= 0:
            x = round((dots[first][0] + dots[last][0]) / 2, 1)
            found.append(Box(_box(list(part.scores)).points, x, part.drifted))
    return found


def _dots(scores: list[ScoreRecord]) -> tuple[list[tuple[float, float]], list[tuple[float, str]]]:
    """Places of the newest series in the chart, and of a few dates below it."""
    shown = scores[-_MOST_DOTS:]
    start, end = shown[0].scored_at, max(shown[-1].scored_at, shown[0].scored_at + 1)

    def x(at: float) -> float:
        return round(_START + 20 + (at - start) / (end - start) * (_WIDTH - _START - 50), 1)

    form = "%H:%M" if end - start < 2 * 86_400 else "%d %b"
    ticks = [(x(at), time.strftime(form, time.localtime(at))) for at in np.linspace(start, end, 4)]
    return [(x(s.scored_at), _y(s.maximum)) for s in shown], ticks


def _y(score: float) -> float:
    return round(8 + (1 - score) * (_HEIGHT - _BOTTOM - 8), 1)


def _box(values: list[float]) -> Box:
    low, q1, median, q3, high = (_y(float(v)) for v in np.percentile(values, (5, 25, 50, 75, 95)))
    return Box((low, q1, median, q3, high))
