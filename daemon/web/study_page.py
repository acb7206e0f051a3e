"""One study: its page, its viewer, its files, and what a person may do with it."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Form, HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse

from daemon.web import actions
from daemon.web.chronicle import chronicle_of
from daemon.web.desk import Operator, TheDesk, Viewer

router = APIRouter(include_in_schema=False)


@router.get("/studies/{uid}")
def study(request: Request, desk: TheDesk, visitor: Viewer, uid: str, done: str = "") -> HTMLResponse:
    """Timeline, series, findings, results, deliveries."""
    desk.audit_access(request, visitor, uid)
    return desk.page(
        request,
        "study.html",
        visitor,
        c=chronicle_of(desk, uid),
        destinations=[target.name for target in desk.targets],
        committing=desk.settings.committing,
        bundles=desk.bundles.lines(),
        show_patients=desk.patients.show,
        done=actions.SAID.get(done, ""),
        now=time.time(),
    )


@router.get("/studies/{uid}/{revision}/{key}/view")
def viewer(
    request: Request,
    desk: TheDesk,
    visitor: Viewer,
    uid: str,
    revision: int,
    key: str,
    frame: int | None = None,
) -> HTMLResponse:
    """The slices of one scored group with heat map and outlines."""
    view = desk.views.read(uid, revision, key)
    if view is None:
        raise HTTPException(404, "there is no view of this series (any more): score the study again")
    desk.audit_access(request, visitor, uid)
    header = desk.patients.header(view["frames"][0][0])
    return desk.page(
        request,
        "viewer.html",
        visitor,
        uid=uid,
        revision=revision,
        key=key,
        view=view,
        header=header,
        show_patients=desk.patients.show,
        verdicts=desk.verdicts.newest(uid),
        first_frame=frame if frame is not None else _start(view),
    )


@router.get("/studies/{uid}/results/{sop}.dcm")
def download(request: Request, desk: TheDesk, visitor: Viewer, uid: str, sop: str) -> Response:
    """A SEG or SR as it was sent, with the patient's name and ID in it."""
    if not desk.patients.show:
        raise HTTPException(403, "results hold the patient's name and ID, which web.show_patient_names hides")
    for result in desk.index.results_of(uid):
        if result.sop_instance_uid == sop:
            path = desk.spool.path(result.path)
            if path.is_file():
                name = f"{result.kind}-{sop[-12:]}.dcm"
                desk.audit_access(request, visitor, uid)
                return FileResponse(path, media_type="application/dicom", filename=name)
    raise HTTPException(404, "this result is not here (any more)")


@router.post("/studies/{uid}/retry")
def retry(desk: TheDesk, visitor: Operator, uid: str) -> Response:
    """Score a failed or refused study again, or send undelivered results again."""
    del visitor
    actions.retry(desk, uid)
    return _back(uid, "retry")


@router.post("/studies/{uid}/rescore")
def rescore(
    desk: TheDesk, visitor: Operator, uid: str, bundle: Annotated[str, Form(max_length=12)] = ""
) -> Response:
    """A new revision, with the bundles in use or one of one's choice."""
    del visitor
    actions.rescore(desk, uid, bundle)
    return _back(uid, "rescore")


@router.post("/studies/{uid}/forward")
def forward(desk: TheDesk, visitor: Operator, uid: str, destination: Annotated[str, Form()]) -> Response:
    """Send the newest results to a destination, again if need be."""
    del visitor
    actions.forward(desk, uid, destination)
    return _back(uid, "forward")


@router.post("/studies/{uid}/{revision}/{key}/verdict")
def verdict(
    desk: TheDesk,
    visitor: Operator,
    uid: str,
    revision: int,
    key: str,
    finding: Annotated[str, Form(max_length=64)],
    verdict: Annotated[str, Form()],
    back: Annotated[str, Form()] = "",
) -> Response:
    """Accept or reject a finding."""
    if verdict not in ("accept", "reject"):
        raise HTTPException(422, "a verdict here is accept or reject; a correction is drawn in the viewer")
    actions.judge(desk, visitor.account.name, uid, revision, key, finding, verdict)
    if back.isdigit():
        return RedirectResponse(f"/studies/{uid}/{revision}/{key}/view?frame={back}", 303)
    return RedirectResponse(f"/studies/{uid}#findings", 303)


def _back(uid: str, done: str) -> Response:
    return RedirectResponse(f"/studies/{uid}?done={done}", 303)


def _start(view: dict[str, Any]) -> int:
    """The strongest finding's largest slice, else the highest score, else the middle."""
    findings, scores = view["findings"], view["scores"]
    if findings:
        return int(findings[0]["largest"])
    known = [(score, -i) for i, score in enumerate(scores) if score is not None]
    return -max(known)[1] if known else len(scores) // 2
