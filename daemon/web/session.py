"""Who is asking: signed cookies, the proxy's header, Basic authentication for programs; forms' tokens."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import HTTPException, Request, Response
from itsdangerous import BadSignature, URLSafeTimedSerializer

from daemon.accounts import Account, Accounts
from daemon.sections import WebSettings

COOKIE = "anomalyd"
_TRIES, _WINDOW_S = 5, 60.0
# A verification takes 64 MiB and some tens of milliseconds. Those that wait hold threads of the page.
_AT_ONCE, _WAITING = 2, 16


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody signed in.

    Parameters
    ----------
    account
        Name and role.
    token
        For the forms of this session; "" where a request brings its password along.
    """

    account: Account
    token: str


class Guard:
    """Signs people in and out and recognises them.

    Parameters
    ----------
    accounts, settings
        Who exists, and how long a sign-in lasts.
    key
        Secret of this installation.
    failed
        Called with name and address where a password was wrong.
    """

    def __init__(
        self,
        accounts: Accounts,
        settings: WebSettings,
        key: bytes,
        clock: Callable[[], float] = time.time,
        failed: Callable[[str, str], None] = lambda _name, _address: None,
    ) -> None:
        self._failed = failed
        self._accounts, self._settings, self._key = accounts, settings, key
        self._signer = URLSafeTimedSerializer(key, salt="session")
        self._failures: dict[str, list[float]] = {}
        self._lock = threading.Lock()
        self._clock = clock
        self._secure = settings.secure
        self._verifying = threading.BoundedSemaphore(_AT_ONCE)
        self._places = threading.BoundedSemaphore(_AT_ONCE + _WAITING)

    @property
    def cookie(self) -> str:
        """Name of the cookie; the prefix ties it to this host and to HTTPS."""
        return f"__Host-{COOKIE}" if self._secure else COOKIE

    def address(self, request: Request) -> str:
        """Where a request comes from: behind a configured proxy, what the nearest one says.

        Each proxy appends the address that it was asked from, so that what a client invents stands
        left of that and is never reached.
        """
        address = request.client.host if request.client else ""
        if not self._settings.proxied:
            return address
        said = ",".join(request.headers.getlist("x-forwarded-for")).split(",")
        while address in self._settings.proxy_addresses and said:
            try:
                address = str(ipaddress.ip_address(said.pop().strip()))
            except ValueError:
                break
        return address

    def blocked(self, request: Request, name: str) -> bool:
        """Whether too many sign-ins of this name or address failed lately."""
        now = self._clock()
        with self._lock:
            return any(
                len([t for t in self._failures.get(key, ()) if now - t < _WINDOW_S]) >= limit
                for key, limit in self._keys(request, name)
            )

    def sign_in(self, request: Request, response: Response, name: str, password: str) -> bool:
        """Check a password and set the session's cookie.

        Raises
        ------
        HTTPException
            503: too many passwords are being checked.
        """
        account = self._checked(request, name, password)
        if account is None:
            return False
        value = self._signer.dumps([account.name, account.stamp, secrets.token_urlsafe(12)])
        response.set_cookie(
            self.cookie,
            str(value),
            max_age=int(self._settings.session_s),
            httponly=True,
            samesite="strict",
            secure=self._secure,
            path="/",
        )
        return True

    def sign_out(self, response: Response) -> None:
        """Drop the session's cookie."""
        response.delete_cookie(self.cookie, path="/", httponly=True, samesite="strict", secure=self._secure)

    def visitor(self, request: Request) -> Visitor | None:
        """Who is asking; None for a stranger."""
        return self._by_proxy(request) or self._by_cookie(request) or self._by_password(request)

    def token_is_right(self, visitor: Visitor, token: str) -> bool:
        """Whether a form was made for this session."""
        return not visitor.token or hmac.compare_digest(visitor.token.encode(), token.encode())

    def _token(self, session: str) -> str:
        return hmac.new(self._key, b"form " + session.encode(), hashlib.sha256).hexdigest()[:40]

    def _by_cookie(self, request: Request) -> Visitor | None:
        value = request.cookies.get(self.cookie, "")
        try:
            name, stamp, _ = self._signer.loads(value, max_age=int(self._settings.session_s))
        except (BadSignature, ValueError, TypeError):
            return None
        account = self._accounts.find(str(name))
        if account is None or not hmac.compare_digest(account.stamp, str(stamp)):
            return None  # the password or role was changed since, or the user removed
        return Visitor(account, self._token(value))

    def _by_proxy(self, request: Request) -> Visitor | None:
        header = self._settings.proxy_header
        if not header or request.client is None or request.client.host not in self._settings.proxy_addresses:
            return None
        name = request.headers.get(header, "")
        if not name:
            return None
        account = self._accounts.find(name)
        if account is None and self._settings.proxy_role:
            account = Account(name[:64], self._settings.proxy_role, "")
        return Visitor(account, self._token(f"proxy {name}")) if account else None

    def _by_password(self, request: Request) -> Visitor | None:
        kind, _, value = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "basic":
            return None
        try:
            name, _, password = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        account = self._checked(request, name, password)
        return Visitor(account, "") if account else None

    def _checked(self, request: Request, name: str, password: str) -> Account | None:
        if self.blocked(request, name):
            return None
        if not self._places.acquire(blocking=False):
            raise HTTPException(503, "too many people sign in at this moment: try again")
        try:
            with self._verifying:
                # Those that waited may have been overtaken by failures of the same name or address.
                if self.blocked(request, name):
                    return None
                return self._verified(request, name, password)
        finally:
            self._places.release()

    def _verified(self, request: Request, name: str, password: str) -> Account | None:
        account = self._accounts.check(name, password)
        if account is None:
            self._failed(name, self.address(request))
        now = self._clock()
        with self._lock:
            if len(self._failures) > 10_000:
                self._failures.clear()  # names are free to invent: the memory of them is bounded
            for key, _ in self._keys(request, name):
                recent = [t for t in self._failures.get(key, ()) if now - t < _WINDOW_S]
                self._failures[key] = [] if account else [*recent, now]
        return account

    def _keys(self, request: Request, name: str) -> tuple[tuple[str, int], ...]:
        address = self.address(request)
        return ((f"name {name}", _TRIES), (f"address {address}", 4 * _TRIES))


def same_origin(request: Request) -> bool:
    """Whether a request comes from our own pages, as far as the browser says."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is None or origin.partition("://")[2] == request.headers.get("host", "")
