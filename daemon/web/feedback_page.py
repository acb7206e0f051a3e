"""What people said of findings, and taking it along for the next training."""

from __future__ import annotations

import csv
import io

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from daemon.web.desk import Operator, TheDesk, Viewer

router = APIRouter(include_in_schema=False)

_COLUMNS = ("study_instance_uid", "series_instance_uid", "tracking_uid", "verdict", "given_by", "given_at",
            "bundle_version", "revision", "peak")  # fmt: skip
_SHOWN = 200


@router.get("/feedback")
def feedback(request: Request, desk: TheDesk, visitor: Viewer) -> HTMLResponse:
    """The newest verdicts, and the corrections that came back."""
    verdicts = list(desk.verdicts.newest().values())[::-1]
    return desk.page(
        request,
        "feedback.html",
        visitor,
        verdicts=verdicts[:_SHOWN],
        total=len(verdicts),
        corrections=desk.corrections.received()[:_SHOWN],
        exported=desk.corrections.exported(),
        waiting=desk.corrections.waiting(),
    )


@router.get("/feedback.csv")
def table(desk: TheDesk, visitor: Operator) -> Response:
    """The newest verdict on each finding."""
    del visitor
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(_COLUMNS)
    for verdict in desk.verdicts.newest().values():
        writer.writerow([getattr(verdict, name) for name in _COLUMNS])
    headers = {"content-disposition": 'attachment; filename="verdicts.csv"'}
    return Response(out.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)
