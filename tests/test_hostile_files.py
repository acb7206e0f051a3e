"""Stored files that were made to break who reads them later: trail, page, scoring and feedback stay up."""

from __future__ import annotations

import struct
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from factories import ct_series, write
from peers import free_port
from pydicom.uid import DeflatedExplicitVRLittleEndian
from test_audit import Kept, trail
from test_receiver import association, store_raw, wait_for

from adapters import source
from adapters.bounded import BoundedReader
from adapters.errors import DecodeError
from daemon.analyst import _is_own_file
from daemon.assessments import Assessment, assess, assess_all
from daemon.attributes import attributes
from daemon.corrections import Correction, Corrections
from daemon.errors import EncodeError, SpoolError
from daemon.feedback import Sources, export_feedback
from daemon.header import read_header
from daemon.index import Index
from daemon.part10 import file_meta, read_file_header
from daemon.receiving import make_receiver
from daemon.records import ResultRecord
from daemon.settings import load_settings
from daemon.spool import Spool
from daemon.verdicts import Verdicts
from daemon.views import Views
from daemon.web.patients import Header, Patients

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import attacks

SOP, STUDY, SERIES = "1.2.3", "1.2.4", "1.2.5"
SR = "1.2.840.10008.5.1.4.1.1.88.33"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"
IMPLICIT_LONG = struct.Struct("<HHL")


def long(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    """An element with a length of 32 bits."""
    return struct.pack("<HH2sxxL", group, number, vr, len(value)) + value


def patient() -> bytes:
    """Name and ID, which lie before the study's UID."""
    name = attacks.element(0x0010, 0x0010, b"PN", b"CANARY^X")
    return name + attacks.element(0x0010, 0x0020, b"LO", b"4711")


def nested_behind(depth: int) -> bytes:
    """Sequences of undefined length in one another that lie behind the UIDs, at (0040,0275)."""
    before, behind = (struct.pack("<HH", *tag) for tag in ((0x0008, 0x1140), (0x0040, 0x0275)))
    return attacks.nested(depth).replace(before, behind)


@pytest.fixture(scope="module")
def zeros() -> bytes:
    """128 MB in one element of a private group behind the UIDs."""
    return long(0x0021, 0x1000, b"OB", bytes(128 << 20))


@pytest.fixture(scope="module")
def bomb(zeros: bytes) -> bytes:
    """A deflated instance with the UIDs first and the zeros behind."""
    return attacks.deflated(attacks.data_set(SOP, before=patient()) + zeros)


def part10(path: Path, data: bytes, syntax: str = attacks.EXPLICIT, sop_class: str = attacks.CT) -> Path:
    """Write a data set as the spool does."""
    path.write_bytes(file_meta(sop_class, SOP, syntax, "AE") + data)
    return path


@contextmanager
def at_most(size_bytes: int) -> Iterator[None]:
    """Nothing in here takes more memory than that, not even for a moment."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size_bytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("reception", ["fast", "stock"])
def test_the_audit_trail_survives_what_was_answered_success(
    tmp_path: Path, reception: str, bomb: bytes
) -> None:
    """A deflate bomb and 1,000 nested sequences behind the UIDs: recorded with the patient, for no memory."""
    path = tmp_path / "settings.toml"
    path.write_text(
        f'[service]\ndata_dir = "data"\n[receiver]\nport = {free_port()}\nreserve_bytes = 0\n'
        f'reception = "{reception}"\n'
    )
    settings, kept = load_settings(path), Kept()
    settings.service.data_dir.mkdir(parents=True, exist_ok=True)
    spool, index = Spool(settings.spool_dir, 0), Index(settings.database_url)
    receiver = make_receiver(settings, index, spool, b"key", trail(kept))
    receiver.start()
    try:
        with at_most(48 << 20):
            with association(receiver, [attacks.DEFLATED]) as assoc:  # type: ignore[arg-type]
                assert store_raw(assoc, bomb, SOP) == 0x0000
            with association(receiver) as assoc:  # type: ignore[arg-type]
                nested = attacks.data_set("1.2.3.1", "1.2.4.1", before=patient()) + nested_behind(1_000)
                assert store_raw(assoc, nested, "1.2.3.1") == 0x0000
            wait_for(lambda: len(kept.messages) == 2)
    finally:
        receiver.stop(5.0)
        index.close()
    assert all("CANARY^X" in message for message in kept.messages)


@pytest.mark.parametrize("kind", ["bomb", "nested", "nested before"])
def test_the_page_lists_a_study_whose_file_is_hostile(tmp_path: Path, kind: str, bomb: bytes) -> None:
    """The list has a line for it: with its patient where that lies before what is hostile, else without."""
    if kind == "bomb":
        path = part10(tmp_path / "a.dcm", bomb, attacks.DEFLATED)
    elif kind == "nested":
        path = part10(tmp_path / "a.dcm", attacks.data_set(SOP, before=patient()) + nested_behind(1_000))
    else:
        path = part10(tmp_path / "a.dcm", attacks.data_set(SOP, before=attacks.nested(1_000) + patient()))
    with at_most(48 << 20):
        header = Patients(tmp_path, show=True).header(path.name)
    assert header == Header() if kind == "nested before" else header.patient == "CANARY X, 4711"


def test_scoring_tells_a_hostile_file_from_its_own_results(tmp_path: Path, bomb: bytes) -> None:
    """Whether it is a result that came back is seen without unpacking or parsing the rest."""
    nested = attacks.data_set(SOP) + nested_behind(1_000)
    with at_most(48 << 20):
        assert not _is_own_file(part10(tmp_path / "a.dcm", bomb, attacks.DEFLATED))
        assert not _is_own_file(part10(tmp_path / "b.dcm", nested))


def test_a_header_for_a_result_is_read_within_bounds(tmp_path: Path, zeros: bytes) -> None:
    """A source that is a bomb, or nested too deeply, is an error of the encoders' own."""
    for data, syntax in (
        (attacks.deflated(zeros), attacks.DEFLATED),
        (attacks.nested(1_000) + attacks.data_set(SOP), attacks.EXPLICIT),
    ):
        with at_most(48 << 20), pytest.raises(EncodeError):
            read_header(part10(tmp_path / "a.dcm", data, syntax))


@pytest.mark.parametrize("length", [512 << 20, 0xFFFFFFFF])
def test_a_uid_of_any_length_costs_no_memory(tmp_path: Path, length: int) -> None:
    """A Study Instance UID of 512 MB, or without an end, in Implicit VR is refused at its length."""
    head = b"".join(
        IMPLICIT_LONG.pack(0x0008, element, len(value)) + value
        for element, value in ((0x0016, attacks.CT.encode() + b"\0"), (0x0018, b"1.2.3\0"))
    )
    path = part10(tmp_path / "a.dcm", head + IMPLICIT_LONG.pack(0x0020, 0x000D, length), attacks.IMPLICIT)
    with path.open("r+b") as stream:
        stream.truncate(512 << 20)
    with at_most(48 << 20), pytest.raises(SpoolError, match="longer than 64 KiB"):
        read_file_header(path)


@pytest.mark.parametrize("undefined", [False, True])
def test_half_a_million_empty_items_never_become_objects(tmp_path: Path, undefined: bool) -> None:
    """A report of 4 MB with nothing but empty items is refused with a reason."""
    items = IMPLICIT_LONG.pack(0xFFFE, 0xE000, 0) * 500_000
    content = long(0x0040, 0xA730, b"SQ", items)
    if undefined:
        end = IMPLICIT_LONG.pack(0xFFFE, 0xE0DD, 0)
        content = struct.pack("<HH2sxxL", 0x0040, 0xA730, b"SQ", 0xFFFFFFFF) + items + end
    path = part10(tmp_path / "a.dcm", attacks.data_set(SOP) + content, sop_class=SR)
    said = assess(path, frozenset())
    assert said.verdicts == {} and not said.outlines
    assert said.reason.startswith("the data set cannot be parsed")


def test_a_report_nested_deeper_than_any_is_refused(tmp_path: Path) -> None:
    """Sequences of defined length count, too: 40 deep is more than a report has."""
    content = b""
    for _ in range(40):
        content = long(0x0040, 0xA730, b"SQ", IMPLICIT_LONG.pack(0xFFFE, 0xE000, len(content)) + content)
    said = assess(part10(tmp_path / "a.dcm", attacks.data_set(SOP) + content, sop_class=SR), frozenset())
    assert "nested more than 32 deep" in said.reason


@pytest.fixture(scope="module")
def bombs(zeros: bytes) -> dict[str, bytes]:
    """By SOP class, deflated corrections whose segments or content would lie behind the zeros."""
    return {uid: attacks.deflated(_start(uid) + zeros) for uid in (SEG, SR)}


def _start(sop_class: str) -> bytes:
    before, after = (attacks.element(0x0008, 0x0016, b"UI", uid.encode()) for uid in (attacks.CT, sop_class))
    return attacks.data_set(SOP).replace(before, after)


def _hostile(kind: str, bombs: dict[str, bytes]) -> tuple[str, str, bytes]:
    """SOP class, transfer syntax and data set of a correction."""
    sop_class = SEG if kind.startswith("SEG") else SR
    if kind.endswith("bomb"):
        return sop_class, attacks.DEFLATED, bombs[sop_class]
    return sop_class, attacks.EXPLICIT, _start(sop_class) + nested_behind(1_000)


@pytest.mark.parametrize("kind", ["SEG bomb", "SEG nested", "SR bomb", "SR nested"])
def test_a_hostile_correction_is_refused_with_a_reason(
    tmp_path: Path, kind: str, bombs: dict[str, bytes]
) -> None:
    """It says nothing of any finding, outlines nothing, and why is said."""
    sop_class, syntax, data = _hostile(kind, bombs)
    path = part10(tmp_path / "a.dcm", data, syntax, sop_class)
    came = Correction(STUDY, SOP, sop_class, path.name, 0.0, "WS")
    with at_most(48 << 20):
        ((_, said),) = assess_all([came], tmp_path.joinpath, [path.name])
    assert said == Assessment({}, outlines=False, reason=said.reason)
    assert said.reason.startswith("the data set cannot be parsed (")


def test_an_export_names_a_hostile_correction_and_leaves_it_out(
    tmp_path: Path, bombs: dict[str, bytes]
) -> None:
    """`daemon feedback export` goes on, writes no case of it, and says which object it could not read."""
    spool, index = Spool(tmp_path / "spool", 0), Index(f"sqlite:///{tmp_path}/index.db")
    sop_class, syntax, data = _hostile("SEG bomb", bombs)
    for uid, kind, encoding, content in (
        ("1.2.3.9", attacks.CT, attacks.EXPLICIT, attacks.data_set("1.2.3.9")),
        (SOP, sop_class, syntax, data),
    ):
        part = spool.begin(kind, uid, encoding, "WS")
        part.write(content)
        index.add_instance(part.commit(STUDY, SERIES), spool)
        revision = index.open_revision(STUDY)
        if kind == attacks.CT:
            report = spool.write_result(STUDY, revision, "SR.1.2.9.dcm", b"gone")
            index.add_results([ResultRecord(STUDY, revision, "SR", SR, "1.2.9", "1.2.8", report, "0" * 64)])
    engines = index._engine, index._writer
    sources = Sources(index, spool, Verdicts(*engines), Corrections(*engines), Views(tmp_path / "views"))
    try:
        done = export_feedback(sources, tmp_path / "cases")
    finally:
        index.close()
    assert (done.studies, done.annotations) == (0, 0)
    (reason,) = done.left_out
    assert reason.startswith(f"SEG from WS of study {STUDY}: the data set cannot be parsed")


def test_a_deflated_image_larger_than_the_limit_has_its_header(tmp_path: Path) -> None:
    """An honest deflated image of 32 MB is recognised by its start, of which no more is unpacked."""
    ds = ct_series()[0]
    ds.PatientName, ds.Rows, ds.Columns, ds.PixelData = "CANARY^X", 4_096, 4_096, bytes(32 << 20)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = write(ds, tmp_path / "a.dcm")
    with at_most(32 << 20):
        with attributes(path, ("PatientName", "SeriesNumber")) as found:
            assert str(found.PatientName) == "CANARY^X"
        assert read_header(path).StudyInstanceUID == ds.StudyInstanceUID


def test_values_are_converted_within_the_bounds_of_the_error(tmp_path: Path) -> None:
    """What breaks only when a value is looked at is a SpoolError, too."""
    number = attacks.element(0x0020, 0x0011, b"IS", b"x" * 4)
    path = part10(tmp_path / "a.dcm", attacks.data_set(SOP) + number)
    with pytest.raises(SpoolError, match="cannot be parsed"), attributes(path, ("SeriesNumber",)) as found:
        int(found.SeriesNumber)


def test_a_deflated_header_has_the_limits_of_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For scoring, a deflated data set of too many empty items is refused as one that is not deflated."""
    most = 10_000
    monkeypatch.setattr(source, "BoundedReader", partial(BoundedReader, reads=3 * most))
    items = IMPLICIT_LONG.pack(0xFFFE, 0xE000, 0) * (most + 1)
    content = struct.pack("<HH2sxxL", 0x0040, 0xA730, b"SQ", 0xFFFFFFFF) + items
    path = part10(tmp_path / "a.dcm", attacks.deflated(attacks.data_set(SOP) + content), attacks.DEFLATED)
    with pytest.raises(DecodeError, match=f"more than {most} sequence items"):
        source.read_source(path)
