"""An association that we ask for: with whom, for how long we wait, and why it did not come about."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pynetdicom import AE, build_context, evt
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.transport import AddressInformation, AssociationSocket

from daemon import dimse
from daemon.doorstep import tls_reason
from daemon.errors import SendError, SettingsError
from daemon.incoming import set_no_delay
from daemon.tls import Credentials, client_context


@dataclass(frozen=True, slots=True)
class Destination:
    """A node that takes objects: where it is, how it is called and how long we wait for it."""

    name: str
    ae_title: str
    host: str
    port: int
    calling_ae: str = "ANOMALYD"
    connect_timeout_s: float = 10.0
    acse_timeout_s: float = 30.0
    dimse_timeout_s: float = 60.0
    network_timeout_s: float = 60.0
    maximum_pdu_bytes: int = 131_072
    tls: Credentials | None = None


class AnswersOnly(DIMSEServiceProvider):
    """A DIMSE provider of a pure requestor: messages go to whoever waits for an answer.

    In pynetdicom 3.0.4 the association's own thread may still poll for requests while a request is
    sent. It then takes a quick answer, drops it as unexpected, and the sender waits for its timeout.
    """

    def get_msg(self, block: bool = False) -> tuple[Any, Any]:
        """Return the next message to one that waits; to one that only polls, none."""
        return super().get_msg(block) if block else (None, None)


class _Socket(AssociationSocket):
    """A socket whose handshake is bounded in time, that is always closed, and that says why TLS failed."""

    failure = ""
    _connected_once = False

    @property
    def _is_connected(self) -> bool:
        """True once the peer was there, also after the end; `socket` says whether it still is.

        The thread that negotiates asks for this first, and then takes the answer. In pynetdicom 3.0.4
        a peer that rejects and closes before that thread runs counts as one that was never there.
        """
        return self._connected_once

    @_is_connected.setter
    def _is_connected(self, connected: bool) -> None:
        self._connected_once |= connected

    def connect(self, primitive: Any) -> None:
        """Connect, and encrypt where that is wanted."""
        connection: Any = self.socket
        connected = False
        try:
            connection.settimeout(self.assoc.connection_timeout)
            connection.connect(primitive.address_info.as_tuple)
            connected = True
            if self.tls_args:
                context, name = self.tls_args
                connection = context.wrap_socket(connection, server_hostname=name)
            self.socket = connection
            # A peer that stops reading must not hold a send for ever.
            connection.settimeout(self.assoc.network_timeout)
            self.assoc.requestor.address_info = AddressInformation.from_tuple(connection.getsockname())
            self._is_connected = True
            evt.trigger(self.assoc, evt.EVT_CONN_OPEN, {"address": primitive.address_info.as_tuple})
            primitive.result = "Evt2"
        except OSError as error:
            if connected:
                self.failure = tls_reason(error)
            connection.close()
            self.socket = None
            primitive.result = "Evt17"
        finally:
            self.opened = connection
            self.provider_queue.put(primitive)
            self._ready.set()


class _Application(AE):
    """An AE that closes its sockets: pynetdicom leaves one open whose peer was not, or no longer, there."""

    def __init__(self, ae_title: str) -> None:
        super().__init__(ae_title=ae_title)
        self.wrappers: list[_Socket] = []

    def _create_socket(self, assoc: Association, address: Any, tls_args: Any) -> AssociationSocket:
        wrapper = _Socket(assoc, address=address)
        wrapper.tls_args = tls_args
        self.wrappers.append(wrapper)
        return wrapper

    def close_sockets(self) -> None:
        """Close every socket that was opened."""
        for wrapper in self.wrappers:
            for connection in (getattr(wrapper, "opened", None), wrapper.socket):
                if connection is not None:
                    connection.close()

    @property
    def tls_failure(self) -> str:
        """Why TLS failed; "" if it did not."""
        return next((wrapper.failure for wrapper in self.wrappers if wrapper.failure), "")


@contextmanager
def associate(
    destination: Destination,
    contexts: Sequence[tuple[str, tuple[str, ...]]],
    handlers: Sequence[tuple[Any, Any]] = (),
    extended: Sequence[Any] = (),
) -> Iterator[Association]:
    """Open an association and release it at the end.

    Parameters
    ----------
    destination
        With whom.
    contexts
        Abstract syntaxes, each with its transfer syntaxes.
    handlers
        pynetdicom's events and who takes them.
    extended
        Items of extended negotiation, such as role selection.

    Raises
    ------
    SendError
        It could not be opened; the message says which of host, AE title and so on to look at.
    """
    dimse.configure_pynetdicom()
    ae = _Application(ae_title=destination.calling_ae)
    ae.connection_timeout = destination.connect_timeout_s
    dimse.configure_application(
        ae, destination.acse_timeout_s, destination.dimse_timeout_s, destination.network_timeout_s
    )
    connected: list[bool] = []

    def opened(event: evt.Event) -> None:
        connected.append(True)
        event.assoc.dimse = AnswersOnly(event.assoc)
        set_no_delay(event.assoc)

    try:
        assoc = ae.associate(
            destination.host,
            destination.port,
            [build_context(uid, list(syntaxes)) for uid, syntaxes in contexts],
            ae_title=destination.ae_title,
            max_pdu=destination.maximum_pdu_bytes,
            evt_handlers=[(evt.EVT_CONN_OPEN, opened), *handlers],
            ext_neg=list(extended),
            tls_args=_tls(destination),
        )
    except SettingsError as error:
        raise SendError(f"{destination.name}: {error}") from error
    except OSError as error:
        ae.close_sockets()
        raise SendError(f"{destination.name}: the host {destination.host} is unknown") from error
    try:
        if not assoc.is_established:
            reason = ae.tls_failure and f"TLS with {destination.host}:{destination.port}: {ae.tls_failure}"
            reason = reason or _refusal(assoc, destination, bool(connected))
            raise SendError(f"{destination.name}: {reason}")
        yield assoc
    finally:
        if assoc.is_established:
            assoc.release()
        ae.close_sockets()


def _tls(destination: Destination) -> Any:
    if destination.tls is None:
        return None
    # Without a host name to check none is announced either: an address would be no SNI.
    name = destination.tls.host_name
    return client_context(destination.tls), destination.host if name == "" else name


def _refusal(assoc: Any, destination: Destination, connected: bool) -> str:
    place = f"{destination.host}:{destination.port}"
    if not connected:
        return f"no connection to {place} within {destination.connect_timeout_s:g} s: is it running there?"
    if assoc.is_rejected:
        answer = assoc.acceptor.primitive
        return (
            f"rejected the association ({answer.reason_str}): "
            f"check AE titles {destination.calling_ae} (ours) and {destination.ae_title} (theirs)"
        )
    if assoc.is_aborted and assoc.acceptor.primitive is not None:
        return "accepts nothing of what would be sent"
    hint = "; it may not accept our certificate (tls.certificate)" if destination.tls is not None else ""
    return f"{place} ended the connection or gave no answer within {destination.acse_timeout_s:g} s{hint}"
