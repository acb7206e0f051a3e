"""The list of studies: search, filters, pages."""

from __future__ import annotations

import datetime
from dataclasses import replace
from typing import Annotated, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import HTMLResponse

from daemon.catalogue import PAGE_SIZE, STATES, Query
from daemon.web.desk import TheDesk, Viewer
from daemon.web.now import gone

router = APIRouter(include_in_schema=False)

_UNCOMMITTED = "not committed"
DELIVERY_STATES = ("pending", "sent", "failed", "dead", _UNCOMMITTED)
Findings = Literal["", "yes", "no"]


def query_of(
    desk: TheDesk,
    q: str = "",
    state: str = "",
    delivery: str = "",
    modality: str = "",
    findings: Findings = "",
    since: str = "",
    until: str = "",
) -> Query:
    """The query of an address; dates are days of local time, both included."""
    if (state and state not in STATES) or (delivery and delivery not in DELIVERY_STATES):
        raise HTTPException(422, "no such state")
    end = _day(until)
    return Query(
        text=q.strip()[:128],
        state=state,
        delivery="" if delivery == _UNCOMMITTED else delivery,
        uncommitted=tuple(desk.settings.committing) if delivery == _UNCOMMITTED else None,
        modality=modality[:16],
        findings={"": None, "yes": True, "no": False}[findings],
        since=_day(since),
        until=None if end is None else end + 86_400,
    )


@router.get("/studies")
def studies(
    request: Request,
    desk: TheDesk,
    visitor: Viewer,
    query: Annotated[Query, Depends(query_of)],
    page: int = 1,
) -> HTMLResponse:
    """One page of the studies that match."""
    page = max(1, min(page, 1_000_000))
    lines, total = desk.catalogue.studies(query, page)
    pages = max(1, -(-total // PAGE_SIZE))
    if page > pages:
        page = pages
        lines, total = desk.catalogue.studies(query, page)
    paths = desk.catalogue.first_paths([line.study.study_instance_uid for line in lines])
    headers = {uid: desk.patients.header(path) for uid, path in paths.items()}
    shown = {key: value for key, value in request.query_params.items() if key != "page" and value}
    return desk.page(
        request,
        "studies.html",
        visitor,
        lines=lines,
        headers=headers,
        show_patients=desk.patients.show,
        total=total,
        page=page,
        pages=pages,
        first=(page - 1) * PAGE_SIZE + 1 if total else 0,
        shown=shown,
        gone=gone(desk, desk.catalogue.deliveries()) if query.delivery else {},
        filtered=replace(query) != Query(),
        previous=_address(shown, page - 1) if page > 1 else "",
        following=_address(shown, page + 1) if page < pages else "",
        states=STATES,
        delivery_states=DELIVERY_STATES,
        modalities=desk.catalogue.modalities(),
    )


def _address(shown: dict[str, str], page: int) -> str:
    return "/studies?" + urlencode({**shown, "page": page})


def _day(text: str) -> float | None:
    if not text:
        return None
    try:
        return datetime.datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError, OSError):
        raise HTTPException(422, "a date looks like 2026-11-24") from None
