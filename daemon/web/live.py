"""Server-sent events: a fragment of a page is sent again whenever it changes, and a sign of life else."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable

from fastapi import Request
from fastapi.responses import StreamingResponse

_EVERY_S = 1.5
# A browser that hears nothing for three times as long says so (app.js).
_ALIVE_S = 10.0
# Then the browser connects again, after _AGAIN_MS, and is asked again who it is.
_STREAM_S = 300.0
_AGAIN_MS = 1000


def live(request: Request, content: Callable[[], str]) -> StreamingResponse:
    """Stream a fragment.

    Parameters
    ----------
    request
        Whose end ends the stream.
    content
        Renders the fragment; called in a thread.
    """
    return StreamingResponse(
        _changes(request, content),
        media_type="text/event-stream",
        headers={"x-accel-buffering": "no"},
    )


async def _changes(request: Request, content: Callable[[], str]) -> AsyncIterator[str]:
    ends, before, said = time.monotonic() + _STREAM_S, "", 0.0
    while time.monotonic() < ends and not await request.is_disconnected():
        html = await asyncio.to_thread(content)
        if html != before:
            before, said = html, time.monotonic()
            yield f"event: content\ndata: {json.dumps(html)}\nretry: {_AGAIN_MS}\n\n"
        elif time.monotonic() - said >= _ALIVE_S:
            said = time.monotonic()
            yield "event: alive\ndata: 1\n\n"
        await asyncio.sleep(_EVERY_S)
