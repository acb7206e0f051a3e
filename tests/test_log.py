"""The log: one line each, allowed fields only, no patient data."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.log import configure, event, load_key, pseudonym


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Send this process's log to memory for a while."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure("INFO", "json", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


def last(lines: io.StringIO) -> dict[str, object]:
    """Return the last line's fields."""
    fields = json.loads(lines.getvalue().splitlines()[-1])
    assert isinstance(fields, dict)
    return fields


def test_an_event_is_one_line_of_fields(lines: io.StringIO) -> None:
    """An event's name and fields come back from its line."""
    event("association", calling_ae="MODALITY", instances=3)
    assert (last(lines)["event"], last(lines)["calling_ae"], last(lines)["instances"]) == (
        "association",
        "MODALITY",
        3,
    )


def test_a_field_that_is_not_on_the_list_is_refused(lines: io.StringIO) -> None:
    """An unknown field's name is reported and its value is nowhere."""
    event("study", patient_name="CANARY^X", study="0123")
    assert last(lines)["refused_fields"] == "patient_name"
    assert "CANARY" not in lines.getvalue()


@pytest.mark.parametrize("library", ["pydicom", "pynetdicom.dimse", "highdicom.seg"])
def test_libraries_that_quote_values_are_not_quoted(lines: io.StringIO, library: str) -> None:
    """Of a DICOM library's warning only its place is logged."""
    logging.getLogger(library).warning("Invalid value for VR PN: CANARY^X")
    assert "CANARY" not in lines.getvalue()
    assert last(lines)["logger"] == library


def test_an_exception_is_logged_by_kind_only(lines: io.StringIO) -> None:
    """An exception's text stays out of the log; its kind is in."""
    try:
        raise ValueError("CANARY^X")
    except ValueError:
        logging.getLogger("daemon.x").exception("step failed")
    assert last(lines)["exception"] == "ValueError"
    assert "CANARY" not in lines.getvalue()


def test_a_peer_cannot_write_lines_of_its_own(lines: io.StringIO) -> None:
    """Line breaks and control characters of a peer's text cannot start a new line."""
    configure("INFO", "text", lines)
    event("association", calling_ae='A"\n2026 event=fake\x1b[0m')
    assert len(lines.getvalue().splitlines()) == 1
    assert "\x1b" not in lines.getvalue()


def test_a_pseudonym_needs_the_key(tmp_path: Path) -> None:
    """The same UID gives the same pseudonym under one key, another under another; the key stays."""
    key = load_key(tmp_path / "key")
    assert load_key(tmp_path / "key") == key
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert pseudonym("1.2.3", key) == pseudonym("1.2.3", key)
    assert pseudonym("1.2.3", key) != pseudonym("1.2.3", b"another")
    assert "1.2.3" not in pseudonym("1.2.3", key)
