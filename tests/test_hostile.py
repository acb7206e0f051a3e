"""Hostile peers: each attack ends at a limit that the log names, and a good peer stores all the while."""

import logging
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from factories import ct_series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_receiver import EXPLICIT, ZOO, Node, association, encoded, running, store_raw, wait_for

from daemon.admission import Peer
from daemon.errors import SpoolError
from daemon.part10 import file_meta, read_file_header
from daemon.sender import Destination, echo
from daemon.study import assemble
from daemon.tls import Credentials, server_context
from daemon.try_ca import make_test_ca

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import attacks

SOP = str(ct_series()[0].SOPInstanceUID)


@contextmanager
def attacked(folder: Path, **options: Any) -> Iterator[Node]:
    """Run a receiver; at the end a good peer must still be able to store, and nothing is left over."""
    with running(folder, **options) as node:
        yield node
        with association(node) as assoc:
            assert store_raw(assoc, encoded(), SOP) == 0
        wait_for(lambda: node.receiver.associations == 0, 15.0)
        assert node.parts() == []


def limits_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The keys that the log names."""
    return [str(r.__dict__["fields"]["key"]) for r in caplog.records if r.getMessage() == "limit"]


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "daemon")


def ended(connection: socket.socket, timeout_s: float = 30.0) -> bool:
    """Whether the other side closes the connection in time."""
    connection.settimeout(timeout_s)
    try:
        while connection.recv(65_536):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    finally:
        connection.close()
    return True


@pytest.mark.parametrize("kind", attacks.GARBAGE)
def test_garbage_instead_of_a_request_ends_at_once(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is no association request closes its connection without waiting for a timeout."""
    with attacked(tmp_path) as node:
        connection = socket.create_connection(("127.0.0.1", node.port))
        connection.sendall(attacks.GARBAGE[kind])
        assert ended(connection, 5.0)
    assert any(record.getMessage() == "connection" for record in caplog.records)


def test_a_request_of_four_gigabytes_is_refused_at_its_head(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The length alone ends it, and the log names receiver.maximum_request_bytes."""
    with attacked(tmp_path) as node:
        connection = socket.create_connection(("127.0.0.1", node.port))
        connection.sendall(attacks.pdu(0x01, b"\x00\x01", 0xFFFFFFFF))
        assert ended(connection, 5.0)
    assert limits_in(caplog) == ["receiver.maximum_request_bytes"]


def test_a_slow_request_ends_at_the_acse_timeout(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One byte every now and then does not stretch the time for the whole request."""
    whole = attacks.request([attacks.context(1, attacks.VERIFICATION, [attacks.IMPLICIT])])
    with attacked(tmp_path, acse_timeout_s=1.0) as node:
        connection = socket.create_connection(("127.0.0.1", node.port))
        started = time.monotonic()
        try:
            for byte in whole:
                connection.sendall(bytes([byte]))
                time.sleep(0.05)
        except OSError:
            pass
        assert ended(connection)
        assert time.monotonic() - started < 4.0
    assert limits_in(caplog) == ["receiver.acse_timeout_s"]


@pytest.mark.parametrize("kind", [0x04, 0x05, 0x07])
def test_a_pdu_of_four_gigabytes_ends_the_association(
    tmp_path: Path, kind: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A claimed length above the maximum ends it before a byte of it is kept."""
    with attacked(tmp_path) as node:
        connection = attacks.associate(node.port)
        connection.sendall(attacks.pdu(kind, b"\x00" * 64, 0xFFFFFFFF))
        assert ended(connection, 5.0)
    assert limits_in(caplog) == ["receiver.maximum_pdu_bytes"]


def test_a_pdu_that_does_not_end_is_given_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Trickling bytes keep no PDU alive beyond receiver.pdu_timeout_s."""
    with attacked(tmp_path, pdu_timeout_s=0.5) as node:
        connection = attacks.associate(node.port)
        connection.sendall(attacks.pdu(0x04, b"", 10_000))
        started = time.monotonic()
        try:
            for _ in range(100):
                connection.sendall(b"\x00")
                time.sleep(0.05)
        except OSError:
            pass
        assert ended(connection)
        assert time.monotonic() - started < 4.0
    assert limits_in(caplog) == ["receiver.pdu_timeout_s"]


def test_a_message_in_tiny_slow_pieces_is_given_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whole PDUs of one byte each do not keep a message below receiver.minimum_bytes_per_s alive."""
    with attacked(tmp_path, dimse_timeout_s=0.5) as node:
        connection = attacks.associate(node.port)
        connection.sendall(attacks.data(attacks.store_command(), 3))
        try:
            for _ in range(100):
                connection.sendall(attacks.data(b"\x08", 0))
                time.sleep(0.05)
        except OSError:
            pass
        assert ended(connection)
    assert limits_in(caplog) == []
    lines = [r.__dict__["fields"]["outcome"] for r in caplog.records if r.getMessage() == "association"]
    assert any("receiver.minimum_bytes_per_s" in line for line in lines)


@pytest.mark.parametrize(
    ("flood", "said"),
    [
        ([attacks.data(attacks.echo_command(n), 3) for n in range(20_000)], "maximum_pending_messages"),
        ([attacks.data(b"\x00" * 8_000, 1)] * 10, "a command of over"),
        ([attacks.data(attacks.store_command(), 3) + attacks.data(b"\x08\x00", 2)] * 500, "maximum_pending"),
    ],
    ids=["echoes", "endless command", "stores"],
)
def test_messages_without_waiting_for_answers_are_bounded(
    tmp_path: Path, flood: list[bytes], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A peer that sends ahead of our answers, or a command without end, is aborted."""
    with attacked(tmp_path) as node:
        abstract = attacks.VERIFICATION if said == "maximum_pending_messages" else attacks.CT
        connection = attacks.associate(node.port, abstract=abstract)
        # Answers that find no room hold the node up, however quick it is.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        with suppress(OSError):
            connection.sendall(b"".join(flood))
        assert ended(connection)
    lines = [r.__dict__["fields"]["outcome"] for r in caplog.records if r.getMessage() == "association"]
    assert any(said in line for line in lines)


# In a process of its own: pynetdicom's requestor cannot use descriptors beyond 1,023. Each connection
# sends what it is told, waits for as many bytes of an answer, and then holds on to what it has.
CROWD = (
    "import socket, sys\n"
    "port, count, wanted = map(int, sys.argv[1:4])\n"
    "said = bytes.fromhex(sys.argv[4])\n"
    "held = []\n"
    "for _ in range(count):\n"
    "    held.append(socket.create_connection(('127.0.0.1', port)))\n"
    "    held[-1].sendall(said)\n"
    "    if wanted:\n"
    "        held[-1].recv(wanted, socket.MSG_WAITALL)\n"
    "print(len(held), flush=True)\n"
    "sys.stdin.read()\n"
)


@contextmanager
def crowd(port: int, count: int, said: bytes = b"", answer_bytes: int = 0) -> Iterator[None]:
    """Hold this many connections, each of which has had its answer and never hangs up."""
    arguments = [str(port), str(count), str(answer_bytes), said.hex()]
    with subprocess.Popen(
        [sys.executable, "-c", CROWD, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline().strip() == str(count).encode()
        yield
        process.communicate()


def held() -> tuple[int, int]:
    """How many threads and descriptors this process has."""
    return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))


def holds_at_most(before: tuple[int, int], more: int) -> bool:
    """Whether threads and descriptors have both grown by no more than this."""
    return all(now - was <= more for was, now in zip(before, held(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "TLS"])
def test_thousands_of_half_open_connections_give_way(
    tmp_path: Path, encrypted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """1,500 silent connections hold threads and descriptors for the limit alone; a good peer is served."""
    folder = tmp_path / "tls"
    make_test_ca(folder)
    own = Credentials(folder / "server.crt", folder / "server.key", folder / "ca.crt")
    theirs = Credentials(folder / "client.crt", folder / "client.key", folder / "ca.crt")
    options = {"tls": server_context(own, require_client_certificate=True), "tls_port": 0}
    with running(tmp_path, maximum_connections=50, **options) as node:
        port = node.receiver.tls_port if encrypted else node.port
        good = Destination("self", "ANOMALYD", "127.0.0.1", port, tls=theirs if encrypted else None)
        before = held()
        with crowd(port, 1_500):
            # Beside the 50: files of spool and index that were opened meanwhile.
            wait_for(lambda: holds_at_most(before, 50 + 20))
            assert len(node.receiver.waiting) == 50
            assert echo(good).ok
            assert holds_at_most(before, 50 + 20)
        assert "receiver.maximum_connections" in limits_in(caplog)


def test_rejected_peers_that_do_not_hang_up_give_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers who keep their connections after the rejection hold threads for the limit alone."""
    monkeypatch.setattr("daemon.doorstep._LINGER_S", 30.0)
    request = attacks.request([attacks.context(1, attacks.VERIFICATION, [attacks.IMPLICIT])])
    with running(tmp_path, maximum_connections=20, accept_unknown_peers=False) as node:
        before = held()
        with crowd(node.port, 200, request, 10):
            wait_for(lambda: holds_at_most(before, 20 + 20))


def test_a_flood_of_presentation_contexts_is_refused(tmp_path: Path) -> None:
    """More contexts than there are numbers end the connection; 128 with many syntaxes are answered."""
    syntaxes = [f"1.2.826.{number}" for number in range(120)]
    with attacked(tmp_path) as node:
        connection = socket.create_connection(("127.0.0.1", node.port))
        flood = [attacks.context(1, attacks.CT, [EXPLICIT])] * 3_000
        connection.sendall(attacks.request(flood))
        assert ended(connection, 5.0)
        most = [attacks.context(2 * n + 1, attacks.CT, [*syntaxes, EXPLICIT]) for n in range(128)]
        with socket.create_connection(("127.0.0.1", node.port)) as connection:
            started = time.monotonic()
            connection.settimeout(10.0)
            connection.sendall(attacks.request(most))
            assert connection.recv(1) == b"\x02"
            assert time.monotonic() - started < 3.0


def test_an_echo_on_a_storage_context_needs_its_right_too(tmp_path: Path) -> None:
    """A peer that may only store gets 0x0124 to a C-ECHO, on whatever context it sends it."""
    peers = [Peer("ct", "HOSTILE", "127.0.0.1", frozenset({"store"}))]
    with running(tmp_path, peers=peers, accept_unknown_peers=False) as node:
        with attacks.associate(node.port) as connection:
            connection.sendall(attacks.data(attacks.echo_command(), 3))
            answer = connection.recv(4_096)
        assert struct.pack("<HHLH", 0x0000, 0x0900, 2, 0x0124) in answer


@pytest.mark.parametrize(
    "uid",
    ["../../../../tmp/x", "/etc/passwd", "..", "a/b", "1.2\x00/../3", "1.2.3/../../4", "%2e%2e", "~root"],
)
def test_a_uid_never_leaves_the_spool(tmp_path: Path, uid: str) -> None:
    """Path characters in any UID name a file within the spool, or nothing."""
    with running(tmp_path) as node:
        for sop, study, series in ((uid, "1.2.4", "1.2.5"), ("1.2.3", uid, "1.2.5"), ("1.2.3", "1.2.4", uid)):
            connection = attacks.associate(node.port)
            connection.sendall(attacks.data(attacks.store_command(sop), 3))
            connection.sendall(attacks.data(attacks.data_set(sop, study, series), 2))
            connection.settimeout(10.0)
            connection.recv(4_096)
            connection.close()
        wait_for(lambda: node.receiver.associations == 0)
        inside = node.spool.root.resolve()
        found = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix == ".dcm"]
        assert all(path.resolve().is_relative_to(inside) for path in found)
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("depth", [50, 1_000, 20_000])
def test_nested_sequences_are_stored_or_refused(tmp_path: Path, depth: int) -> None:
    """Sequences thousands deep before the study's UID get an answer in time; the next instance Success."""
    bomb = attacks.data_set(SOP, before=attacks.nested(depth))
    with attacked(tmp_path) as node, association(node) as assoc:
        started = time.monotonic()
        assert store_raw(assoc, bomb, SOP) in (0x0000, 0xC000)
        assert time.monotonic() - started < 5.0


def test_a_deflate_bomb_costs_no_memory(tmp_path: Path) -> None:
    """256 MB of zeros in 260 KB, before and behind the UIDs: answered, not scored, and no memory taken."""
    zeros = attacks.element(0x0009, 0x1000, b"OB", bytes(256 << 20))
    before = attacks.deflated(attacks.data_set(SOP, before=zeros))
    behind = attacks.deflated(attacks.data_set(SOP) + zeros)
    del zeros
    was = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with running(tmp_path) as node:
        with association(node, [attacks.DEFLATED]) as assoc:
            assert store_raw(assoc, before, SOP) == 0xC000
            assert store_raw(assoc, behind, SOP) == 0x0000
        paths = [node.spool.path(instance.path) for instance in node.instances().values()]
        study = assemble("1.2.4", paths, max_frame_pixels=1 << 20, max_study_frames=100)
        assert study.groups == () and len(study.refusals) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - was < 600 << 10


def _zoo() -> list[Path]:
    return (
        sorted(path for path in ZOO.glob("**/*.dcm") if path.stat().st_size < 300_000) if ZOO.is_dir() else []
    )


@pytest.mark.shared
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(pick=st.integers(0, 10_000), seed=st.integers(0, 2**32), count=st.integers(1, 30))
def test_mutated_zoo_files_break_neither_parser_nor_assembly(
    tmp_path: Path, pick: int, seed: int, count: int
) -> None:
    """A file with some bytes changed, cut or doubled is read, or refused with our own error."""
    zoo = _zoo()
    if not zoo:
        pytest.skip("DICOM_ZOO is not here")
    from benchmarks.fuzz import mutated

    path = tmp_path / "mutated.dcm"
    path.write_bytes(mutated(zoo[pick % len(zoo)].read_bytes(), seed, count))
    try:
        header, _ = read_file_header(path)
        study = header.study_instance_uid
    except SpoolError:
        study = "1.2"
    assemble(study, [path], max_frame_pixels=1 << 22, max_study_frames=500)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    noise=st.binary(max_size=2_000), syntax=st.sampled_from([EXPLICIT, "1.2.840.10008.1.2", attacks.DEFLATED])
)
def test_noise_as_a_data_set_is_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, syntax: str
) -> None:
    """Any bytes as a data set are parsed as far as their UIDs, or refused with SpoolError."""
    path = tmp_path_factory.getbasetemp() / "noise.dcm"
    path.write_bytes(file_meta("1.2", "1.3", syntax, "AE") + noise)
    try:
        read_file_header(path)
    except SpoolError as error:
        assert "cannot be parsed" in str(error)
