"""The ports that the SCP listens on, plain and encrypted: opened together, served, closed in order."""

import socket
import ssl
import threading
from collections.abc import Sequence
from typing import Any

from pynetdicom import AE, build_context

from daemon import dimse
from daemon.connections import AssociationRunner, Connection, HandOver, Server
from daemon.log import event


class Listeners:
    """The listening sockets of one receiver.

    Parameters
    ----------
    ae_title
        Our AE title.
    handlers
        What pynetdicom is to call for which event.
    runner
        Who judges requests and runs associations.
    """

    def __init__(self, ae_title: str, handlers: Sequence[Any], runner: AssociationRunner) -> None:
        self._handlers, self._runner = list(handlers), runner
        limits = runner.limits
        self._ae = AE(ae_title=ae_title)
        self._ae.maximum_pdu_size = limits.maximum_pdu_bytes
        # The receiver counts by itself: a rejected association that lingers takes no place.
        self._ae.maximum_associations = 1_000_000
        dimse.configure_application(
            self._ae, limits.acse_timeout_s, limits.dimse_timeout_s, limits.network_timeout_s
        )
        self._servers: list[Server] = []
        self._threads: list[threading.Thread] = []

    def __len__(self) -> int:
        return len(self._servers)

    def port(self, *, encrypted: bool) -> int:
        """Return the port that is listened on so; 0 for none."""
        ports = (s.server_address[1] for s in self._servers if (s.tls is not None) == encrypted)
        return int(next(ports, 0))

    def open(self, kind: type[Server], address: tuple[str, int], tls: ssl.SSLContext | None = None) -> None:
        """Listen on one more address; a peer that connects waits for :meth:`serve`.

        Parameters
        ----------
        kind
            ``Server``, or ``HandedServer`` where another process listens.
        address
            Host and port.
        tls
            How to encrypt; None for plain.

        Raises
        ------
        OSError
            The address is taken or not ours.
        """
        server: Any = self._ae.make_server(
            address,
            contexts=[build_context(dimse.VERIFICATION)],
            evt_handlers=self._handlers,
            server_class=kind,
            request_handler=Connection,
        )
        server.receiver, server.tls = self._runner, tls
        self._ae._servers.append(server)
        self._servers.append(server)

    def close(self) -> None:
        """Give up addresses that nobody serves yet."""
        for server in self._servers:
            server.server_close()
        self._servers.clear()

    def serve(self, hand_over: HandOver | None = None) -> None:
        """Take connections, each port in a thread of its own."""
        for server in self._servers:
            server.hand_over = hand_over
            thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="receiver")
            thread.start()
            self._threads.append(thread)
            outcome = "plain" if server.tls is None else "TLS"
            port = server.server_address[1]
            event("receiver started", port=port, called_ae=self._ae.ae_title, outcome=outcome)

    def take(self, connection: socket.socket, address: tuple[Any, ...], *, encrypted: bool) -> None:
        """Run a connection that another process has accepted."""
        server = next(s for s in self._servers if (s.tls is not None) == encrypted)
        server.take(connection, address)

    def stop(self) -> None:
        """Take no more connections; those that are open go on."""
        if not self._threads:
            self.close()
        for server in self._servers:
            server.shutdown()
        for thread in self._threads:
            thread.join()
        self._servers, self._threads = [], []
