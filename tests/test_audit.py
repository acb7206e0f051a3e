"""The audit trail: messages of PS3.15 A.5, to files of the owner's alone and to syslog over TLS."""

import base64
import contextlib
import io
import logging
import os
import re
import resource
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from audit_schema import check
from factories import ct_series, write
from test_receiver import CT, EXPLICIT, association, encoded, running, store_raw, wait_for

from daemon.admission import Peer
from daemon.audit import Trail, Transfer, open_trail
from daemon.audit_file import TrailFile
from daemon.audit_message import Origin
from daemon.deliveries import Courier
from daemon.index import Index
from daemon.records import ResultRecord
from daemon.sections import DeliverySettings
from daemon.sender import Destination
from daemon.settings import Settings, load_settings
from daemon.spool import Spool
from daemon.syslog import Repository, Syslog
from daemon.tls import Credentials, client_context, server_context
from daemon.try_ca import make_test_ca


class Kept:
    """An output that keeps messages for a test to read."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def write(self, message: str) -> None:
        """Keep one."""
        self.messages.append(message)

    def close(self) -> None:
        """Nothing to close."""


def trail(*outputs: Kept | TrailFile | Syslog, clock: Callable[[], float] = time.monotonic) -> Trail:
    """A trail of a receiving process."""
    return Trail(Origin("ANOMALYD@host", "site"), "receive", "ANOMALYD", "host", outputs, clock)


def transfer(folder: Path) -> Transfer:
    """Two slices of a study, with a patient."""
    ds = ct_series()[0]
    ds.PatientID, ds.PatientName = "4711", "Müller^Zoë"
    ds.SpecificCharacterSet = "ISO_IR 192"
    return Transfer(ds.StudyInstanceUID, {CT: 2}, write(ds, folder / "one.dcm"))


def event_of(root: ET.Element) -> tuple[str, str, str]:
    """Codes of event and type, and the outcome."""
    event = root.find("EventIdentification")
    assert event is not None
    kind = event.find("EventTypeCode")
    code = event.find("EventID")
    assert code is not None
    return (
        code.attrib["csd-code"],
        kind.attrib["csd-code"] if kind is not None else "",
        event.attrib["EventOutcomeIndicator"],
    )


CASES: dict[str, tuple[Callable[[Trail, Transfer], None], tuple[str, str, str]]] = {
    "start": (lambda t, _: t.started(), ("110100", "110120", "0")),
    "stop": (lambda t, _: t.stopped(), ("110100", "110121", "0")),
    "received": (lambda t, x: t.received("CT1", "192.0.2.1", [x]), ("110104", "", "0")),
    "sent": (lambda t, x: t.sent("pacs", "PACS", "pacs.example", [x]), ("110104", "", "0")),
    "not sent": (lambda t, x: t.sent("pacs", "PACS", "192.0.2.2", [x], "A700"), ("110104", "", "8")),
    "accessed": (lambda t, x: t.accessed("ann", "192.0.2.3", x), ("110103", "", "0")),
    "signed in": (lambda t, _: t.signed_in("ann", "192.0.2.3", ok=True), ("110114", "110122", "0")),
    "wrong password": (lambda t, _: t.signed_in("ann", "192.0.2.3", ok=False), ("110114", "110122", "4")),
    "signed out": (lambda t, _: t.signed_out("ann", "192.0.2.3"), ("110114", "110123", "0")),
    "refused": (lambda t, _: t.refused("EVIL", "192.0.2.4", "not listed"), ("110113", "110126", "8")),
    "no name": (lambda t, _: t.refused("", "192.0.2.4", "TLS: no certificate"), ("110113", "110126", "8")),
    "blank name": (lambda t, _: t.signed_in("", "", ok=False), ("110114", "110122", "4")),
}


@pytest.mark.parametrize("name", CASES)
def test_every_message_follows_the_schema(tmp_path: Path, name: str) -> None:
    """Each message has the elements, attributes, order and values of PS3.15 A.5.1, and its event's codes."""
    kept = Kept()
    act, expected = CASES[name]
    act(trail(kept), transfer(tmp_path))
    assert [event_of(check(message)) for message in kept.messages] == [expected]


def test_a_transfer_names_nodes_study_and_patient(tmp_path: Path) -> None:
    """Table A.5.3.7-1: source and destination with their roles, study with its SOP classes, patient."""
    kept, moved = Kept(), transfer(tmp_path)
    trail(kept).received("CT1", "192.0.2.1", [moved])
    root = check(kept.messages[0])
    roles = [
        (p.attrib["UserIsRequestor"], p.attrib["AlternativeUserID"], r.attrib["csd-code"])
        for p in root.iter("ActiveParticipant")
        for r in p.iter("RoleIDCode")
    ]
    assert roles == [("true", "AETITLES=CT1", "110153"), ("false", "AETITLES=ANOMALYD", "110152")]
    study, patient = root.findall("ParticipantObjectIdentification")
    assert study.attrib["ParticipantObjectID"] == moved.study_instance_uid
    sop_class = study.find(".//SOPClass")
    assert sop_class is not None and sop_class.attrib == {"UID": CT, "NumberOfInstances": "2"}
    assert patient.attrib["ParticipantObjectID"] == "4711"
    assert patient.findtext("ParticipantObjectName") == "Müller^Zoë"


def test_an_alert_says_why_in_base64(tmp_path: Path) -> None:
    """The alert's description is a detail of the node that it is about (table A.5.3.10-1)."""
    del tmp_path
    kept = Kept()
    trail(kept).refused("EVIL", "192.0.2.4", "calling AE title not recognised")
    detail = check(kept.messages[0]).find(".//ParticipantObjectDetail")
    assert detail is not None and detail.attrib["type"] == "Alert Description"
    assert base64.b64decode(detail.attrib["value"]).decode() == "calling AE title not recognised"


def test_a_peer_cannot_write_lines_or_break_the_xml(tmp_path: Path) -> None:
    """Line breaks, control characters and markup in an AE title stay within their attribute."""
    path = tmp_path / "trail.log"
    writer = TrailFile(path, 1_000_000, 2)
    trail(writer).refused('A\n<x/>"\x00\x1b&', "192.0.2.4", "no\nreason\x0b")
    writer.close()
    (line,) = path.read_text().splitlines()
    assert check(line).find(".//ActiveParticipant[@UserID='A?<x/>\"??&']") is not None


def test_alerts_of_a_flood_are_counted_and_not_written(tmp_path: Path) -> None:
    """A stranger cannot wash the trail away: 100 alerts a minute are written, the next says how many more."""
    del tmp_path
    kept, now = Kept(), [0.0]
    flooded = trail(kept, clock=lambda: now[0])
    for _ in range(5_000):
        flooded.refused("EVIL", "192.0.2.4", "not listed")
    assert len(kept.messages) == 100
    now[0] = 61.0
    flooded.refused("EVIL", "192.0.2.4", "not listed")
    detail = check(kept.messages[-1]).find(".//ParticipantObjectDetail")
    assert detail is not None and b"4900 further alerts" in base64.b64decode(detail.attrib["value"])


def test_the_file_is_the_owners_alone_and_bounded(tmp_path: Path) -> None:
    """Mode 0600 in a folder of mode 0700; a full file is renamed, and only so many stay."""
    path = tmp_path / "audit" / "receive.log"
    writer = TrailFile(path, 1_000, 3)
    for number in range(100):
        writer.write(f"<m>{number:0100}</m>")
    writer.close()
    found = sorted(file.name for file in path.parent.iterdir())
    assert found == ["receive.log", "receive.log.1", "receive.log.2", "receive.log.3"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert all(file.stat().st_size <= 1_000 for file in path.parent.iterdir())
    assert path.read_text().endswith(f"<m>{99:0100}</m>\n")


def test_a_trail_goes_on_in_its_file_after_a_restart(tmp_path: Path) -> None:
    """Opening appends: what an earlier process wrote stays."""
    settings = Settings.model_validate({"service": {"data_dir": tmp_path}})
    for _ in range(2):
        opened = open_trail(settings, "send")
        opened.started()
        opened.stopped()
    lines = (tmp_path / "audit" / "send.log").read_text().splitlines()
    assert [event_of(check(line))[1] for line in lines] == ["110120", "110121"] * 2


# Syslog


class Server:
    """A syslog server over TLS (RFC 5425) that keeps what it gets, frame by frame."""

    def __init__(self, context: ssl.SSLContext, port: int = 0) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = int(self._listener.getsockname()[1])
        self._context = context
        self.messages: list[bytes] = []
        self.peers: list[str] = []
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self._listener.accept()
                plain.settimeout(10.0)
                try:
                    secure = self._context.wrap_socket(plain, server_side=True)
                except OSError:
                    plain.close()
                    continue
                self._connections.append(secure)
                self.peers.append(str(secure.getpeercert()))
                with contextlib.suppress(OSError), secure, secure.makefile("rb") as stream:
                    self._read(stream)

    def _read(self, stream: Any) -> None:
        while True:
            length = b""
            while not length.endswith(b" "):
                byte = stream.read(1)
                if not byte:
                    return
                length += byte
            self.messages.append(stream.read(int(length)))

    def close(self) -> None:
        """End it and its connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(15.0)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``daemon tls make-test-ca`` writes."""
    folder = tmp_path_factory.mktemp("tls")
    make_test_ca(folder)
    return folder


@pytest.fixture
def server(certificates: Path) -> Iterator[Server]:
    """A server that wants our certificate."""
    found = Server(_server_side(certificates))
    yield found
    found.close()


def _server_side(folder: Path) -> ssl.SSLContext:
    own = Credentials(folder / "server.crt", folder / "server.key", folder / "ca.crt")
    return server_context(own, require_client_certificate=True)


def _ours(folder: Path) -> ssl.SSLContext:
    return client_context(Credentials(folder / "client.crt", folder / "client.key", folder / "ca.crt"))


def test_messages_arrive_over_mutual_tls_in_their_frames(certificates: Path, server: Server) -> None:
    """RFC 5425 frames hold RFC 5424 messages with facility 10, DICOM's message id and the XML after a BOM."""
    output = Syslog(Repository("127.0.0.1", server.port, _ours(certificates)), "host")
    reporting = trail(output)
    reporting.started()
    reporting.signed_in("Zoë", "192.0.2.3", ok=True)
    output.close()
    wait_for(lambda: len(server.messages) == 2)
    for message in server.messages:
        header, xml = message.split(b"\xef\xbb\xbf")
        pattern = rb"<85>1 \d{4}-\d\d-\d\dT[\d:.]+Z host pacs-anomaly-daemon \d+ DICOM\+RFC3881 - "
        assert re.fullmatch(pattern, header)
        check(xml.decode())
    assert "Zoë" in server.messages[1].decode()
    assert "client" in server.peers[0]


def test_messages_wait_for_a_repository_that_is_away(
    certificates: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Messages of an outage arrive when it is over, and the log says both."""
    caplog.set_level(logging.INFO, "daemon")
    output = Syslog(Repository("127.0.0.1", server.port, _ours(certificates)), "host")
    output.write("<one/>")
    wait_for(lambda: len(server.messages) == 1)
    server.close()
    output.write("<two/>")
    wait_for(lambda: any(r.getMessage() == "audit repository" for r in caplog.records))
    again = Server(_server_side(certificates), server.port)
    try:
        wait_for(lambda: any(b"<two/>" in message for message in again.messages))
        output.close()
    finally:
        again.close()
    outcomes = [
        r.__dict__["fields"]["outcome"] for r in caplog.records if r.getMessage() == "audit repository"
    ]
    assert outcomes == ["unreachable", "reachable again"]


def test_nothing_is_sent_to_a_stranger(
    certificates: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A repository whose certificate another CA signed gets no message; the log counts what is unsent."""
    make_test_ca(tmp_path / "other")
    stranger = Server(_server_side(tmp_path / "other"))
    output = Syslog(Repository("127.0.0.1", stranger.port, _ours(certificates)), "host")
    try:
        output.write("<secret/>")
        wait_for(lambda: any(r.getMessage() == "audit repository" for r in caplog.records))
        output.close(0.1)
    finally:
        stranger.close()
    assert stranger.messages == []
    fields = [r.__dict__["fields"] for r in caplog.records if r.getMessage() == "audit messages not sent"]
    assert [entry["count"] for entry in fields] == [1]


def test_messages_arrive_however_many_descriptors_are_open(certificates: Path, server: Server) -> None:
    """One message after another is sent over a connection whose descriptor is above 1023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4_096), hard))
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(1_100)]
    output = Syslog(Repository("127.0.0.1", server.port, _ours(certificates)), "host")
    try:
        output.write("<one/>")
        wait_for(lambda: len(server.messages) == 1)
        output.write("<two/>")
        wait_for(lambda: len(server.messages) == 2)
        assert len(server.peers) == 1
    finally:
        output.close(0.1)
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_unexpected_error_does_not_end_the_sending(
    certificates: Path, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error that is none of the network's is logged, and the message goes out at the next attempt."""
    caplog.set_level(logging.INFO, "daemon")
    errors = [ValueError("of a library")]
    connect = socket.create_connection

    def failing(*arguments: Any) -> socket.socket:
        if errors:
            raise errors.pop()
        return connect(*arguments)

    monkeypatch.setattr("daemon.syslog.socket.create_connection", failing)
    output = Syslog(Repository("127.0.0.1", server.port, _ours(certificates)), "host")
    output.write("<one/>")
    wait_for(lambda: len(server.messages) == 1)
    output.close()
    fields = [r.__dict__["fields"] for r in caplog.records if r.getMessage() == "audit repository"]
    assert [entry["outcome"] for entry in fields] == ["unreachable", "reachable again"]
    assert fields[0]["reason"] == "ValueError"


def test_the_settings_name_file_and_repository(certificates: Path, tmp_path: Path, server: Server) -> None:
    """[audit] with [tls] is all that a site writes."""
    path = tmp_path / "settings.toml"
    path.write_text(
        f'[tls]\ncertificate = "{certificates}/client.crt"\nkey = "{certificates}/client.key"\n'
        f'ca = "{certificates}/ca.crt"\n[audit]\nsyslog = "127.0.0.1:{server.port}"\nsource_id = "node 7"\n'
    )
    opened = open_trail(load_settings(path), "web")
    opened.started()
    opened.stopped()
    wait_for(lambda: len(server.messages) == 2)
    lines = (tmp_path / "var" / "audit" / "web.log").read_text().splitlines()
    assert [message.split(b"\xef\xbb\xbf")[1].decode() for message in server.messages] == lines
    assert 'AuditSourceID="node 7"' in lines[0]


# The daemon's own events


def test_reception_is_audited_by_study(tmp_path: Path) -> None:
    """An association that stored leaves one message per study; one that only verified leaves none."""
    kept = Kept()
    with running(tmp_path, trail=trail(kept)) as node:
        with association(node) as assoc:
            assert store_raw(assoc, encoded(), str(ct_series()[0].SOPInstanceUID)) == 0
        with association(node):
            pass
        wait_for(lambda: node.receiver.associations == 0)
    (root,) = [check(message) for message in kept.messages]
    assert event_of(root) == ("110104", "", "0")
    study = root.find("ParticipantObjectIdentification")
    assert study is not None
    assert study.attrib["ParticipantObjectID"] == ct_series()[0].StudyInstanceUID


def test_refused_nodes_are_audited(tmp_path: Path, certificates: Path) -> None:
    """An AE title that is not listed, and a peer that TLS does not let in, are security alerts."""
    kept = Kept()
    tls = server_context(
        Credentials(certificates / "server.crt", certificates / "server.key", certificates / "ca.crt"), True
    )
    peers = [Peer("ct", "CT1", "127.0.0.1")]
    options = {"accept_unknown_peers": False, "peers": peers, "tls": tls, "tls_port": 0}
    with running(tmp_path, trail=trail(kept), **options) as node:
        with pytest.raises(AssertionError), association(node):
            pass
        wait_for(lambda: len(kept.messages) == 1)
        with socket.create_connection(("127.0.0.1", node.receiver.tls_port)) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            wait_for(lambda: len(kept.messages) == 2)
    details = [check(message).find(".//ParticipantObjectDetail") for message in kept.messages]
    reasons = [base64.b64decode(d.attrib["value"]).decode() for d in details if d is not None]
    assert reasons[0] == "calling AE title not recognised"
    assert reasons[1].startswith("TLS: ")
    assert {event_of(check(message)) for message in kept.messages} == {("110113", "110126", "8")}


def _one_result(index: Index, spool: Spool) -> None:
    ds = ct_series()[0]
    content = io.BytesIO()
    ds.save_as(content, enforce_file_format=True)
    ds.StudyInstanceUID = "1.2.3"
    part = spool.begin(CT, str(ds.SOPInstanceUID), EXPLICIT, "CT1")
    part.write(encoded(StudyInstanceUID="1.2.3"))
    index.add_instance(part.commit("1.2.3", "1.2.5"), spool)
    path = spool.write_result("1.2.3", 1, "sr.dcm", content.getvalue())
    result = ResultRecord("1.2.3", 1, "SR", CT, str(ds.SOPInstanceUID), "1.2.5", path, "0" * 64)
    index.add_results([result])
    index.plan_deliveries("1.2.3", 1, ["pacs"], time.time() + 60.0)


def test_a_delivery_is_audited_with_its_outcome(tmp_path: Path) -> None:
    """A delivery that nobody takes is a failed transfer, with the reason and the number of objects."""
    kept, spool = Kept(), Spool(tmp_path / "spool", 0)
    index = Index(f"sqlite:///{tmp_path}/index.db")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        target = Destination("pacs", "PACS", "127.0.0.1", closed.getsockname()[1], connect_timeout_s=2.0)
        courier = Courier(index, spool, [target], DeliverySettings(quick_attempts=1), b"k", trail=trail(kept))
        _one_result(index, spool)
        assert courier.deliver("1.2.3", 1, "pacs") == 1
    index.close()
    (root,) = [check(message) for message in kept.messages]
    assert event_of(root) == ("110104", "", "8")
    assert "no connection" in str(root.findtext(".//EventOutcomeDescription"))
    sop_class = root.find(".//SOPClass")
    assert sop_class is not None and sop_class.attrib["NumberOfInstances"] == "1"
