"""HTTP over one connection, as uvicorn speaks it, with an end for those that do not get on with it.

uvicorn bounds the pause between two requests and the number of connections, but neither how long the
first request may take to come nor how long an answer may wait to be taken: strangers who connect and
say nothing would keep everybody else out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from uvicorn.protocols.http.h11_impl import H11Protocol

# From the first byte that is waited for until the end of a request's header; and without any
# progress of an answer that the other side does not take.
HEADER_S, STALL_S = 10.0, 60.0
# A browser opens six at most; a terminal server's users share an address.
PER_ADDRESS = 80


class BoundedProtocol(H11Protocol):
    """One connection; ``unbounded`` are the addresses of proxies, which stand for many."""

    unbounded: Collection[str] = ()
    header_s, stall_s, per_address = HEADER_S, STALL_S, PER_ADDRESS
    _timer: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, unless its address has too many."""
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        others = (getattr(connection, "client", None) or ("",) for connection in self.connections)
        mine = sum(other[0] == address for other in others)
        if mine > self.per_address and address not in self.unbounded:
            transport.abort()
        else:
            self._timer = self.loop.call_later(self.header_s, self._too_slow)

    def data_received(self, data: bytes) -> None:
        """Take bytes: those of a header have to make it whole in time."""
        if self._timer is None and self._waits():
            self._timer = self.loop.call_later(self.header_s, self._too_slow)
        super().data_received(data)
        if not self._waits():
            self._timer = _stop(self._timer)

    def pause_writing(self) -> None:
        """The other side does not take its answer."""
        super().pause_writing()
        self._stall = self._stall or self.loop.call_later(self.stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        self._stall = _stop(self._stall)

    def timeout_keep_alive_handler(self) -> None:
        """End an idle connection, also one that leaves the end of its answer untaken."""
        super().timeout_keep_alive_handler()
        self._stall = self._stall or self.loop.call_later(self.stall_s, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        super().connection_lost(exc)
        self._timer, self._stall = _stop(self._timer), _stop(self._stall)

    def _waits(self) -> bool:
        """Whether no request is being answered: what comes is the header of the next one."""
        return self.cycle is None or self.cycle.response_complete

    def _too_slow(self) -> None:
        self._timer = None
        if self._waits():
            self.transport.abort()


def _stop(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """Cancel a timer; what remains of it is none."""
    if timer is not None:
        timer.cancel()
    return None


def bounded(proxies: Collection[str]) -> type[BoundedProtocol]:
    """The protocol for uvicorn's configuration; proxies may have any number of connections."""

    class Bounded(BoundedProtocol):
        unbounded = frozenset(proxies)

    return Bounded
