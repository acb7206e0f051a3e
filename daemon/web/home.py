"""The first page, and its live parts by server-sent events."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse, StreamingResponse

from daemon.web import actions
from daemon.web.desk import Operator, TheDesk, Viewer
from daemon.web.live import live
from daemon.web.now import now_of

router = APIRouter(include_in_schema=False)


@router.get("/")
def home(request: Request, desk: TheDesk, visitor: Viewer) -> HTMLResponse:
    """What is going on now."""
    return desk.page(request, "now.html", visitor, now=now_of(desk))


@router.post("/destinations/{name}/{deed}")
def hold(desk: TheDesk, visitor: Operator, name: str, deed: Literal["pause", "resume"]) -> Response:
    """Pause a destination, or let it go on."""
    del visitor
    actions.hold(desk, name, paused=deed == "pause")
    return RedirectResponse("/", 303)


@router.get("/live/now")
async def live_now(request: Request, desk: TheDesk, visitor: Viewer) -> StreamingResponse:
    """The first page's content whenever it changes."""
    return live(request, lambda: desk.render("_now.html", visitor, now=now_of(desk)))
