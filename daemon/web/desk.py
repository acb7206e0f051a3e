"""What every route needs: settings, index, files, who is asking, templates."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, HTTPException, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from daemon import __version__
from daemon.accounts import Accounts, Role
from daemon.audit import Trail, Transfer, no_trail
from daemon.catalogue import Catalogue
from daemon.corrections import Corrections
from daemon.index import Index
from daemon.requestor import Destination
from daemon.results import RESEARCH_USE
from daemon.settings import Settings
from daemon.spool import Spool
from daemon.verdicts import Verdicts
from daemon.views import Views
from daemon.web.bundles import Bundles
from daemon.web.drift import DriftWatch
from daemon.web.looks import Looks
from daemon.web.patients import Patients
from daemon.web.session import Guard, Visitor, same_origin
from daemon.web.trainer import Trainer
from daemon.web.watch import Watch


def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("daemon.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "clock": clock,
        "moment": moment,
        "age": age,
        "size": size,
        "number": number,
        "tail": tail,
        "local_iso": local_iso,
    }
    environment.globals |= {"version": __version__, "research_use": RESEARCH_USE}
    return environment


@dataclass(frozen=True)
class Desk:
    """Everything that a route may use; one per process."""

    settings: Settings
    index: Index
    spool: Spool
    catalogue: Catalogue
    accounts: Accounts
    verdicts: Verdicts
    corrections: Corrections
    views: Views
    patients: Patients
    bundles: Bundles
    watch: Watch
    trainer: Trainer
    drift: DriftWatch
    guard: Guard
    targets: Sequence[Destination]
    trail: Trail = field(default_factory=no_trail)
    looks: Looks = field(default_factory=Looks)
    templates: Environment = field(default_factory=_templates)

    def page(
        self, request: Request, template: str, visitor: Visitor | None, status: int = 200, **values: Any
    ) -> HTMLResponse:
        """A rendered page."""
        return HTMLResponse(self.render(template, visitor, path=request.url.path, **values), status)

    def audit_access(self, request: Request, visitor: Visitor, uid: str, *, again: bool = True) -> None:
        """Record that somebody looked at a study or fetched a result of it.

        Parameters
        ----------
        request, visitor, uid
            Who looked at what.
        again
            False for the pictures of a page: no message when one came from the same person for the
            same study shortly before.
        """
        if not self.trail.active or (not self.looks.note(visitor.account.name, uid) and not again):
            return
        instances = self.index.instances_of(uid)
        if instances:
            classes = Counter(instance.sop_class_uid for instance in instances)
            transfer = Transfer(uid, classes, self.spool.path(instances[0].path))
            self.trail.accessed(visitor.account.name, address_of(request), transfer)

    def render(self, template: str, visitor: Visitor | None, **values: Any) -> str:
        """A rendered template."""
        account = visitor.account if visitor else None
        return self.templates.get_template(template).render(
            me=account,
            token=visitor.token if visitor else "",
            **values,
        )


class SignInNeeded(Exception):
    """Answered with the sign-in page, or with 401 to a program."""


def address_of(request: Request) -> str:
    """Where a request comes from; see :meth:`Guard.address`."""
    return desk_of(request).guard.address(request)


def desk_of(request: Request) -> Desk:
    """The desk of this process."""
    desk: Desk = request.app.state.desk
    return desk


def signed_in(request: Request) -> Visitor:
    """Whoever is signed in.

    Raises
    ------
    SignInNeeded
        Nobody is.
    """
    visitor = desk_of(request).guard.visitor(request)
    if visitor is None:
        raise SignInNeeded
    return visitor


def needs(role: Role) -> Any:
    """A dependency: the visitor has this role, and a change comes from our own page."""

    async def check(request: Request, visitor: Annotated[Visitor, Depends(signed_in)]) -> Visitor:
        if not visitor.account.may(role):
            raise HTTPException(403, f"this needs the role {role}; you have {visitor.account.role}")
        if request.method not in ("GET", "HEAD"):
            token = request.headers.get("x-csrf-token", "")
            kind = request.headers.get("content-type", "")
            if not token and kind.startswith(("application/x-www-form-urlencoded", "multipart/form-data")):
                token = str((await request.form()).get("token", ""))
            if not same_origin(request) or not desk_of(request).guard.token_is_right(visitor, token):
                raise HTTPException(403, "this form is out of date or comes from elsewhere: reload the page")
        return visitor

    return Depends(check)


TheDesk = Annotated[Desk, Depends(desk_of)]
Viewer = Annotated[Visitor, needs("viewer")]
Operator = Annotated[Visitor, needs("operator")]
Administrator = Annotated[Visitor, needs("administrator")]


def sign_in_address(request: Request) -> str:
    """Where to sign in, and come back from."""
    path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return f"/login?next={quote(path)}" if request.method == "GET" else "/login"


def clock(seconds: float) -> str:
    """Local time of day."""
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%H:%M:%S")


def moment(seconds: float) -> str:
    """Local date and time; the time alone where it was today."""
    then = datetime.datetime.fromtimestamp(seconds).astimezone()
    today = datetime.datetime.now().astimezone().date()
    return then.strftime("%H:%M:%S" if then.date() == today else "%Y-%m-%d %H:%M")


def local_iso(seconds: float) -> str:
    """For the datetime attribute of a time element."""
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def age(seconds: float) -> str:
    """A span in its largest fitting unit."""
    for unit, length in (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def size(count: float) -> str:
    """Bytes in a unit that people read."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count:.0f} B"


def number(value: float | None, digits: int = 2) -> str:
    """A figure, or a dash."""
    return "–" if value is None else f"{value:,.{digits}f}"


def tail(uid: str) -> str:
    """The end of a UID, which tells it from its neighbours."""
    return uid if len(uid) <= 16 else f"…{uid[-14:]}"
