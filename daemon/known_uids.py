"""UIDs that pynetdicom checks once instead of five times for every presentation context.

An association request has up to 128 contexts of several UIDs each. pynetdicom makes a new ``UID`` of each
at every step of the negotiation, and pydicom matches it with regular expressions each time: three quarters
of the time that an association takes to be accepted. UIDs repeat; those that were seen are kept.
"""

import functools
from typing import Any, cast

import pynetdicom._validators
import pynetdicom.pdu_items
import pynetdicom.presentation
import pynetdicom.utils
from pydicom.uid import UID

# Peers choose what is kept: it is bounded. PS3.6 has some 500 UIDs that a request may have.
_MAXIMUM = 4096
_LONGEST = 64
_known: dict[str, "KnownUID"] = {}


class KnownUID(UID):
    """A ``UID`` that is made, and looked at, once.

    Parameters
    ----------
    val, validation_mode
        As of ``UID``.
    """

    def __new__(cls, val: str, validation_mode: int | None = None) -> "KnownUID":
        """Return the one that is known, or a new one."""
        if type(val) is cls:
            return val
        if hasattr(val, "_PRIVATE_TS_ENCODING"):
            # It says how a private transfer syntax is encoded, as another with its text may not.
            return cast(KnownUID, super().__new__(cls, val, validation_mode))
        found = _known.get(val)
        if found is None:
            found = cast(KnownUID, super().__new__(cls, val, validation_mode))
            if len(_known) < _MAXIMUM and len(val) <= _LONGEST:
                _known[str(val)] = found
        return found

    @functools.cached_property
    def is_valid(self) -> bool:
        """As of ``UID``."""
        return super().is_valid

    @functools.cached_property
    def is_transfer_syntax(self) -> bool:
        """As of ``UID``."""
        return super().is_transfer_syntax


def know_uids() -> None:
    """Let pynetdicom make its UIDs with :class:`KnownUID`; everything else stays as it is."""
    modules: tuple[Any, ...] = (
        pynetdicom._validators,
        pynetdicom.pdu_items,
        pynetdicom.presentation,
        pynetdicom.utils,
    )
    for module in modules:
        module.UID = KnownUID
