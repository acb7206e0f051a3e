"""The receiver, with DCMTK's clients and hostile peers: every Success is durable and byte-identical."""

import io
import logging
import os
import random
import re
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pydicom
import pytest
from factories import ct_series, write_all
from peers import dcmsend, dcmtk, need, storescp, storescu
from pydicom.filereader import _read_file_meta_info, read_preamble
from pynetdicom import AE, build_context, build_role

from daemon import commitment, dimse
from daemon.admission import Peer
from daemon.audit import Trail
from daemon.audit_message import Origin
from daemon.fellows import Fellow, Fellows
from daemon.index import Index
from daemon.limits import Limits
from daemon.receiver import Receiver
from daemon.requestor import AnswersOnly
from daemon.spool import Spool, StoredInstance

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
ZOO = Path(os.environ.get("DICOM_ZOO", Path(__file__).parents[2] / "shared" / "zoo"))


class Node:
    """A running receiver with its spool and index."""

    def __init__(self, folder: Path, reserve_bytes: int = 0, **options: Any) -> None:
        self.spool = Spool(folder / "spool", reserve_bytes)
        self.index = Index(f"sqlite:///{folder}/index.db")
        options = {"accept_unknown_peers": True, **options}
        bounds = {name: options.pop(name) for name in Limits.__slots__ if name in options}
        options["limits"] = Limits(**bounds)
        self.receiver = Receiver("ANOMALYD", "127.0.0.1", 0, self.spool, self.index, b"key", **options)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.receiver.port

    def instances(self) -> dict[str, Any]:
        """Return what the index holds, by SOP Instance UID."""
        studies = [study.study_instance_uid for study in self.index.list_studies()]
        return {i.sop_instance_uid: i for study in studies for i in self.index.instances_of(study)}

    def scan(self) -> list[StoredInstance]:
        """Return what lies in the spool, whatever the index holds."""
        return [found for study in self.spool.studies() for found in self.spool.scan(study)]

    def parts(self) -> list[Path]:
        """Return what lies unfinished in the spool."""
        return list((self.spool.root / "tmp").iterdir())


@contextmanager
def running(folder: Path, **options: Any) -> Iterator[Node]:
    """Run a receiver for a while."""
    node = Node(folder, **options)
    node.receiver.start()
    try:
        yield node
    finally:
        node.receiver.stop(5.0)
        node.index.close()


@contextmanager
def association(node: Node, syntaxes: list[str] | None = None, sop_class: str = CT) -> Iterator[Any]:
    """Open an association from a peer in this process."""
    ae = AE(ae_title="MODALITY")
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 10
    context = build_context(sop_class, syntaxes or [EXPLICIT])
    assoc = ae.associate("127.0.0.1", node.port, [context], ae_title="ANOMALYD")
    assert assoc.is_established
    assoc.dimse = AnswersOnly(assoc)
    connection = assoc.dul.socket.socket
    try:
        yield assoc
    finally:
        if assoc.is_established:
            assoc.release()
        # pynetdicom leaves a socket open whose peer went first.
        assoc.join(10.0)
        connection.close()


def wait_for(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def data_set_bytes(path: Path) -> bytes:
    """Return what follows the File Meta group of a file."""
    with path.open("rb") as stream:
        read_preamble(stream, force=False)
        _read_file_meta_info(stream)
        return stream.read()


def store_raw(assoc: Any, data: bytes, sop: str = "1.2.3.4", sop_class: str = CT) -> int:
    """Store bytes as they are and return the status."""
    from pynetdicom.dimse_primitives import C_STORE

    request = C_STORE()
    request.MessageID = 1
    request.AffectedSOPClassUID = sop_class
    request.AffectedSOPInstanceUID = sop
    request.Priority = 2
    request.DataSet = io.BytesIO(data)
    assoc._reactor_checkpoint.clear()
    while not assoc._is_paused:
        time.sleep(0.001)
    assoc.dimse.send_msg(request, assoc.accepted_contexts[0].context_id)
    _, answer = assoc.dimse.get_msg(block=True)
    assoc._reactor_checkpoint.set()
    return int(answer.Status)


def encoded(**changes: Any) -> bytes:
    """Encode a CT image with some attributes changed (None: removed)."""
    ds = ct_series()[0]
    for keyword, value in changes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    buffer = pydicom.filebase.DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    pydicom.filewriter.write_dataset(buffer, ds)
    return buffer.getvalue()


@pytest.mark.peer
def test_echo_is_answered(tmp_path: Path) -> None:
    """DCMTK's echoscu gets its answer."""
    with running(tmp_path) as node:
        answer = dcmtk("echoscu", "-aec", "ANOMALYD", "127.0.0.1", str(node.port))
        assert answer.returncode == 0, answer.stderr


@pytest.mark.peer
def test_a_wrong_called_ae_title_is_rejected_with_the_reason(tmp_path: Path) -> None:
    """The peer learns that it is the called AE title which is not recognised."""
    with running(tmp_path) as node:
        answer = dcmtk("echoscu", "-aec", "OTHER", "127.0.0.1", str(node.port))
        assert "Called AE Title Not Recognized" in answer.stderr


@pytest.mark.peer
@pytest.mark.parametrize(
    ("peer", "welcome"),
    [
        (Peer("ct", "MODALITY", "127.0.0.1"), True),
        (Peer("ct", "MODALITY", "localhost"), True),
        (Peer("ct", "ANOTHER", "127.0.0.1"), False),
        (Peer("ct", "MODALITY", "192.0.2.1"), False),
    ],
)
def test_only_listed_peers_are_let_in(tmp_path: Path, peer: Peer, welcome: bool) -> None:
    """A peer is let in when both its AE title and its address are on the list."""
    with running(tmp_path, peers=[peer], accept_unknown_peers=False) as node:
        answer = dcmtk("echoscu", "-aec", "ANOMALYD", "-aet", "MODALITY", "127.0.0.1", str(node.port))
        assert (answer.returncode == 0) == welcome
        assert welcome or "Calling AE Title Not Recognized" in answer.stderr


@pytest.mark.peer
def test_a_peer_that_may_only_echo_is_answered_not_authorised(tmp_path: Path) -> None:
    """A store by a peer without that right gets 0x0124 and leaves nothing."""
    peers = [Peer("ct", "MODALITY", "127.0.0.1", frozenset({"echo"}))]
    with running(tmp_path, peers=peers, accept_unknown_peers=False) as node:
        with association(node) as assoc:
            assert store_raw(assoc, encoded()) == 0x0124
        assert node.instances() == {}
    assert node.parts() == []


@pytest.mark.parametrize(
    ("may", "status"),
    [({"echo"}, 0x0000), ({"store", "commit"}, 0x0124), (set(), 0x0124)],
    ids=["echo alone", "all but echo", "nothing"],
)
def test_an_echo_needs_its_right(tmp_path: Path, may: set[str], status: int) -> None:
    """A listed peer is answered 0x0124 unless it may echo."""
    peers = [Peer("ct", "MODALITY", "127.0.0.1", frozenset(may))]
    with (
        running(tmp_path, peers=peers, accept_unknown_peers=False) as node,
        association(node, sop_class=dimse.VERIFICATION) as assoc,
    ):
        assert assoc.send_c_echo().Status == status


@pytest.mark.parametrize(("may", "status"), [({"commit"}, 0x0112), ({"store", "echo"}, 0x0124)])
def test_a_report_on_commitment_needs_its_right(tmp_path: Path, may: set[str], status: int) -> None:
    """A report is looked at when its peer may commit, and answered 0x0124 otherwise."""
    peers = [Peer("pacs", "MODALITY", "127.0.0.1", frozenset(may))]
    with running(tmp_path, peers=peers, accept_unknown_peers=False) as node:
        ae = AE(ae_title="MODALITY")
        ae.add_requested_context(commitment.SOP_CLASS)
        role = build_role(commitment.SOP_CLASS, scp_role=True)
        assoc = ae.associate("127.0.0.1", node.port, ae_title="ANOMALYD", ext_neg=[role])
        assert assoc.is_established
        connection = assoc.dul.socket.socket
        report = commitment.Report("1.2.3.99", (commitment.Reference(CT, "1.2.3.4"),))
        answer, _ = assoc.send_n_event_report(
            commitment.encode(report), report.event_type, commitment.SOP_CLASS, commitment.SOP_INSTANCE
        )
        assert answer.Status == status
        assoc.release()
        assoc.join(10.0)
        connection.close()


@pytest.mark.peer
def test_a_series_from_storescu_is_stored_byte_for_byte(tmp_path: Path) -> None:
    """What storescu sends is indexed and lies in the spool as it was sent."""
    files = write_all(ct_series(), tmp_path / "ct")
    with running(tmp_path) as node:
        answer = storescu(node.port, "-xe", *map(str, files))
        assert answer.returncode == 0, answer.stderr
        stored = node.instances()
        for file in files:
            ds = pydicom.dcmread(file, stop_before_pixels=True)
            assert data_set_bytes(node.spool.path(stored[ds.SOPInstanceUID].path)) == data_set_bytes(file)
        assert {instance.calling_ae for instance in stored.values()} == {"MODALITY"}


@pytest.mark.peer
@pytest.mark.shared
def test_the_zoo_is_stored_byte_for_byte_in_its_own_transfer_syntaxes(tmp_path: Path) -> None:
    """Every file that dcmsend can send ends stored as it was sent, or refused; the node stays up."""
    if not ZOO.is_dir():
        pytest.skip("DICOM_ZOO is not here")
    need("dcmsend")
    files = [str(file) for file in sorted(ZOO.glob("**/*.dcm"))]
    with storescp(tmp_path, "+xa", "+B", "+uf", ae_title="ANOMALYD") as reference:
        dcmsend(reference.port, *files)
        expected = [data_set_bytes(file) for file in reference.files()]
    with running(tmp_path) as node:
        answer = dcmsend(node.port, *files)
        assert "status SUCCESS" in answer.stdout + answer.stderr
        assert dcmtk("echoscu", "-aec", "ANOMALYD", "127.0.0.1", str(node.port)).returncode == 0
        stored = node.scan()
        assert node.index.rebuild(node.spool) == 0
        on_disk = {data_set_bytes(node.spool.path(i.path)) for i in stored}
    # dcmsend encodes anew what is not quite right; a bit-preserving receiver shows what it sends.
    assert len(expected) >= 75
    responses = re.findall(r"Received C-STORE Response \((.*)\)", answer.stdout + answer.stderr)
    refused = [response for response in responses if response != "Success"]
    assert len([data for data in expected if data not in on_disk]) == len(refused) <= 3
    assert len({instance.transfer_syntax_uid for instance in stored}) >= 12


@pytest.mark.shared
def test_every_zoo_file_sent_as_it_lies_is_stored_as_it_lies(tmp_path: Path) -> None:
    """Our own sender never touches a data set, so each stored one equals its file to the last byte."""
    if not ZOO.is_dir():
        pytest.skip("DICOM_ZOO is not here")
    from daemon.sender import Destination, send

    files = [file for file in sorted(ZOO.glob("**/*.dcm")) if _has_meta(file)]
    with running(tmp_path) as node:
        outcomes = send(files, Destination("self", "ANOMALYD", "127.0.0.1", node.port))
        stored = {data_set_bytes(node.spool.path(instance.path)) for instance in node.scan()}
        taken = [outcome for outcome in outcomes if outcome.ok]
        assert len(taken) >= 70
        for outcome in outcomes:
            assert (data_set_bytes(outcome.path) in stored) if outcome.ok else outcome.reason


def _has_meta(file: Path) -> bool:
    try:
        meta = pydicom.dcmread(file, stop_before_pixels=True).file_meta
    except Exception:
        return False
    return "TransferSyntaxUID" in meta and "MediaStorageSOPInstanceUID" in meta


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, 0x0000),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}, 0xA900),
        ({"SOPInstanceUID": "1.9"}, 0xA900),
        ({"StudyInstanceUID": None}, 0xA900),
    ],
)
def test_a_data_set_that_does_not_fit_is_refused(tmp_path: Path, changes: Any, status: int) -> None:
    """0xA900 when the data set contradicts its request; only what fits is stored."""
    with running(tmp_path) as node:
        with association(node) as assoc:
            sop = str(ct_series()[0].SOPInstanceUID)
            assert store_raw(assoc, encoded(**changes), sop) == status
        assert len(node.instances()) == (status == 0)
    assert node.parts() == []


@pytest.mark.parametrize("seed", range(8))
def test_garbage_is_refused_and_the_association_goes_on(tmp_path: Path, seed: int) -> None:
    """Random bytes get 0xC000 or 0xA900, and the next good instance on the same association Success."""
    noise = random.Random(seed).randbytes(5_000)
    with running(tmp_path) as node:
        with association(node) as assoc:
            assert store_raw(assoc, noise) in (0xC000, 0xA900)
            assert store_raw(assoc, encoded(), str(ct_series()[0].SOPInstanceUID)) == 0x0000
        assert len(node.instances()) == 1
    assert node.parts() == []


def test_an_unknown_sop_class_is_answered_and_the_association_goes_on(tmp_path: Path) -> None:
    """A request whose SOP class is none gets 0x0122, and the next instance Success."""
    with running(tmp_path) as node, association(node) as assoc:
        assert store_raw(assoc, encoded(), sop_class="1.2.3") == 0x0122
        assert store_raw(assoc, encoded(), str(ct_series()[0].SOPInstanceUID)) == 0x0000


def test_a_private_sop_class_is_stored_when_it_is_configured(tmp_path: Path) -> None:
    """A site's own storage SOP class is taken like any other."""
    private = "1.2.826.0.1.3680043.2.1143.99.1"
    with (
        running(tmp_path, private_sop_classes=[private]) as node,
        association(node, sop_class=private) as assoc,
    ):
        data = encoded(SOPClassUID=private)
        assert store_raw(assoc, data, str(ct_series()[0].SOPInstanceUID), private) == 0x0000


def test_a_disk_below_its_reserve_is_answered_out_of_resources(tmp_path: Path) -> None:
    """0xA700 when space is short, and the association goes on."""
    with running(tmp_path, reserve_bytes=1 << 62) as node, association(node) as assoc:
        assert store_raw(assoc, encoded()) == 0xA700
        assert store_raw(assoc, encoded()) == 0xA700


def test_an_instance_above_the_limit_is_answered_out_of_resources(tmp_path: Path) -> None:
    """An object larger than the setting is dropped while it arrives."""
    with running(tmp_path, maximum_instance_bytes=1_000) as node, association(node) as assoc:
        assert store_raw(assoc, encoded()) == 0xA700
    assert node.parts() == []


def test_a_handler_that_fails_never_leaks_its_own_status(tmp_path: Path) -> None:
    """An unexpected error is answered 0x0110, not pynetdicom's 0xC211."""

    def fail(_stored: Any) -> None:
        raise RuntimeError("CANARY^X")

    with running(tmp_path, on_stored=fail) as node, association(node) as assoc:
        assert store_raw(assoc, encoded(), str(ct_series()[0].SOPInstanceUID)) == 0x0110


def test_the_same_instance_again_is_success_once_stored(tmp_path: Path) -> None:
    """A repeat is answered with Success and stored once."""
    sop = str(ct_series()[0].SOPInstanceUID)
    with running(tmp_path) as node:
        with association(node) as assoc:
            assert [store_raw(assoc, encoded(), sop) for _ in range(3)] == [0, 0, 0]
        assert len(node.scan()) == 1


def test_an_aborted_association_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    """After a connection that breaks in the middle of an instance, the answered ones are all there."""
    with running(tmp_path) as node:
        with association(node) as assoc:
            assert store_raw(assoc, encoded(), str(ct_series()[0].SOPInstanceUID)) == 0
            # The head of a P-DATA PDU of 100,000 bytes, then the end of the connection.
            connection = assoc.dul.socket.socket
            connection.sendall(b"\x04\x00" + (100_000).to_bytes(4, "big") + b"\x00" * 50)
            connection.shutdown(socket.SHUT_RDWR)
            wait_for(lambda: node.receiver.associations == 0)
        assert len(node.instances()) == len(node.scan()) == 1
        assert node.parts() == []


def test_bytes_that_are_no_dicom_end_their_own_connection_only(tmp_path: Path) -> None:
    """HTTP, noise and silence on the port harm nobody else."""
    with running(tmp_path, acse_timeout_s=1.0) as node:
        idle = socket.create_connection(("127.0.0.1", node.port))
        for data in (
            b"GET / HTTP/1.1\r\n\r\n",
            random.Random(0).randbytes(4_000),
            b"\x01\x00\xff\xff\xff\xff",
        ):
            with socket.create_connection(("127.0.0.1", node.port)) as connection:
                connection.sendall(data)
        with association(node) as assoc:
            assert store_raw(assoc, encoded(), str(ct_series()[0].SOPInstanceUID)) == 0
        wait_for(lambda: node.receiver.associations == 0, 15.0)
        idle.close()


def test_associations_above_the_limit_are_rejected_for_now(tmp_path: Path) -> None:
    """The third association of two allowed is told to come again."""
    with running(tmp_path, maximum_associations=2) as node:
        with association(node), association(node):
            ae = AE(ae_title="MODALITY")
            third = ae.associate("127.0.0.1", node.port, [build_context(CT)], ae_title="ANOMALYD")
            assert third.is_rejected
            assert third.acceptor.primitive.result == 0x02
        wait_for(lambda: node.receiver.associations == 0)
        with association(node):
            pass


def test_a_release_makes_the_study_due_when_the_setting_says_so(tmp_path: Path) -> None:
    """With close_at_release the study is due at once, but not while another association sends it."""
    one, two = ct_series()[:2]
    with running(tmp_path, close_at_release=True) as node:
        with association(node) as outer:
            assert outer.send_c_store(one).Status == 0
            with association(node) as inner:
                assert inner.send_c_store(two).Status == 0
            wait_for(lambda: node.receiver.associations == 1)
            assert node.index.due_studies(time.time(), 60.0) == []
        wait_for(lambda: len(node.index.due_studies(time.time(), 60.0)) == 1)


@pytest.mark.parametrize("reception", ["fast", "stock"])
def test_a_release_without_the_database_is_told_and_audited(
    tmp_path: Path, reception: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """What was acknowledged has its line and audit message; the mark that failed is a line of the log."""
    caplog.set_level(logging.INFO, "daemon")
    audited: list[str] = []
    output = SimpleNamespace(write=audited.append, close=lambda: None)
    trail = Trail(Origin("ANOMALYD@host"), "receive", "ANOMALYD", "host", [output])
    with running(tmp_path, close_at_release=True, reception=reception, trail=trail) as node:
        with association(node) as assoc:
            assert store_raw(assoc, encoded(), str(ct_series()[0].SOPInstanceUID)) == 0
            wait_for(lambda: len(node.instances()) == 1)
            with closing(sqlite3.connect(tmp_path / "index.db")) as database:
                database.execute("ALTER TABLE pacs_studies RENAME TO away")
        wait_for(lambda: node.receiver.associations == 0)
    lines = {r.getMessage(): r.__dict__["fields"] for r in caplog.records if hasattr(r, "fields")}
    assert lines["association"]["outcome"] == "released" and lines["association"]["instances"] == 1
    assert "the database does not answer" in lines["release not marked"]["reason"]
    assert [message.count("110104") for message in audited] == [1]
    assert "Traceback" not in capfd.readouterr().err


def test_a_stop_lets_an_open_association_finish(tmp_path: Path) -> None:
    """During a stop nobody new is let in, and an instance on an open association is still taken."""
    node = Node(tmp_path)
    node.receiver.start()
    import threading

    with association(node) as assoc:
        stopper = threading.Thread(target=node.receiver.stop, args=(10.0,))
        port = node.port
        stopper.start()
        wait_for(lambda: not _listens(port))
        assert store_raw(assoc, encoded(), str(ct_series()[0].SOPInstanceUID)) == 0
    stopper.join(15.0)
    assert not stopper.is_alive()
    assert len(node.instances()) == 1
    node.index.close()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 0.2).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_a_large_object_is_never_whole_in_memory(tmp_path: Path) -> None:
    """A 256 MB object costs the receiving process less than 64 MB."""
    head = encoded()
    program = (
        "import sys, resource, pathlib\n"
        "from daemon.spool import Spool\nfrom daemon.index import Index\n"
        "from daemon.receiver import Receiver\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "spool, index = Spool(folder / 'spool'), Index(f'sqlite:///{folder}/index.db')\n"
        "node = Receiver('ANOMALYD', '127.0.0.1', 0, spool, index, b'k', accept_unknown_peers=True)\n"
        "node.start()\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(node.port, flush=True)\nsys.stdin.readline()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, flush=True)\nnode.stop(5.0)\n"
    )
    import sys

    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        port = int(process.stdout.readline())
        large = tmp_path / "large.dcm"
        ds = ct_series()[0]
        with large.open("wb") as stream:
            pydicom.dcmwrite(stream, ds, enforce_file_format=True)
            # A private element of 256 MB behind the pixels.
            stream.write(b"\xe1\x7f\x01\x10OB\x00\x00" + (256 << 20).to_bytes(4, "little"))
            stream.truncate(stream.tell() + (256 << 20))
        from daemon.sender import Destination, send

        assert len(head) < 1 << 20
        outcome = send([large], Destination("self", "ANOMALYD", "127.0.0.1", port, dimse_timeout_s=120.0))[0]
        assert outcome.ok, outcome.reason
        print(file=process.stdin, flush=True)
        assert int(process.stdout.readline()) < 64 * 1024
    finally:
        process.stdin.close()
        process.wait(20.0)
        process.stdout.close()


def test_a_port_probe_is_forgotten_at_once(tmp_path: Path) -> None:
    """A connection that is opened and closed without an association does not wait for a timeout."""
    with running(tmp_path) as node:
        socket.create_connection(("127.0.0.1", node.receiver.port)).close()
        wait_for(lambda: node.receiver.associations == 0)


def test_a_connection_without_a_thread_is_closed_and_counts_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """When no thread can be started the peer is hung up on, and the next is served as ever."""
    fellows = Fellows(1)

    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    def count(*_: Any, **__: Any) -> bool:
        fellows.took(0)
        return False

    node = Node(tmp_path, fellow=Fellow(fellows))
    node.receiver.start(count)
    try:
        with monkeypatch.context() as patched:
            patched.setattr("socketserver.ThreadingMixIn.process_request", refuse)
            with socket.create_connection(("127.0.0.1", node.port)) as peer:
                assert peer.recv(1) == b""
        wait_for(lambda: fellows.connections() == [0] and node.receiver.associations == 0)
        with association(node) as assoc:
            assert fellows.connections() == [1]
            assert store_raw(assoc, encoded(), str(ct_series()[0].SOPInstanceUID)) == 0
        wait_for(lambda: fellows.connections() == [0])
    finally:
        node.receiver.stop(5.0)
        node.index.close()
    assert "can't start new thread" in capfd.readouterr().err


def test_a_silent_connection_does_not_delay_the_stop(tmp_path: Path) -> None:
    """Stopping closes a connection that never asked for an association instead of waiting for it."""
    with running(tmp_path) as node, socket.create_connection(("127.0.0.1", node.receiver.port)):
        wait_for(lambda: node.receiver.associations == 1)
        started = time.monotonic()
        node.receiver.stop(30.0)
        assert time.monotonic() - started < 10
