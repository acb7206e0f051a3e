"""Adapter bundles: what they are, which serves what, promoting and rolling back, what shadows said."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse

from adapters import registry
from daemon.log import event
from daemon.records import ScoreRecord
from daemon.web.desk import Administrator, Desk, TheDesk, Viewer
from daemon.web.training_page import training_of

router = APIRouter(include_in_schema=False)

_SPAN_S = 90 * 86_400.0
# The report is one file with its style and pictures inside; scripts it has none, and may not have.
_REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; base-uri 'none'"
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A shadow beside the bundle in use, on the same series."""

    used: str
    shadow: str
    series: int
    both: int
    only_used: int
    only_shadow: int
    neither: int
    mean_difference: float


@router.get("/adapters")
def adapters(request: Request, desk: TheDesk, visitor: Viewer, done: str = "") -> HTMLResponse:
    """Bundles, rules and shadows."""
    return desk.page(
        request,
        "adapters.html",
        visitor,
        bundles=desk.bundles.lines(),
        rules=desk.settings.rules,
        named=desk.settings.model.bundle,
        comparisons=comparisons(desk.catalogue.recent_scores(time.time() - _SPAN_S)),
        done=done[:120],
        trainer=desk.trainer,
        **training_of(desk, visitor),
    )


@router.get("/adapters/{version}/report")
def report(desk: TheDesk, visitor: Viewer, version: str) -> Response:
    """The training report of a bundle."""
    del visitor
    line = desk.bundles.line(version)
    if line is None or not line.report:
        raise HTTPException(404, "this bundle has no report here")
    headers = {"content-security-policy": _REPORT_POLICY}
    return FileResponse(desk.bundles.report(line), media_type="text/html; charset=utf-8", headers=headers)


@router.post("/adapters/{version}/promote")
def promote(desk: TheDesk, visitor: Administrator, version: str) -> Response:
    """Put a version to use for studies that become stable from now on."""
    del visitor
    return _back(promoted(desk, version) + " is in use for studies that become stable from now on")


@router.post("/adapters/{name}/rollback")
def roll_back(desk: TheDesk, visitor: Administrator, name: str) -> Response:
    """Put the version before back."""
    del visitor
    return _back(rolled_back(desk, name) + " is in use again")


def promoted(desk: Desk, version: str) -> str:
    """Promote a version and return its name."""
    entry = registry.find(desk.bundles.folder, version)
    registry.promote(desk.bundles.folder, entry.name, entry.version)
    event("bundle promoted", bundle=entry.name, version=entry.version)
    return f"{entry.name} {entry.version}"


def rolled_back(desk: Desk, name: str) -> str:
    """Roll a bundle back and return the name that serves now."""
    version = registry.roll_back(desk.bundles.folder, name)
    event("bundle rolled back", bundle=name, version=version)
    return f"{name} {version}"


def comparisons(scores: list[ScoreRecord]) -> list[Comparison]:
    """Shadows beside the bundles in use, on series that both scored."""
    used = {(s.study_instance_uid, s.revision, s.group_key): s for s in scores if not s.shadow}
    pairs: dict[tuple[str, str], list[tuple[ScoreRecord, ScoreRecord]]] = defaultdict(list)
    for shadow in (s for s in scores if s.shadow):
        mate = used.get((shadow.study_instance_uid, shadow.revision, shadow.group_key))
        if mate is not None:
            names = tuple(f"{s.bundle_name} {s.bundle_version}" for s in (mate, shadow))
            pairs[(names[0], names[1])].append((mate, shadow))
    return [
        Comparison(
            *names,
            series=len(found),
            both=sum(a.findings > 0 and b.findings > 0 for a, b in found),
            only_used=sum(a.findings > 0 and b.findings == 0 for a, b in found),
            only_shadow=sum(a.findings == 0 and b.findings > 0 for a, b in found),
            neither=sum(a.findings == 0 and b.findings == 0 for a, b in found),
            mean_difference=sum(b.maximum - a.maximum for a, b in found) / len(found),
        )
        for names, found in pairs.items()
    ]


def _back(done: str) -> Response:
    from urllib.parse import quote

    return RedirectResponse(f"/adapters?done={quote(done)}", 303)
