"""The JSON API: the page's content and deeds for programs, under the same rights."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Request

from daemon.catalogue import PAGE_SIZE, Query
from daemon.web import actions
from daemon.web.adapters_page import promoted, rolled_back
from daemon.web.api_forms import (
    Done,
    ForwardOrder,
    Me,
    RescoreOrder,
    StudyItem,
    StudyPage,
    TrainingOrder,
    VerdictOrder,
)
from daemon.web.chronicle import chronicle_of
from daemon.web.desk import Administrator, Operator, TheDesk, Viewer
from daemon.web.images import PUBLIC
from daemon.web.now import now_of
from daemon.web.quality_page import panels
from daemon.web.studies_page import query_of
from daemon.web.training_page import training_of

router = APIRouter(prefix="/api", tags=["daemon"], responses={401: {"description": "nobody is signed in"}})

_DENIED: dict[int | str, dict[str, Any]] = {403: {"description": "the role does not allow this"}}


@router.get("/me")
def me(visitor: Viewer) -> Me:
    """Name, role, and the token that changes by cookie need."""
    return Me(name=visitor.account.name, role=visitor.account.role, csrf_token=visitor.token)


@router.get("/now")
def now(desk: TheDesk, visitor: Viewer) -> dict[str, Any]:
    """The state of everything at this moment."""
    del visitor
    found = asdict(now_of(desk))
    del found["latest"]
    return found


@router.get("/studies")
def studies(
    desk: TheDesk, visitor: Viewer, query: Annotated[Query, Depends(query_of)], page: int = 1
) -> StudyPage:
    """Studies that match, last received first. Times are seconds since the epoch, UTC."""
    del visitor
    lines, total = desk.catalogue.studies(query, max(1, min(page, 1_000_000)))
    items = [
        StudyItem(
            **asdict(line.study),
            modalities=list(line.modalities),
            findings=line.findings,
            maximum=line.maximum,
            deliveries=dict(line.deliveries),
        )
        for line in lines
    ]
    return StudyPage(total=total, page=page, page_size=PAGE_SIZE, studies=items)


@router.get("/studies/{uid}", responses={404: {"description": "never received"}})
def study(request: Request, desk: TheDesk, visitor: Viewer, uid: str) -> dict[str, Any]:
    """One study: timeline, series with their scores or reasons, findings, results, deliveries.

    ``findings_not_kept`` counts those of whose outlines nothing is kept here, and says why.
    """
    desk.audit_access(request, visitor, uid)
    c = chronicle_of(desk, uid)
    return {
        "study": asdict(c.study),
        "patient": asdict(c.header),
        "timeline": [asdict(event) for event in c.events],
        "series": [
            {
                "series_instance_uid": s.line.series_instance_uid,
                "modality": s.header.modality,
                "instances": s.line.instances,
                "scores": [asdict(one.score) for one in s.scored],
                "shadows": [asdict(one) for one in s.shadows],
                "not_scored": [{"reason": reason, "instances": n} for reason, n in s.reasons],
            }
            for s in c.series
        ],
        "findings": [
            {
                **{key: value for key, value in f.finding.items() if key != "outlines"},
                "group_key": f.view["group_key"],
                "verdict": f.said or (f.verdict.verdict if f.verdict else None),
            }
            for f in c.findings
        ],
        "findings_not_kept": {"count": c.lost, "reason": c.lost_reason if c.lost else ""},
        "results": [asdict(result) for result in c.results],
        "deliveries": [asdict(delivery) for delivery in c.deliveries],
    }


@router.get("/studies/{uid}/{revision}/{key}", responses={404: {"description": "no such view"}})
def view(
    request: Request, desk: TheDesk, visitor: Viewer, uid: str, revision: int, key: str
) -> dict[str, Any]:
    """Scores and outlines of one scored group; slices are at /studies/UID/REVISION/KEY/N.jpg."""
    desk.audit_access(request, visitor, uid, again=False)
    found = desk.views.read(uid, revision, key)
    if found is None:
        raise HTTPException(404, "there is no view of this series (any more)")
    return {name: found[name] for name in PUBLIC} | {"frames": len(found["frames"])}


@router.post("/studies/{uid}/retry", responses=_DENIED)
def retry(desk: TheDesk, visitor: Operator, uid: str) -> Done:
    """Score a failed or refused study again, or send undelivered results again."""
    del visitor
    actions.retry(desk, uid)
    return Done(done=actions.SAID["retry"])


@router.post("/studies/{uid}/rescore", responses=_DENIED)
def rescore(desk: TheDesk, visitor: Operator, uid: str, order: RescoreOrder | None = None) -> Done:
    """A new revision, with the bundles in use or one of one's choice."""
    del visitor
    actions.rescore(desk, uid, order.bundle if order else "")
    return Done(done=actions.SAID["rescore"])


@router.post("/studies/{uid}/forward", responses=_DENIED)
def forward(desk: TheDesk, visitor: Operator, uid: str, order: ForwardOrder) -> Done:
    """Send the newest results to a destination of the settings."""
    del visitor
    actions.forward(desk, uid, order.destination)
    return Done(done=actions.SAID["forward"])


@router.post("/studies/{uid}/verdicts", responses=_DENIED)
def judge(desk: TheDesk, visitor: Operator, uid: str, order: VerdictOrder) -> Done:
    """Accept, reject or correct a finding."""
    correction = {str(k): v for k, v in order.correction.items()} if order.correction else None
    name = visitor.account.name
    actions.judge(
        desk, name, uid, order.revision, order.group_key, order.tracking_uid, order.verdict, correction
    )
    return Done(done=order.verdict)


@router.get("/destinations")
def destinations(desk: TheDesk, visitor: Viewer) -> list[dict[str, Any]]:
    """Every destination, whether it answers, and what waits for it."""
    del visitor
    return [asdict(d) | {"level": d.level} for d in now_of(desk).destinations]


@router.post("/destinations/{name}/{deed}", responses=_DENIED)
def hold(desk: TheDesk, visitor: Operator, name: str, deed: Literal["pause", "resume"]) -> Done:
    """Pause a destination, or let it go on."""
    del visitor
    actions.hold(desk, name, paused=deed == "pause")
    return Done(done=f"{name}: {deed}d")


@router.get("/adapters")
def adapters(desk: TheDesk, visitor: Viewer) -> list[dict[str, Any]]:
    """Every adapter bundle."""
    del visitor
    left_out = ("normal_scores", "provenance")
    return [
        {name: getattr(line, name) for name in line.__dataclass_fields__ if name not in left_out}
        for line in desk.bundles.lines()
    ]


@router.post("/adapters/{version}/promote", responses=_DENIED)
def promote(desk: TheDesk, visitor: Administrator, version: str) -> Done:
    """Put a version to use."""
    del visitor
    return Done(done=promoted(desk, version))


@router.post("/adapters/{name}/rollback", responses=_DENIED)
def roll_back(desk: TheDesk, visitor: Administrator, name: str) -> Done:
    """Put the version before back."""
    del visitor
    return Done(done=rolled_back(desk, name))


@router.get("/training")
def training(desk: TheDesk, visitor: Viewer) -> dict[str, Any]:
    """The folders of cases, and the last training run with its progress."""
    found = training_of(desk, visitor)
    run = found["run"]
    return {
        "folders": desk.trainer.folders(),
        "run": asdict(run) | {"state": run.state} if run else None,
        "progress": {name: getattr(found["progress"], name) for name in ("stage", "done", "total", "loss")},
    }


@router.post("/training", responses=_DENIED)
def start_training(desk: TheDesk, visitor: Administrator, order: TrainingOrder) -> Done:
    """Fit adapters on a folder of cases."""
    del visitor
    return Done(done=desk.trainer.start(order.folder, order.name, order.class_name).state)


@router.post("/training/stop", responses=_DENIED)
def stop_training(desk: TheDesk, visitor: Administrator) -> Done:
    """Interrupt the run."""
    del visitor
    desk.trainer.stop()
    return Done(done="stopping")


@router.get("/quality")
def quality(desk: TheDesk, visitor: Viewer) -> list[dict[str, Any]]:
    """Blocks of scores per bundle version with their tests for drift."""
    del visitor
    return [
        {
            "bundle": panel.name,
            "version": panel.version,
            "scanner": panel.scanner,
            "series": panel.series,
            "verdicts": panel.verdicts,
            "blocks": [asdict(block) | {"drifted": block.drifted} for block in panel.blocks],
        }
        for panel in panels(desk)
    ]


@router.get("/verdicts")
def verdicts(desk: TheDesk, visitor: Viewer) -> list[dict[str, Any]]:
    """The newest verdict on each finding."""
    del visitor
    return [asdict(verdict) for verdict in desk.verdicts.newest().values()]


@router.get("/corrections")
def corrections(desk: TheDesk, visitor: Viewer) -> list[dict[str, Any]]:
    """Annotations of studies that came back over DICOM."""
    del visitor
    return [
        {
            "study_instance_uid": came.study_instance_uid,
            "sop_instance_uid": came.sop_instance_uid,
            "kind": came.kind,
            "received_at": came.received_at,
            "calling_ae": came.calling_ae,
        }
        for came in desk.corrections.received()
    ]
