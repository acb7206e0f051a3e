"""Who may associate with us, and why not: AE titles, address, number (PS3.8 table 9-21)."""

import ipaddress
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from daemon import dimse
from daemon.errors import SettingsError
from daemon.log import event

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# Storage commitment is given by name alone: a modality may delete its only copy over it.
OPERATIONS = frozenset({"store", "echo"})


@dataclass(frozen=True, slots=True)
class Peer:
    """A node that may talk to us: it is known by AE title and host together, and may do what ``may`` says.

    ``host`` is an address, a host name or a network such as ``10.0.0.0/8``; ``port`` is where it
    listens itself, for answers on an association of ours, and ``tls`` whether it does so encrypted.
    """

    name: str
    ae_title: str
    host: str
    may: frozenset[str] = field(default=OPERATIONS)
    port: int = 104
    tls: bool = False


class Verdict(NamedTuple):
    """Whether an association may go on (then ``reject`` is None), what it may do, or why not."""

    reject: tuple[int, int, int] | None
    may: frozenset[str]
    reason: str


class Admission:
    """The rules: our own AE title, the peers, and what happens to others.

    Host names are resolved once, here: a name server that is slow or lies later lets nobody in
    and holds nobody up.

    Parameters
    ----------
    ae_title
        Our own.
    peers
        Who may talk to us.
    accept_unknown_peers
        Whether everybody else may, too.
    require_called_ae_title
        Whether a peer must call us by our own AE title.

    Raises
    ------
    SettingsError
        A peer's host is no address, name or network.
    """

    def __init__(
        self,
        ae_title: str,
        peers: Sequence[Peer],
        accept_unknown_peers: bool,
        require_called_ae_title: bool,
    ) -> None:
        self._ae_title = ae_title
        self._peers = [(peer, _networks(peer)) for peer in peers]
        self._accept_unknown_peers = accept_unknown_peers
        self._require_called_ae_title = require_called_ae_title

    def judge(self, calling_ae: str, called_ae: str, address: str) -> Verdict:
        """Judge an association request by its AE titles and the address that it came from."""
        nothing: frozenset[str] = frozenset()
        if self._require_called_ae_title and called_ae.strip() != self._ae_title:
            return Verdict(dimse.REJECT_CALLED_AE, nothing, "called AE title not recognised")
        if peer := self.find(calling_ae, address):
            return Verdict(None, peer.may, "")
        if self._accept_unknown_peers:
            return Verdict(None, OPERATIONS, "")
        named = any(peer.ae_title == calling_ae.strip() for peer, _ in self._peers)
        reason = "address is not the peer's" if named else "calling AE title not recognised"
        return Verdict(dimse.REJECT_CALLING_AE, nothing, reason)

    def find(self, calling_ae: str, address: str) -> Peer | None:
        """Return the peer that has this AE title and may call from this address."""
        try:
            caller = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return None
        for peer, networks in self._peers:
            if peer.ae_title == calling_ae.strip() and any(caller in network for network in networks):
                return peer
        return None


def _networks(peer: Peer) -> list[_Network]:
    try:
        return [ipaddress.ip_network(peer.host, strict=False)]
    except ValueError:
        if "/" in peer.host:
            raise SettingsError(f"peers.{peer.name}.host: {peer.host!r} is no network") from None
    try:
        found = {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(peer.host, None)}
    except OSError:
        # The others shall still be received from; it is let in after a restart with a name server.
        event("peer unknown", level=logging.ERROR, peer=peer.name, reason="its host name does not resolve")
        return []
    return [ipaddress.ip_network(address) for address in found]
