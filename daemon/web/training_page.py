"""Start a training run from a folder of the site's cases, watch it, stop it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse

from daemon.web.desk import Administrator, Desk, TheDesk, Viewer
from daemon.web.live import live
from daemon.web.session import Visitor

router = APIRouter(include_in_schema=False)


@router.post("/adapters/training")
def start(
    desk: TheDesk,
    visitor: Administrator,
    folder: Annotated[str, Form(max_length=255)],
    name: Annotated[str, Form(max_length=64)],
    class_name: Annotated[str, Form(max_length=64)] = "",
) -> Response:
    """Fit adapters on a folder of cases."""
    del visitor
    desk.trainer.start(folder, name, class_name)
    return RedirectResponse("/adapters#training", 303)


@router.post("/adapters/training/stop")
def stop(desk: TheDesk, visitor: Administrator) -> Response:
    """Interrupt the run."""
    del visitor
    desk.trainer.stop()
    return RedirectResponse("/adapters#training", 303)


@router.get("/live/training")
async def live_training(request: Request, desk: TheDesk, visitor: Viewer) -> StreamingResponse:
    """How far the run is, whenever it changes."""
    return live(request, lambda: desk.render("_training.html", visitor, **training_of(desk, visitor)))


def training_of(desk: Desk, visitor: Visitor) -> dict[str, Any]:
    """What the training's part of the page shows; its printed lines are for administrators."""
    run, progress = desk.trainer.look()
    shown = progress.lines if visitor.account.may("administrator") else ()
    return {"run": run, "progress": progress, "lines": shown}
