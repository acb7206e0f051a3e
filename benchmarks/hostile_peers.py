"""Two hundred and more hostile connections of every sort, kept open by one loop until standard input ends."""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import attacks

_TICK_S = 0.05
# After this time a connection that the receiver has ended is opened again.
_PAUSE_S = 0.5
_REQUEST = attacks.request([attacks.context(1, attacks.CT, [attacks.EXPLICIT])], calling="MODALITY")
_STRANGER = attacks.request([attacks.context(1, attacks.CT, [attacks.EXPLICIT])], called="NOBODY")
_FLOOD = attacks.request([attacks.context(1, attacks.CT, [attacks.EXPLICIT])] * 3_000)
_GARBAGE = list(attacks.GARBAGE.values())
# The bomb comes whole, and again on the next connection.
_NESTED = attacks.store_message("1.2.3", attacks.data_set("1.2.3", before=attacks.nested(2_000)))
_BOMB = attacks.store_message("1.2.3", attacks.data_set("1.2.3.9", "1.2.3.8", "1.2.3.7"))


@dataclass(frozen=True, slots=True)
class Sort:
    """One sort: how many, what each says at first and once it is accepted, and what it trickles."""

    count: int
    first: Callable[[int], bytes] = lambda _number: b""
    accepted: bytes = b""
    trickle: bytes = b""


# Together 250, as some are always about to come back. Those that become associations leave the good
# peer a place of the 25.
SORTS: dict[str, Sort] = {
    "silent": Sort(110),
    "request byte by byte": Sort(40, trickle=_REQUEST),
    "garbage": Sort(30, first=lambda number: _GARBAGE[number % len(_GARBAGE)]),
    "request of 4 GiB": Sort(10, first=lambda _: attacks.pdu(0x01, b"\x00\x01", 0xFFFFFFFF)),
    "flood of contexts": Sort(5, first=lambda _: _FLOOD),
    "unknown AE title": Sort(35, first=lambda _: _STRANGER),
    "silent association": Sort(8, first=lambda _: _REQUEST),
    "PDU byte by byte": Sort(
        5, first=lambda _: _REQUEST, trickle=attacks.pdu(0x04, b"", 10_000) + bytes(10_000)
    ),
    "PDU of 4 GiB": Sort(3, first=lambda _: _REQUEST, accepted=attacks.pdu(0x04, b"", 0xFFFFFFFF)),
    "nested sequences": Sort(2, first=lambda _: _REQUEST, accepted=_NESTED),
    "wrong UIDs": Sort(2, first=lambda _: _REQUEST, accepted=_BOMB),
}


class _Peer:
    """One hostile connection."""

    def __init__(self, name: str, number: int, port: int) -> None:
        self.name, self._sort, self._number, self._port = name, SORTS[name], number, port
        self.connection: socket.socket | None = None
        self._open_at = 0.0
        self._sent = 0

    def open(self, selector: selectors.BaseSelector, now: float) -> None:
        """Connect again when it is time."""
        if self.connection is not None or now < self._open_at:
            return
        with contextlib.suppress(OSError):
            connection = socket.create_connection(("127.0.0.1", self._port), 5.0)
            connection.sendall(self._sort.first(self._number))
            connection.setblocking(False)
            self.connection, self._sent = connection, 0
            selector.register(connection, selectors.EVENT_READ, self)

    def trickle(self, selector: selectors.BaseSelector, now: float) -> None:
        """Say one byte more."""
        if self.connection is None or not self._sort.trickle:
            return
        at = self._sent % len(self._sort.trickle)
        try:
            self._sent += self.connection.send(self._sort.trickle[at : at + 1])
        except BlockingIOError:
            pass
        except OSError:
            self.lost(selector, now)

    def heard(self, selector: selectors.BaseSelector, now: float) -> None:
        """Take what the receiver says: an acceptance starts the rest, an end ends it."""
        assert self.connection is not None
        try:
            answer = self.connection.recv(65_536)
            if answer[:1] == b"\x02" and self._sort.accepted:
                self.connection.sendall(self._sort.accepted)
        except OSError:
            answer = b""
        if not answer:
            self.lost(selector, now)

    def lost(self, selector: selectors.BaseSelector, now: float) -> None:
        """Close, and come back in a while."""
        if self.connection is not None:
            selector.unregister(self.connection)
            self.connection.close()
            self.connection, self._open_at = None, now + _PAUSE_S


def attack(port: int) -> None:
    """Keep the connections open until standard input ends; prints when they are, and how many at the end."""
    peers = [_Peer(name, number, port) for name, sort in SORTS.items() for number in range(sort.count)]
    selector = selectors.DefaultSelector()
    for peer in peers:
        peer.open(selector, time.monotonic())
    print("open", flush=True)
    selector.register(sys.stdin, selectors.EVENT_READ, None)
    due = time.monotonic()
    while True:
        for key, _ in selector.select(max(due - time.monotonic(), 0.0)):
            if key.data is None:
                open_now = Counter(peer.name for peer in peers if peer.connection is not None)
                print(json.dumps(dict(open_now)), flush=True)
                return
            key.data.heard(selector, time.monotonic())
        if time.monotonic() >= due:
            due = time.monotonic() + _TICK_S
            for peer in peers:
                peer.open(selector, time.monotonic())
                peer.trickle(selector, time.monotonic())
