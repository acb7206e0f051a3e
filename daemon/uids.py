"""UIDs: whether a text is one, and ours, deterministic: the same revision always makes the same objects."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterable

# Part of every hash: raise it when the encoding of the result objects changes.
SCHEMA = "1"

# InstanceCreatorUID of every object that we write, and the root of our own class UIDs (PS3.5 B.2).
OWN_CREATOR_UID = "2.25.21059593883370345288769690701954522387"

# Leading zeros, which PS3.5 9.1 forbids and modalities send, do no harm in a name.
_DIGITS = re.compile(r"[0-9]+(\.[0-9]+)*")
_LONGEST = 64


def is_uid(text: str) -> bool:
    """Whether a text has the form of a UID (PS3.5 9.1): numbers between dots, at most 64 characters."""
    return len(text) <= _LONGEST and _DIGITS.fullmatch(text) is not None


def derived(*parts: str) -> str:
    """Hash parts into a UID of the form ``2.25.<UUIDv8>`` (PS3.5 B.2, RFC 9562 5.8).

    Parameters
    ----------
    parts
        What the object depends on; order matters and no part can run into the next.

    Returns
    -------
    A valid DICOM UID of at most 44 characters.
    """
    digest = hashlib.sha256()
    for part in (SCHEMA, *parts):
        encoded = part.encode("utf-8", "surrogateescape")
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    raw = bytearray(digest.digest()[:16])
    raw[6] = (raw[6] & 0x0F) | 0x80  # version 8: custom
    raw[8] = (raw[8] & 0x3F) | 0x80  # RFC 9562 variant
    return f"2.25.{uuid.UUID(bytes=bytes(raw)).int}"


def result_uid(
    kind: str,
    *,
    study_instance_uid: str,
    group_key: str,
    sop_instance_uids: Iterable[str],
    model: str,
    parameters: str,
    revision: int,
) -> str:
    """UID of one result object or series.

    Parameters
    ----------
    kind
        What it names: "seg", "seg-series", "finding-1", ….
    study_instance_uid, group_key
        Of the source; the key tells groups of one series apart.
    sop_instance_uids
        Source instances, in any order.
    model
        Backbone, bundle name and bundle hash.
    parameters
        Threshold, minimum size and everything else that changes the result.
    revision
        Of the study, from 1.

    Returns
    -------
    The UID.
    """
    instances = "\n".join(sorted(set(sop_instance_uids)))
    return derived(kind, study_instance_uid, group_key, instances, model, parameters, str(revision))
