"""What one peer can take from the receiver: sizes, numbers and times, each a key of ``[receiver]``."""

import ipaddress
from dataclasses import dataclass

# Whose connections end without words; shown in the log with the setting that ended them.
SECTION = "receiver"


@dataclass(frozen=True, slots=True)
class Limits:
    """The receiver's bounds; every field is the key of the same name in ``[receiver]``.

    Parameters
    ----------
    maximum_associations
        Associations at a time.
    maximum_connections
        Connections at a time that have not asked for an association yet; beyond it the oldest goes.
    maximum_request_bytes
        Of an A-ASSOCIATE-RQ PDU, whatever it proposes.
    maximum_pdu_bytes
        Of a P-DATA-TF PDU.
    maximum_instance_bytes
        Of one data set.
    maximum_pending_messages
        Messages that a peer may send ahead of our answers.
    acse_timeout_s
        From the connection (TLS handshake included) to the complete association request.
    dimse_timeout_s
        For what follows in a message, before ``minimum_bytes_per_s`` counts.
    network_timeout_s
        Of silence between messages.
    pdu_timeout_s
        From the first to the last byte of one PDU.
    minimum_bytes_per_s
        Average speed of a message that takes longer than ``dimse_timeout_s``.
    """

    maximum_associations: int = 25
    maximum_connections: int = 256
    maximum_request_bytes: int = 262_144
    maximum_pdu_bytes: int = 131_072
    maximum_instance_bytes: int = 4 * 1024**3
    maximum_pending_messages: int = 16
    acse_timeout_s: float = 30.0
    dimse_timeout_s: float = 60.0
    network_timeout_s: float = 60.0
    pdu_timeout_s: float = 30.0
    minimum_bytes_per_s: int = 10_000


class LimitError(ConnectionAbortedError):
    """A peer went beyond a limit; its connection ends.

    Parameters
    ----------
    key
        The limit's key, such as ``receiver.pdu_timeout_s``; "" when the bytes are no DICOM at all.
    reason
        What it did, without any of its bytes.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(reason)
        self.key = f"{SECTION}.{key}" if key else ""
        self.reason = reason


def plain_address(address: str) -> str:
    """Return an IPv6 address that stands for an IPv4 one as that one; any other as it is."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    mapped = getattr(parsed, "ipv4_mapped", None)
    return str(mapped or parsed)
