"""The fast path of reception: the same bytes, answers and files as the stock way, whatever comes."""

import hashlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pynetdicom
import pytest
from factories import ct_series, scanned, write_all
from peers import dcmsend, dcmtk, need, storescu
from test_receiver import ZOO, Node, _has_meta, association, data_set_bytes, running, store_raw, wait_for

from daemon.errors import SpoolError
from daemon.part10 import read_uids
from daemon.reception.journal import Journal
from daemon.reception.record import BLOCK, RECORD, Page, Record, checksum, header, read_segment
from daemon.reception.replay import left_behind
from daemon.reception.settling import Settler
from daemon.reception.uids import find_uids
from daemon.reception.wire import fragments, read_store_request, store_response
from daemon.requestor import Destination
from daemon.sender import send
from daemon.spool import Spool

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import attacks

STUDY, SERIES = "1.2.4", "1.2.5"


@contextmanager
def fast(folder: Path, **options: Any) -> Iterator[Node]:
    """Run a receiver whose fast path is in use."""
    with running(folder, **options) as node:
        assert node.receiver.reception is not None
        yield node


@contextmanager
def peer(node: Node, **options: Any) -> Iterator[socket.socket]:
    """Open an association as a bare connection, and wait for its end on the other side."""
    connection = attacks.associate(node.port, **options)
    connection.settimeout(20.0)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        yield connection
    finally:
        connection.close()
        wait_for(lambda: node.receiver.associations == 0, 20.0)


def requests_of(node: Node) -> int:
    """How many requests took the fast path."""
    assert node.receiver.reception is not None
    return node.receiver.reception.requests


def data_set(sop: str, size: int = 5_000) -> bytes:
    """An instance of any size, its content different for each UID."""
    noise = (sop.encode() * (size // len(sop) + 1))[: size // 2 * 2]
    return attacks.data_set(sop, STUDY, SERIES) + attacks.element(0x7FE1, 0x1001, b"OB", noise)


def pdus(sop: str, content: bytes, step: int = 4_000) -> bytes:
    """A C-STORE request, one PDV in each PDU."""
    pieces = [content[at : at + step] for at in range(0, len(content), step)] or [b""]
    last = len(pieces) - 1
    return attacks.data(attacks.store_command(sop), 3) + b"".join(
        attacks.data(piece, 2 if number == last else 0) for number, piece in enumerate(pieces)
    )


def answer(connection: socket.socket) -> bytes:
    """Read one PDU."""
    head = _exactly(connection, 6)
    return head + _exactly(connection, struct.unpack(">BxL", head)[1])


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        assert piece, "the connection ended"
        data += piece
    return data


def status(connection: socket.socket) -> int:
    """Read one response and return its status."""
    response = answer(connection)
    assert response[0] == 4, response[:10]
    return int(pydicom.filereader.read_dataset(BytesIO(response[12:]), True, True)[0x00000900].value)


def stored(node: Node, sop: str) -> bytes:
    """The data set of an instance that was received."""
    return data_set_bytes(node.spool.path(node.instances()[sop].path))


# The same as the stock way


@pytest.mark.shared
def test_the_zoo_is_the_same_on_both_ways(tmp_path: Path) -> None:
    """Each file of the zoo gets the same status on both ways, and its stored bytes are the same."""
    if not ZOO.is_dir():
        pytest.skip("DICOM_ZOO is not here")
    files = [file for file in sorted(ZOO.glob("**/*.dcm")) if _has_meta(file)]
    found = []
    for way in ("fast", "stock"):
        with running(tmp_path / way, reception=way) as node:
            outcomes = send(files, Destination("self", "ANOMALYD", "127.0.0.1", node.port))
            statuses = [(outcome.path, outcome.ok, outcome.reason) for outcome in outcomes]
            if way == "fast":
                assert requests_of(node) >= 70
        on_disk = {
            (i.path, i.size_bytes, i.transfer_syntax_uid, i.calling_ae, i.version)
            for i in scanned(node.spool)
        }
        bytes_on_disk = {path: node.spool.path(path).read_bytes() for path, *_ in on_disk}
        found.append((statuses, on_disk, bytes_on_disk))
    assert found[0] == found[1]


@pytest.mark.shared
def test_the_walk_over_elements_finds_what_pydicom_finds() -> None:
    """For every file of the zoo, whole and cut anywhere, both readers agree or the walk gives up."""
    if not ZOO.is_dir():
        pytest.skip("DICOM_ZOO is not here")
    for file in filter(_has_meta, sorted(ZOO.glob("**/*.dcm"))):
        syntax = str(pydicom.dcmread(file, stop_before_pixels=True).file_meta.TransferSyntaxUID)
        data = data_set_bytes(file)[:20_000]
        for end in {len(data), *range(0, min(len(data), 1_500), 97)}:
            assert _uids(find_uids, memoryview(data[:end]), syntax) == _uids(
                read_uids, BytesIO(data[:end]), syntax
            )


def _uids(reader: Any, data: Any, syntax: str) -> Any:
    try:
        return reader(data, syntax)
    except SpoolError:
        return None


@pytest.mark.peer
@pytest.mark.parametrize("option", ["-xi", "-xe", "-xb", "-xd"])
def test_storescu_is_served_in_each_transfer_syntax(tmp_path: Path, option: str) -> None:
    """DCMTK's sender gets Success on the fast path, and what it sent is stored."""
    need("storescu")
    files = write_all(ct_series(), tmp_path / "ct")
    with fast(tmp_path) as node:
        result = storescu(node.port, option, *map(str, files))
        assert result.returncode == 0, result.stderr
        assert requests_of(node) == len(files)
        instances = node.instances()
        assert len(instances) == len(files)
        for file in files:
            sent = pydicom.dcmread(file)
            got = pydicom.dcmread(node.spool.path(instances[sent.SOPInstanceUID].path))
            assert got.pixel_array.tobytes() == sent.pixel_array.tobytes()


@pytest.mark.peer
@pytest.mark.shared
def test_dcmsend_stores_compressed_objects_over_four_associations(tmp_path: Path) -> None:
    """Several senders at once, each in the files' own transfer syntaxes, lose nothing."""
    if not ZOO.is_dir():
        pytest.skip("DICOM_ZOO is not here")
    need("dcmsend")
    files = [str(file) for file in sorted(ZOO.glob("**/*.dcm")) if _has_meta(file)]
    with fast(tmp_path) as node, ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda n: dcmsend(node.port, *files[n::4]), range(4)))
        said = "".join(result.stdout + result.stderr for result in results)
        successes = len(re.findall(r"Received C-STORE Response \(Success\)", said))
        wait_for(lambda: node.receiver.associations == 0)
        assert successes >= 70
        assert {i.sop_instance_uid for i in scanned(node.spool)} == set(node.instances())
        assert len({i.transfer_syntax_uid for i in node.instances().values()}) >= 12


# Odd PDUs


def test_one_byte_at_a_time(tmp_path: Path) -> None:
    """TCP segments of one byte each make no difference."""
    content = data_set("1.2.30", 600)
    with fast(tmp_path) as node:
        with peer(node) as connection:
            for byte in pdus("1.2.30", content, 100):
                connection.sendall(bytes([byte]))
            assert status(connection) == 0
        assert stored(node, "1.2.30") == content
        assert requests_of(node) == 1


@pytest.mark.parametrize("step", [1, 2, 7, 1_000, 65_000])
def test_pdvs_of_any_size(tmp_path: Path, step: int) -> None:
    """A data set in fragments of a byte, or of a whole PDU, is put together."""
    content = data_set("1.2.31", 3_000 if step < 100 else 300_000)
    with fast(tmp_path) as node:
        with peer(node) as connection:
            connection.sendall(pdus("1.2.31", content, step))
            assert status(connection) == 0
        assert stored(node, "1.2.31") == content


def _pdv(content: bytes, control: int) -> bytes:
    return struct.pack(">LBB", len(content) + 2, 1, control) + content


def test_several_pdvs_in_one_pdu(tmp_path: Path) -> None:
    """Command and data, and the beginning of the next message, may share a PDU (PS3.8 9.3.5)."""
    one, two = data_set("1.2.32"), data_set("1.2.33")
    body = _pdv(attacks.store_command("1.2.32"), 3) + _pdv(one[:100], 0) + _pdv(one[100:], 2)
    body += _pdv(attacks.store_command("1.2.33"), 3) + _pdv(two[:1_000], 0)
    with fast(tmp_path) as node:
        with peer(node) as connection:
            connection.sendall(attacks.pdu(4, body) + attacks.pdu(4, _pdv(two[1_000:], 2)))
            assert [status(connection), status(connection)] == [0, 0]
        assert stored(node, "1.2.32") == one
        assert stored(node, "1.2.33") == two


def test_an_echo_behind_an_instance_in_one_pdu_goes_the_stock_way(tmp_path: Path) -> None:
    """What is left of a PDU behind an instance is served as a PDU of its own."""
    content = data_set("1.2.34")
    body = _pdv(attacks.store_command("1.2.34"), 3) + _pdv(content, 2)
    # The echo's SOP class is not the context's; it is answered all the same.
    with fast(tmp_path) as node:
        with peer(node) as connection:
            connection.sendall(attacks.pdu(4, body + _pdv(attacks.echo_command(7), 3)))
            assert [status(connection), status(connection)] == [0, 0]
        assert stored(node, "1.2.34") == content


def test_a_command_in_fragments_goes_the_stock_way(tmp_path: Path) -> None:
    """A command that is not in one piece is left to pynetdicom, with its data set."""
    command, content = attacks.store_command("1.2.35"), data_set("1.2.35")
    with fast(tmp_path) as node:
        with peer(node) as connection:
            connection.sendall(attacks.data(command[:20], 1) + attacks.data(command[20:], 3))
            connection.sendall(attacks.data(content[:99], 0) + attacks.data(content[99:], 2))
            assert status(connection) == 0
            assert requests_of(node) == 0
            connection.sendall(pdus("1.2.36", data_set("1.2.36")))
            assert status(connection) == 0
            assert requests_of(node) == 1
        assert stored(node, "1.2.35") == content


@pytest.mark.parametrize(
    "bad",
    [
        attacks.data(attacks.echo_command(), 3),
        attacks.data(b"\x00" * 10, 0, number=9),
        attacks.pdu(4, struct.pack(">LBB", 500, 1, 0) + b"\x00" * 10),
        attacks.pdu(4, b"\x00\x00"),
        attacks.pdu(0x42, b"\x00" * 4),
    ],
    ids=["command in data", "other context", "pdv too long", "no pdv", "unknown pdu"],
)
def test_nonsense_in_the_midst_of_an_instance_aborts(tmp_path: Path, bad: bytes) -> None:
    """The peer gets an A-ABORT, and nothing of the instance is left."""
    with fast(tmp_path) as node:
        with peer(node) as connection:
            connection.sendall(attacks.data(attacks.store_command("1.2.38"), 3))
            connection.sendall(attacks.data(data_set("1.2.38")[:1_000], 0) + bad)
            assert answer(connection)[0] == 7
        assert node.instances() == {}
        assert node.parts() == []


# Surprises


@pytest.mark.parametrize("size", [50_000, 3_000_000])
def test_an_abort_in_mid_instance_leaves_nothing(tmp_path: Path, size: int) -> None:
    """After A-ABORT the answered instance is there, and nothing of the other."""
    with fast(tmp_path) as node:
        with peer(node) as connection:
            connection.sendall(pdus("1.2.40", data_set("1.2.40")))
            assert status(connection) == 0
            unfinished = pdus("1.2.41", data_set("1.2.41", size), 60_000)
            connection.sendall(unfinished[: -60_000 + 1 if size > 60_000 else 100])
        with peer(node) as connection:
            connection.sendall(attacks.data(attacks.store_command("1.2.41"), 3))
            connection.sendall(attacks.data(data_set("1.2.41")[:1_000], 0))
            connection.sendall(attacks.pdu(7, b"\x00" * 4))
        assert set(node.instances()) == {"1.2.40"}
        assert node.parts() == []


def test_echo_and_cancel_between_instances(tmp_path: Path) -> None:
    """C-ECHO is answered and C-CANCEL passed over between instances, and each instance is stored."""
    cancel = attacks.command((0x0100, 0x0FFF), (0x0120, 1), (0x0800, 0x0101))
    with fast(tmp_path) as node, peer(node) as connection:
        for number in range(5):
            sop = f"1.2.50.{number}"
            connection.sendall(attacks.data(cancel, 3) + attacks.data(attacks.echo_command(number), 3))
            assert status(connection) == 0
            connection.sendall(pdus(sop, data_set(sop)))
            assert status(connection) == 0
            # Whoever asks for something else finds what was stored before.
            connection.sendall(attacks.data(attacks.echo_command(number), 3))
            assert status(connection) == 0
            assert sop in node.instances()


def test_a_release_is_answered_when_everything_is_indexed(tmp_path: Path) -> None:
    """The instant a peer has its A-RELEASE-RP, the index knows all that it sent."""
    with fast(tmp_path) as node, peer(node) as connection:
        for number in range(20):
            connection.sendall(pdus(f"1.2.51.{number}", data_set(f"1.2.51.{number}")))
            assert status(connection) == 0
        connection.sendall(attacks.pdu(5, b"\x00" * 4))
        assert answer(connection)[0] == 6
        assert len(node.instances()) == 20


def test_a_full_disk_in_the_midst_is_out_of_resources(tmp_path: Path) -> None:
    """Space that runs short while an object arrives is 0xA700, and the association goes on."""
    big = data_set("1.2.52", 140 << 20)
    with fast(tmp_path) as node, peer(node) as connection:
        connection.sendall(pdus("1.2.53", data_set("1.2.53")))
        assert status(connection) == 0
        sent = pdus("1.2.52", big, 100_000)
        connection.sendall(sent[:1_000_000])
        node.spool.reserve_bytes = 1 << 62
        connection.sendall(sent[1_000_000:])
        assert status(connection) == 0xA700
        node.spool.reserve_bytes = 0
        connection.sendall(pdus("1.2.54", data_set("1.2.54")))
        assert status(connection) == 0
        assert node.parts() == []


@pytest.mark.parametrize("size", [(1 << 20) - 200, (1 << 20) + 200, 5 << 20])
def test_around_the_size_of_a_page(tmp_path: Path, size: int) -> None:
    """An instance just below, just above and far above what the journal takes is stored as sent."""
    content = data_set("1.2.55", size)
    with fast(tmp_path) as node:
        with peer(node) as connection:
            connection.sendall(pdus("1.2.55", content, 100_000))
            assert status(connection) == 0
        assert stored(node, "1.2.55") == content
        assert node.spool.path("journal").is_dir()


def test_other_bytes_under_the_same_uid_are_a_version(tmp_path: Path) -> None:
    """The same again is stored once; other bytes beside it, in the order in which they came."""
    first, other = data_set("1.2.56", 500), data_set("1.2.56", 700)
    with fast(tmp_path) as node:
        with peer(node) as connection:
            for content in (first, other, first, other):
                connection.sendall(pdus("1.2.56", content))
                assert status(connection) == 0
        versions = node.index.all_versions(STUDY)
        assert [i.version for i in versions] == [1, 2]
        assert [data_set_bytes(node.spool.path(i.path)) for i in versions] == [first, other]


def test_pynetdicom_of_another_version_means_the_stock_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The fast path touches what is private, so another version is received with the stock way, and said."""
    monkeypatch.setattr(pynetdicom, "__version__", "3.1.0")
    caplog.set_level("WARNING", "daemon")
    with running(tmp_path) as node:
        assert node.receiver.reception is None
        with association(node) as assoc:
            assert store_raw(assoc, data_set("1.2.57"), "1.2.57") == 0
        assert stored(node, "1.2.57") == data_set("1.2.57")
    assert [r.__dict__["fields"]["outcome"] for r in caplog.records if r.message == "reception"] == ["stock"]


def test_both_ways_answer_alike() -> None:
    """Our C-STORE-RSP has the elements that pynetdicom reads from its own."""
    request = read_store_request(1, memoryview(attacks.store_command("1.2.3")))
    assert request is not None
    pdu = store_response(request, 0xA700, "odd")
    (fragment,) = fragments(memoryview(pdu), 6, len(pdu)) or ()
    ds = pydicom.filereader.read_dataset(BytesIO(pdu[fragment.first :]), True, True)
    assert fragment.control == 3 and struct.unpack_from(">L", pdu, 2)[0] == len(pdu) - 6
    assert (ds.CommandField, ds.MessageIDBeingRespondedTo, ds.Status) == (0x8001, 1, 0xA700)
    assert (ds.AffectedSOPInstanceUID, ds.ErrorComment) == ("1.2.3", "odd")
    assert ds[0x00000000].value == len(pdu) - fragment.first - 12


# Durability


def _record(sop: str, data: bytes) -> Record:
    return Record(STUDY, SERIES, sop, attacks.CT, attacks.EXPLICIT, "AE", len(data), checksum(data))


def _append(book: Journal, sop: str, size: int) -> Any:
    page, data = Page(), data_set(sop, size)
    page.append([memoryview(data)])
    return book.append(page, _record(sop, data))


def test_a_hole_in_the_journal_hides_nothing_behind_it(tmp_path: Path) -> None:
    """A write that the end of the machine tore is passed over; what was acknowledged behind it is read."""
    book = Journal(tmp_path / "journal")
    book.grow()
    for number in range(4):
        segment = _append(book, f"1.2.60.{number}", 9_000)
    with segment.path.open("r+b") as stream:
        stream.seek(BLOCK + 16_384 + BLOCK + 5_000)
        stream.write(b"torn")
    assert [record.sop_instance_uid for record, _ in read_segment(segment.path)] == [
        f"1.2.60.{n}" for n in (0, 2, 3)
    ]
    book.close()


def test_a_journal_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """A record that states a SHA-256 of its data set counts, and one whose data set is torn does not."""
    book = Journal(tmp_path / "journal")
    book.grow()
    page, data = Page(), data_set("1.2.65.0", 9_000)
    page.append([memoryview(data)])
    segment = book.append(page, _record("1.2.65.0", data))
    assert segment is not None
    fields = _record("1.2.65.0", data).fields()
    del fields["checksum"]
    found = []
    for stated in (data, b"torn"):
        fields |= {"generation": segment.generation, "sha256": hashlib.sha256(stated).hexdigest()}
        with segment.path.open("r+b") as stream:
            stream.seek(BLOCK)
            stream.write(header(RECORD, fields))
        found.append(list(read_segment(segment.path)))
    assert found == [[(_record("1.2.65.0", data), data)], []]
    book.close()


def test_a_segment_that_begins_anew_has_forgotten(tmp_path: Path) -> None:
    """Records of an earlier generation do not come back."""
    book = Journal(tmp_path / "journal")
    book.grow()
    segment = _append(book, "1.2.61", 9_000)
    assert len(list(read_segment(segment.path))) == 1
    book.release(segment)
    assert book.finished(idle=True) == [segment]
    book.reuse(segment)
    assert list(read_segment(segment.path)) == []
    assert _append(book, "1.2.62", 100) is segment
    assert [record.sop_instance_uid for record, _ in read_segment(segment.path)] == ["1.2.62"]
    book.close()


def test_a_full_journal_refuses_and_loses_nothing(tmp_path: Path) -> None:
    """Without room the journal says so, and the instance becomes a file at once."""
    book = Journal(tmp_path / "journal")
    book.grow()
    taken = 0
    while _append(book, f"1.2.63.{taken}", 900_000) is not None:
        taken += 1
    assert 34 <= taken <= 38
    book.close()
    (path,) = (tmp_path / "journal").iterdir()
    assert len(list(read_segment(path))) == taken


def test_what_a_journal_holds_is_taken_in_at_the_start(tmp_path: Path) -> None:
    """Acknowledged instances without a file or a row have both after a start, once."""
    with running(tmp_path) as node:
        spool = node.spool
    book = Journal(spool.root / "journal")
    book.grow()
    for number in range(5):
        _append(book, f"1.2.64.{number}", 5_000)
    book.close()
    for _ in range(2):
        with running(tmp_path) as node:
            assert sorted(node.instances()) == [f"1.2.64.{n}" for n in range(5)]
            assert all(stored(node, sop) == data_set(sop, 5_000) for sop in node.instances())
            assert len(list(node.spool.root.glob("journal/*"))) == 1
    assert list(spool.root.glob("journal/*")) == []


def test_the_journal_of_a_host_that_dies_is_taken_in_meanwhile(tmp_path: Path) -> None:
    """What another receiver of the spool had acknowledged when it died is indexed without a start of ours."""
    with running(tmp_path) as node:
        book = Journal(node.spool.root / "journal")
        book.grow()
        for number in range(5):
            _append(book, f"1.2.66.{number}", 5_000)
        assert left_behind(book.directory) == []
        book.close()
        wait_for(lambda: sorted(node.instances()) == [f"1.2.66.{n}" for n in range(5)], 30.0)
        wait_for(lambda: left_behind(book.directory) == [])
        assert all(stored(node, sop) == data_set(sop, 5_000) for sop in node.instances())


def test_what_cannot_be_settled_stays_in_the_journal(tmp_path: Path) -> None:
    """While the files' place cannot be written, what was acknowledged waits; then it is all there."""
    with running(tmp_path) as node:
        settler = Settler(Spool(tmp_path / "other"), node.index)
        settler.start()
        for number in range(256):
            (settler._spool.root / f"{number:02x}").write_bytes(b"")
        page, data = settler.page(), data_set("1.2.65")
        assert page is not None
        page.append([memoryview(data)])
        ticket = settler.submit(_record("1.2.65", data), page)
        assert ticket is not None and not settler.wait(ticket, 10.0)
        # Nobody is told Success by the journal while it cannot settle.
        assert settler.page() is None
        assert len(list(settler.journal.directory.iterdir())) >= 1
        for number in range(256):
            (settler._spool.root / f"{number:02x}").unlink()
        wait_for(lambda: settler.wait(ticket, 1.0))
        assert "1.2.65" in {i.sop_instance_uid for i in scanned(settler._spool)}
        settler.close()


def test_a_journal_does_not_take_what_others_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a segment does not fit above the reserve none is tried: instances are files at once."""
    monkeypatch.setattr(Spool, "free_bytes", lambda _spool: 30_000_000)
    with running(tmp_path) as node:
        folder = node.spool.root / "journal"
        with association(node) as assoc:
            assert [store_raw(assoc, data_set(f"1.2.67.{n}"), f"1.2.67.{n}") for n in range(3)] == [0, 0, 0]
            assert len(node.instances()) == 3
        assert list(folder.iterdir()) == []
        monkeypatch.setattr(Spool, "free_bytes", lambda _spool: 60_000_000)
        wait_for(lambda: len(list(folder.glob("*.segment"))) == 1)


_PROGRAM = """
import sys, pathlib
from daemon.index import Index
from daemon.receiver import Receiver
from daemon.spool import Spool
folder = pathlib.Path(sys.argv[1])
spool, index = Spool(folder / "spool"), Index(f"sqlite:///{folder}/index.db")
node = Receiver("ANOMALYD", "127.0.0.1", 0, spool, index, b"k", accept_unknown_peers=True)
node.start()
print(node.port, flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("moment", [1, 30, 150])
def test_every_success_survives_kill_9(tmp_path: Path, moment: int) -> None:
    """A process that is killed while instances stream in has, after a start, each one it acknowledged."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert process.stdin is not None and process.stdout is not None
    acknowledged: list[str] = []
    try:
        port = int(process.stdout.readline())
        with ThreadPoolExecutor(2) as pool:
            senders = [pool.submit(_send_until_dead, port, n, acknowledged) for n in range(2)]
            wait_for(lambda: len(acknowledged) >= moment, 60.0)
            process.send_signal(signal.SIGKILL)
            for sender in senders:
                sender.result(20.0)
    finally:
        process.kill()
        process.wait(20.0)
        process.stdin.close()
        process.stdout.close()
    with running(tmp_path) as node:
        instances = node.instances()
        assert len(acknowledged) >= moment
        assert set(acknowledged) <= set(instances)
        for sop in acknowledged:
            assert stored(node, sop) == data_set(sop, 40_000)


def _send_until_dead(port: int, number: int, acknowledged: list[str]) -> None:
    connection = attacks.associate(port)
    connection.settimeout(20.0)
    try:
        for count in range(10_000):
            sop = f"1.2.70.{number}.{count}"
            connection.sendall(pdus(sop, data_set(sop, 40_000), 16_000))
            if status(connection) == 0:
                acknowledged.append(sop)
    except (OSError, AssertionError):
        connection.close()


@pytest.mark.peer
def test_storescu_sees_every_instance_indexed_at_its_end(tmp_path: Path) -> None:
    """When DCMTK's sender has ended, nothing is on its way any more."""
    need("storescu")
    files = write_all(ct_series(), tmp_path / "ct")
    with fast(tmp_path) as node:
        for repeat in range(3):
            again = tmp_path / f"again{repeat}"
            shutil.copytree(tmp_path / "ct", again)
            assert storescu(node.port, "-xe", *map(str, again.iterdir())).returncode == 0
            assert len(node.instances()) == len(files)
        assert dcmtk("echoscu", "-aec", "ANOMALYD", "127.0.0.1", str(node.port)).returncode == 0
        assert node.parts() == []
