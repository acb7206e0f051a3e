"""Slices and heat maps as pictures, for the viewer's own memory: a browser must not keep them.

A workstation is shared, and what a browser keeps outlives the sign-out.
"""

from __future__ import annotations

import io
import json
import threading
from typing import Any

import numpy as np
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image

from adapters.errors import DecodeError
from adapters.slices import Normalisation, load_slice
from daemon.web.desk import Desk, TheDesk, Viewer

router = APIRouter(include_in_schema=False)

_QUALITY = 92
_LARGEST_PX = 1024
# A decoder at work uses one core; the others are for reception.
_decoding = threading.Semaphore(2)


@router.get("/studies/{uid}/{revision}/{key}/{frame}.jpg")
def picture(
    request: Request, desk: TheDesk, visitor: Viewer, uid: str, revision: int, key: str, frame: int
) -> Response:
    """One slice as the model saw it, before it was made square."""
    desk.audit_access(request, visitor, uid, again=False)
    view = _view(desk, uid, revision, key, frame)
    path, number, _ = view["frames"][frame]
    try:
        with _decoding:
            pixels = load_slice(
                desk.spool.path(path),
                number,
                normalisation=Normalisation(**view["normalisation"]),
                max_frame_pixels=desk.settings.study.maximum_frame_pixels,
            ).pixels
    except (DecodeError, OSError) as error:
        raise HTTPException(404, "this slice cannot be shown: it is pruned or damaged") from error
    image = Image.fromarray(np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8))
    image.thumbnail((_LARGEST_PX, _LARGEST_PX), Image.Resampling.BILINEAR)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_QUALITY)
    return Response(out.getvalue(), media_type="image/jpeg")


@router.get("/studies/{uid}/{revision}/{key}/{frame}.png")
def heat_map(
    request: Request, desk: TheDesk, visitor: Viewer, uid: str, revision: int, key: str, frame: int
) -> Response:
    """The score of one slice as grey levels 0 to 255; the page colours them."""
    desk.audit_access(request, visitor, uid, again=False)
    content = desk.views.read_map(uid, revision, key, frame)
    if content is None:
        raise HTTPException(404, "this slice was not scored")
    return Response(content, media_type="image/png")


@router.get("/studies/{uid}/{revision}/{key}/view.json")
def view_json(
    request: Request, desk: TheDesk, visitor: Viewer, uid: str, revision: int, key: str
) -> JSONResponse:
    """Scores and outlines for the viewer."""
    desk.audit_access(request, visitor, uid, again=False)
    view = _view(desk, uid, revision, key, 0)
    drawn = {
        tracking: json.loads(verdict.correction)
        for tracking, verdict in desk.verdicts.newest(uid).items()
        if verdict.correction
    }
    plain = {name: view[name] for name in PUBLIC}
    return JSONResponse(plain | {"frames": len(view["frames"]), "corrections": drawn})


PUBLIC = (
    "series_instance_uid", "modality", "rows", "columns", "spacing_mm", "notes", "bundle_name",
    "bundle_version", "threshold", "scored", "total", "scores", "findings",
)  # fmt: skip


def _view(desk: Desk, uid: str, revision: int, key: str, frame: int) -> dict[str, Any]:
    view = desk.views.read(uid, revision, key)
    if view is None or not 0 <= frame < len(view["frames"]):
        raise HTTPException(404, "there is no such slice")
    return view
