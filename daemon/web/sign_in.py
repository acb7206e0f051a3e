"""Signing in and out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from daemon.web.desk import TheDesk, Viewer, address_of
from daemon.web.session import same_origin

router = APIRouter(include_in_schema=False)

_WRONG = "Name or password is wrong."
_BLOCKED = "Too many wrong passwords: wait a minute."
_ELSEWHERE = "This form came from elsewhere: sign in here."


@router.get("/login")
def form(request: Request, desk: TheDesk, next: str = "/") -> Response:
    """The form."""
    if desk.guard.visitor(request) is not None:
        return RedirectResponse(_local(next), 303)
    return _form(request, desk, next)


@router.post("/login")
def sign_in(
    request: Request,
    desk: TheDesk,
    name: Annotated[str, Form(max_length=64)] = "",
    password: Annotated[str, Form(max_length=1024)] = "",
    next: Annotated[str, Form(max_length=2048)] = "/",
) -> Response:
    """Check the password; back to where the visitor came from."""
    if not same_origin(request):
        return _form(request, desk, next, _ELSEWHERE, 403)
    if desk.guard.blocked(request, name):
        return _form(request, desk, next, _BLOCKED, 429)
    response = RedirectResponse(_local(next), 303)
    if desk.guard.sign_in(request, response, name, password):
        desk.trail.signed_in(name, address_of(request), ok=True)
        return response
    return _form(request, desk, next, _WRONG, 401)


@router.post("/logout")
def sign_out(request: Request, desk: TheDesk, visitor: Viewer) -> Response:
    """Drop the session."""
    desk.trail.signed_out(visitor.account.name, address_of(request))
    response = RedirectResponse("/login", 303)
    desk.guard.sign_out(response)
    return response


def _form(request: Request, desk: TheDesk, next: str, error: str = "", status: int = 200) -> Response:
    first = desk.accounts.count() == 0
    return desk.page(request, "login.html", None, status, next=_local(next), error=error, first=first)


def _local(address: str) -> str:
    """Only addresses of this page: no redirect to elsewhere, not even by // or a backslash."""
    safe = address.startswith("/") and not address.startswith(("//", "/\\")) and "\\" not in address
    return address if safe and address.isprintable() else "/"
