"""The application: routes, headers, and what strangers and mistakes are answered."""

from __future__ import annotations

import logging
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from adapters.errors import AdapterError
from daemon import __version__
from daemon.errors import DaemonError, StudyError
from daemon.log import event
from daemon.web import (
    adapters_page,
    api,
    feedback_page,
    health,
    home,
    images,
    quality_page,
    sign_in,
    studies_page,
    study_page,
    training_page,
)
from daemon.web.bodies import BodyBounds
from daemon.web.desk import Desk, SignInNeeded, sign_in_address
from daemon.web.headers import SecurityHeaders

_STATIC = Path(__file__).parent / "static"


def make_app(desk: Desk) -> FastAPI:
    """The application around a desk."""
    app = FastAPI(
        title="PACS anomaly daemon",
        version=__version__,
        description="State, studies and results. Research use only, not for diagnosis. "
        "Sign in on the page, or send name and password as HTTP Basic. A change by cookie needs the "
        "header X-CSRF-Token, which GET /api/me gives.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    app.state.desk = desk
    for room in (health, sign_in, home, studies_page, study_page, images, adapters_page,
                 training_page, quality_page, feedback_page, api):  # fmt: skip
        app.include_router(room.router)
    app.mount("/static", _Static(directory=_STATIC), name="static")
    app.add_middleware(BodyBounds, known=lambda request: desk.guard.visitor(request) is not None)
    app.add_middleware(SecurityHeaders, https=desk.settings.web.secure)
    app.add_exception_handler(SignInNeeded, _stranger)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(DaemonError, _failed)
    app.add_exception_handler(AdapterError, _failed)
    app.add_exception_handler(Exception, _broken)
    return app


class _Static(StaticFiles):
    """Files that the browser may keep, and asks about again by their tag."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        """A file with its caching header."""
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers["cache-control"] = "no-cache"
        return response


def _is_program(request: Request) -> bool:
    return request.url.path.startswith("/api/") or "text/html" not in request.headers.get("accept", "")


async def _stranger(request: Request, _error: Exception) -> Response:
    if _is_program(request):
        return JSONResponse({"detail": "sign in, or send name and password (HTTP Basic)"}, 401)
    return RedirectResponse(sign_in_address(request), 303)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _answer(request, error.status_code, str(error.detail))


async def _malformed(request: Request, _error: Exception) -> Response:
    # The error's text quotes what was sent.
    return _answer(request, 422, "the request lacks a field, or has one that is wrong")


async def _failed(request: Request, error: Exception) -> Response:
    return _answer(request, 404 if isinstance(error, StudyError) else 409, str(error))


async def _broken(request: Request, error: Exception) -> Response:
    # The named edge of the page: one broken view must not show a traceback, nor quote a data set.
    event("page failed", level=logging.ERROR, error=type(error).__name__)
    return _answer(request, 500, "this page broke; the log says where")


def _answer(request: Request, status: int, detail: str) -> Response:
    if _is_program(request):
        return JSONResponse({"detail": detail}, status)
    desk: Desk = request.app.state.desk
    try:
        visitor = desk.guard.visitor(request)
    except Exception:  # the database may be what broke
        visitor = None
    page = desk.render("error.html", visitor, path=request.url.path, status=status, detail=detail)
    return HTMLResponse(page, status)
