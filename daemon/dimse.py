"""DIMSE in names: statuses, storage SOP classes, transfer syntaxes; pynetdicom's own settings.

Statuses are those of PS3.4 B.2.3 and PS3.7 Annex C.
"""

from collections.abc import Iterable
from typing import Any

import pynetdicom._config
from pydicom._uid_dict import UID_dictionary
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, build_context, register_uid
from pynetdicom.presentation import PresentationContext
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import _STORAGE_CLASSES, uid_to_service_class

from daemon.known_uids import know_uids
from daemon.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
DUPLICATE_SOP_INSTANCE = 0x0111
NO_SUCH_INSTANCE = 0x0112
INVALID_ARGUMENT = 0x0115
SOP_CLASS_NOT_SUPPORTED = 0x0122
NO_SUCH_ACTION = 0x0123
NOT_AUTHORISED = 0x0124
RESOURCE_LIMITATION = 0x0213
OUT_OF_RESOURCES = 0xA700
DATA_SET_DOES_NOT_MATCH_SOP_CLASS = 0xA900
CANNOT_UNDERSTAND = 0xC000
COERCION_OF_DATA_ELEMENTS = 0xB000
ELEMENTS_DISCARDED = 0xB006
WARNING_DATA_SET_DOES_NOT_MATCH = 0xB007

STATUS_NAMES: dict[int, str] = {
    SUCCESS: "success",
    PROCESSING_FAILURE: "processing failure",
    DUPLICATE_SOP_INSTANCE: "duplicate SOP instance",
    SOP_CLASS_NOT_SUPPORTED: "SOP class not supported",
    NO_SUCH_INSTANCE: "no such SOP instance",
    INVALID_ARGUMENT: "invalid argument",
    NO_SUCH_ACTION: "no such action",
    NOT_AUTHORISED: "not authorised",
    RESOURCE_LIMITATION: "resource limitation",
    OUT_OF_RESOURCES: "out of resources",
    DATA_SET_DOES_NOT_MATCH_SOP_CLASS: "data set does not match SOP class",
    CANNOT_UNDERSTAND: "cannot understand",
    COERCION_OF_DATA_ELEMENTS: "coercion of data elements",
    ELEMENTS_DISCARDED: "elements discarded",
    WARNING_DATA_SET_DOES_NOT_MATCH: "warning: data set does not match SOP class",
}

# As a sender: the instance is at the destination after any of these.
WARNINGS = frozenset({COERCION_OF_DATA_ELEMENTS, ELEMENTS_DISCARDED, WARNING_DATA_SET_DOES_NOT_MATCH})
DELIVERED = frozenset({SUCCESS, DUPLICATE_SOP_INSTANCE}) | WARNINGS

VERIFICATION = "1.2.840.10008.1.1"
STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"
NATIVE = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))

# A-ASSOCIATE-RJ as (result, source, reason), PS3.8 table 9-21.
REJECT_CALLED_AE = (1, 1, 7)
REJECT_CALLING_AE = (1, 1, 3)
REJECT_LIMIT = (2, 3, 2)

_STORAGE_ROOT = "1.2.840.10008.5.1.4.1.1."


def status_name(status: int) -> str:
    """Return a C-STORE status in words, such as ``0xA700 (out of resources)``."""
    if status in STATUS_NAMES:
        return f"0x{status:04X} ({STATUS_NAMES[status]})"
    family = {0xA7: OUT_OF_RESOURCES, 0xA9: DATA_SET_DOES_NOT_MATCH_SOP_CLASS}.get(status >> 8)
    if family is None and status >> 12 == 0xC:
        family = CANNOT_UNDERSTAND
    return f"0x{status:04X} ({STATUS_NAMES[family] if family is not None else 'failure'})"


def storage_sop_classes(private: Iterable[str] = ()) -> frozenset[str]:
    """Return every storage SOP class that we receive.

    Parameters
    ----------
    private
        UIDs of the site's private storage SOP classes.

    Returns
    -------
    frozenset of str
        Those that pynetdicom knows, the retired ones of PS3.6, and the private ones.
    """
    known = {str(context.abstract_syntax) for context in AllStoragePresentationContexts}
    known.update(_OF_PYNETDICOM)
    retired = {
        uid
        for uid, (name, kind, _info, is_retired, _keyword) in UID_dictionary.items()
        if uid.startswith(_STORAGE_ROOT) and kind == "SOP Class" and is_retired and "Storage" in name
    }
    return frozenset(known | retired | set(private))


# Taken at once: what a node registers for its own site is not what pynetdicom knows.
_OF_PYNETDICOM = frozenset(str(uid) for uid in _STORAGE_CLASSES.values())


def register_storage(sop_classes: Iterable[str]) -> None:
    """Teach pynetdicom that these SOP classes belong to the Storage service."""
    for number, uid in enumerate(sorted(sop_classes)):
        if uid_to_service_class(uid) is not StorageServiceClass:
            register_uid(uid, f"SiteStorage{number}", StorageServiceClass)


def transfer_syntaxes() -> tuple[str, ...]:
    """Return every transfer syntax of PS3.6, retired ones too: what is stored is never decoded."""
    return tuple(uid for uid, entry in UID_dictionary.items() if entry[1] == "Transfer Syntax")


class Offer:
    """What we take as a Storage, Verification and Storage Commitment SCP.

    Parameters
    ----------
    private_sop_classes
        UIDs of the site's private storage SOP classes.
    """

    def __init__(self, private_sop_classes: Iterable[str] = ()) -> None:
        self.sop_classes = storage_sop_classes(private_sop_classes)
        self.transfer_syntaxes = frozenset(transfer_syntaxes())
        register_storage(self.sop_classes)

    def contexts(self, proposed: Iterable[Any]) -> list[PresentationContext]:
        """Return support for what is proposed and ours to take, in the peer's order of preference.

        pynetdicom takes the acceptor's first choice; with the peer's own order a compressed object
        travels as it is instead of being decompressed for us.
        """
        wanted: dict[str, list[str]] = {}
        for context in proposed:
            uid = str(context.abstract_syntax)
            if uid in self.sop_classes or uid in (VERIFICATION, STORAGE_COMMITMENT):
                known = wanted.setdefault(uid, [])
                known += [
                    s for s in context.transfer_syntax if s in self.transfer_syntaxes and s not in known
                ]
        offered = [build_context(uid, syntaxes) for uid, syntaxes in wanted.items() if syntaxes]
        for context in offered:
            # A PACS that reports on our request is its SCP, and says so by role selection.
            if context.abstract_syntax == STORAGE_COMMITMENT:
                context.scu_role = context.scp_role = True
        return offered


def configure_pynetdicom() -> None:
    """Set pynetdicom's process-wide settings: no identifiers in logs, files sent in pieces."""
    know_uids()
    config: Any = pynetdicom._config
    config.LOG_REQUEST_IDENTIFIERS = False
    config.LOG_RESPONSE_IDENTIFIERS = False
    # Its event handlers format every PDU and message, logged or not.
    config.LOG_HANDLER_LEVEL = "none"
    # A file is sent as its bytes are, without a copy in memory.
    config.STORE_SEND_CHUNKED_DATASET = True


def configure_application(
    ae: AE, acse_timeout_s: float, dimse_timeout_s: float, network_timeout_s: float
) -> None:
    """Give an AE our implementation UID and finite timeouts."""
    ae.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.acse_timeout = acse_timeout_s
    ae.dimse_timeout = dimse_timeout_s
    ae.network_timeout = network_timeout_s
