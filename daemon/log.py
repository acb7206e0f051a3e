"""Structured events: one line each, fields by name; a field that is not on the list is refused.

No event carries patient data (names, IDs, dates, descriptions) or a plain UID: studies appear as a
pseudonym, a keyed hash that only this site can make again.
"""

import json
import logging
import os
import secrets
import sys
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, TextIO

# What an event may say. A new field is added here on purpose, never by accident.
ALLOWED_FIELDS = frozenset(
    {
        "address",
        "attempts",
        "bundle",
        "bytes",
        "called_ae",
        "calling_ae",
        "count",
        "destination",
        "device",
        "duration_s",
        "error",
        "failed",
        "findings",
        "finished",
        "frames",
        "free_bytes",
        "host",
        "instances",
        "key",
        "level",
        "outcome",
        "peer",
        "pid",
        "port",
        "process",
        "reason",
        "received",
        "refused",
        "results",
        "revision",
        "role",
        "scored",
        "sent",
        "series",
        "signal",
        "size_bytes",
        "slices",
        "state",
        "status",
        "statuses",
        "step",
        "studies",
        "study",
        "total",
        "version",
        "warnings",
        "workflow",
    }
)
_MAX_TEXT = 300
# Their messages can quote values of data elements; of these only level and place are logged.
_QUOTING_LIBRARIES = ("pynetdicom", "pydicom", "highdicom")
_LOGGER = logging.getLogger("daemon")


def event(name: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Log one event.

    Parameters
    ----------
    name
        What happened, such as ``association``.
    level
        A level of the ``logging`` module.
    fields
        Values by name; a name that is not in ``ALLOWED_FIELDS`` is refused and its value dropped.
    """
    _LOGGER.log(level, name, extra={"fields": fields})


def pseudonym(uid: str, key: bytes) -> str:
    """Return 16 hex digits that stand for a UID: the same each time, and meaningless without the key."""
    return blake2b(uid.encode(), key=key[:64], digest_size=8).hexdigest()


def load_key(path: Path) -> bytes:
    """Return the site's pseudonym key from a file; made once, at random, readable by us alone."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_bytes()
    with os.fdopen(descriptor, "wb") as stream:
        key = secrets.token_bytes(32)
        stream.write(key)
    return key


def configure(
    level: str = "INFO", form: Literal["text", "json"] = "text", stream: TextIO | None = None
) -> None:
    """Send every log record of this process, one line each, to a stream (default: standard error).

    Parameters
    ----------
    level
        Name of the lowest level that is written.
    form
        ``text`` for ``key=value`` pairs, ``json`` for one object a line.
    stream
        Where the lines go.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(EventFormatter(form))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Below these levels the libraries report every message of every association.
    for library in (*_QUOTING_LIBRARIES, "alembic", "sqlalchemy"):
        logging.getLogger(library).setLevel(logging.WARNING)
    # A peer that cannot be reached is reported by whoever called it, with the reason.
    logging.getLogger("pynetdicom.transport").setLevel(logging.CRITICAL)
    # The readers' warnings quote the values they warn of: none may reach standard error.
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.CRITICAL)


class EventFormatter(logging.Formatter):
    """One line for each record, with nothing in it but allowed fields."""

    def __init__(self, form: Literal["text", "json"]) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line."""
        fields = {"time": self._time(record), "level": record.levelname.lower(), **_fields(record)}
        if self._form == "json":
            return json.dumps(fields, ensure_ascii=True, default=str)
        return " ".join(f"{key}={_quoted(value)}" for key, value in fields.items())

    def _time(self, record: logging.LogRecord) -> str:
        return f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any]
    if record.name == "daemon" or record.name.startswith("daemon."):
        given: dict[str, object] = getattr(record, "fields", {})
        fields = {"event": _clean(record.getMessage()), **_plain(given)}
        if refused := sorted(given.keys() - ALLOWED_FIELDS):
            fields["refused_fields"] = ",".join(refused)
    else:
        fields = {"event": "library", "logger": record.name, "place": f"{record.module}:{record.lineno}"}
        if not record.name.startswith(_QUOTING_LIBRARIES):
            fields["message"] = _clean(record.getMessage())
    if record.exc_info and record.exc_info[0] is not None:
        # Only the kind: an exception's text can quote what it choked on.
        fields["exception"] = record.exc_info[0].__name__
    return fields


def _plain(fields: dict[str, object]) -> dict[str, object]:
    return {
        key: value if isinstance(value, int | float | bool | None) else _clean(str(value))
        for key, value in fields.items()
        if key in ALLOWED_FIELDS
    }


def _clean(text: str) -> str:
    """Make one line of at most ``_MAX_TEXT`` printable characters: peers choose some of these texts."""
    return "".join(char if char.isprintable() else "?" for char in text[:_MAX_TEXT])


def _quoted(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return json.dumps(text) if not text or any(char in text for char in ' "=') else text
