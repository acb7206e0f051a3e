"""How large a request's body may be, and how long it may take: it is read before anybody has signed in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The forms are small; a drawn correction has up to 100,000 points, and is sent by somebody signed in.
STRANGERS_BYTES, MOST_BYTES = 64 * 1024, 8 * 1024 * 1024


class BodyBounds:
    """Ends a request whose body is too large (413) or does not come (408), and its connection.

    Parameters
    ----------
    app
        What answers.
    known
        Whether somebody signed in is asking; called in a thread, for larger bodies alone.
    """

    seconds = 60.0

    def __init__(self, app: ASGIApp, known: Callable[[Request], bool]) -> None:
        self._app, self._known = app, known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, the body being read within the bounds."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(scope, receive, self._known, time.monotonic() + self.seconds)

        async def ending(message: Message) -> None:
            if message["type"] == "http.response.start" and body.broken:
                # Else what still comes of the body would be read on, to be thrown away.
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        await self._app(scope, body.receive, ending)


class _Body:
    """One request's body as far as it has come."""

    def __init__(self, scope: Scope, receive: Receive, known: Callable[[Request], bool], ends: float) -> None:
        self._request, self._receive, self._known, self._ends = Request(scope), receive, known, ends
        self._bytes, self._bound = 0, STRANGERS_BYTES
        # Without either header there is none (RFC 9112, 6.3).
        self._whole = not {"content-length", "transfer-encoding"} & set(self._request.headers)
        self.broken = False

    async def receive(self) -> Message:
        """The next piece; an HTTPException goes through whoever reads, to the error handlers."""
        if self._whole:
            # Nothing but the end of the connection is waited for, however long the answer takes.
            return await self._receive()
        # What is announced need not be read to be refused.
        announced = self._request.headers.get("content-length", "")
        await self._check(int(announced) if announced.isdecimal() else 0)
        try:
            message = await asyncio.wait_for(self._receive(), self._ends - time.monotonic())
        except TimeoutError as error:
            raise self._refusal(408, "the request's body did not come in time") from error
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            await self._check(self._bytes)
        return message

    async def _check(self, count: int) -> None:
        if self._bound < count <= MOST_BYTES and await run_in_threadpool(self._known, self._request):
            self._bound = MOST_BYTES
        if count > self._bound:
            raise self._refusal(413, f"the request's body is larger than {self._bound // 1024} KiB")

    def _refusal(self, status: int, detail: str) -> HTTPException:
        self.broken = True
        return HTTPException(status, detail)
