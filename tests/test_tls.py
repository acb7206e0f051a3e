"""Encrypted associations, both ways, with DCMTK's TLS tools; mismatches say why; certificates end in time."""

import logging
import socket
import ssl
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from factories import ct_series, write_all
from peers import dcmtk, need, storescp
from test_receiver import Node, wait_for
from typer.testing import CliRunner

from daemon.cli import app
from daemon.errors import SettingsError
from daemon.sender import Destination, echo, send
from daemon.settings import Settings, load_settings
from daemon.tls import Credentials, client_context, days_left, expiring, server_context
from daemon.try_ca import make_test_ca

NAMES = ("localhost", "127.0.0.1")


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA with a server and a client certificate."""
    folder = tmp_path_factory.mktemp("tls") / "ca"
    make_test_ca(folder, NAMES)
    return folder


@pytest.fixture(scope="module")
def other_ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another CA, which nobody here trusts."""
    folder = tmp_path_factory.mktemp("tls") / "other"
    make_test_ca(folder, NAMES)
    return folder


def server(folder: Path) -> Credentials:
    """What a listener shows and trusts."""
    return Credentials(folder / "server.crt", folder / "server.key", folder / "ca.crt")


def client(folder: Path, trusted: Path | None = None, **changes: Any) -> Credentials:
    """What a caller shows and trusts."""
    ca = (trusted or folder) / "ca.crt"
    return Credentials(folder / "client.crt", folder / "client.key", ca, **changes)


def listening(tmp_path: Path, ca: Path, mutual: bool = True, **options: Any) -> Node:
    """A receiver with a TLS port."""
    node = Node(tmp_path, tls=server_context(server(ca), mutual), tls_port=0, **options)
    node.receiver.start()
    return node


def ours(node: Node, tls: Credentials | None) -> Destination:
    """The receiver's TLS port as a destination of ours."""
    return Destination("self", "ANOMALYD", "127.0.0.1", node.receiver.tls_port, tls=tls, acse_timeout_s=5.0)


def connection_reasons(caplog: pytest.LogCaptureFixture) -> str:
    """The reasons of the log's connection lines."""
    return " | ".join(
        str(record.__dict__["fields"].get("reason"))
        for record in caplog.records
        if record.getMessage() in ("connection", "limit")
    )


def scu(ca: Path, port: int, *options: str) -> Any:
    """DCMTK's echoscu over TLS with the CA's client certificate."""
    keys = ("+tls", str(ca / "client.key"), str(ca / "client.crt"))
    return dcmtk("echoscu", *keys, *options, "-aec", "ANOMALYD", "127.0.0.1", str(port))


@pytest.mark.peer
def test_storescu_stores_over_tls_with_mutual_certificates(tmp_path: Path, ca: Path) -> None:
    """DCMTK with the CA's client certificate stores; what it sent is in the spool."""
    files = write_all(ct_series(), tmp_path / "ct")
    node = listening(tmp_path, ca)
    try:
        keys = ("+tls", str(ca / "client.key"), str(ca / "client.crt"), "+cf", str(ca / "ca.crt"))
        port = str(node.receiver.tls_port)
        answer = dcmtk("storescu", *keys, "-aec", "ANOMALYD", "127.0.0.1", port, *map(str, files))
        assert answer.returncode == 0, answer.stderr
        assert len(node.instances()) == len(files)
    finally:
        node.receiver.stop(5.0)
        node.index.close()


@pytest.mark.peer
@pytest.mark.parametrize("profile", ["+py", "+px", "+pz"])
def test_each_bcp_195_profile_is_spoken(tmp_path: Path, ca: Path, profile: str) -> None:
    """DCMTK's BCP 195, non-downgrading and extended profiles all get an answer."""
    need("echoscu")
    node = listening(tmp_path, ca)
    try:
        answer = scu(ca, node.receiver.tls_port, "+cf", str(ca / "ca.crt"), profile)
        assert answer.returncode == 0, answer.stderr
    finally:
        node.receiver.stop(5.0)
        node.index.close()


@pytest.mark.peer
def test_a_foreign_client_certificate_is_refused_and_the_log_says_why(
    tmp_path: Path, ca: Path, other_ca: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A certificate of another CA, and none at all, get no association; the reason is in the log."""
    caplog.set_level(logging.INFO, "daemon")
    node = listening(tmp_path, ca)
    try:
        assert scu(other_ca, node.receiver.tls_port, "-ic").returncode != 0
        wait_for(lambda: "certificate is not accepted" in connection_reasons(caplog))
        port = str(node.receiver.tls_port)
        assert dcmtk("echoscu", "+tla", "-ic", "-aec", "ANOMALYD", "127.0.0.1", port).returncode != 0
        wait_for(lambda: "TLS: " in connection_reasons(caplog).split("|")[-1])
        assert scu(ca, node.receiver.tls_port, "-ic").returncode == 0
    finally:
        node.receiver.stop(5.0)
        node.index.close()


@pytest.mark.peer
def test_we_store_to_storescp_over_tls(tmp_path: Path, ca: Path) -> None:
    """Our sender shows its certificate to DCMTK's storescp, which demands one, and stores."""
    files = write_all(ct_series(), tmp_path / "ct")
    options = ("+tls", str(ca / "server.key"), str(ca / "server.crt"), "+cf", str(ca / "ca.crt"))
    with storescp(tmp_path, *options) as peer:
        outcomes = send(files, peer.destination(tls=client(ca)))
        assert [outcome.reason for outcome in outcomes if not outcome.ok] == []
        assert len(peer.files()) == len(files)


@pytest.mark.parametrize(
    ("who", "said"),
    [
        ("stranger", "certificate"),
        ("untrusting", "certificate is not accepted"),
        ("misnamed", "certificate is not accepted"),
    ],
)
def test_our_own_call_says_why_tls_failed(
    tmp_path: Path, ca: Path, other_ca: Path, who: str, said: str
) -> None:
    """A certificate that the other side, or we, do not accept is named as the reason."""
    credentials = {
        "stranger": client(other_ca, trusted=ca),
        "untrusting": client(ca, trusted=other_ca),
        "misnamed": client(ca, host_name="pacs.example.org"),
    }[who]
    node = listening(tmp_path, ca)
    try:
        result = echo(ours(node, credentials))
        assert not result.ok
        assert said in result.reason
    finally:
        node.receiver.stop(5.0)
        node.index.close()


def test_plain_on_the_tls_port_and_tls_on_the_plain_port(
    tmp_path: Path, ca: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Either mistake ends at once, and both sides' logs say which one it is."""
    caplog.set_level(logging.INFO, "daemon")
    node = listening(tmp_path, ca)
    try:
        assert not echo(ours(node, None)).ok
        wait_for(lambda: "speaks no TLS" in connection_reasons(caplog))
        here = Destination("self", "ANOMALYD", "127.0.0.1", node.port, tls=client(ca), acse_timeout_s=5.0)
        assert "speaks no TLS" in echo(here).reason
        wait_for(lambda: "TLS on a port without TLS" in connection_reasons(caplog))
    finally:
        node.receiver.stop(5.0)
        node.index.close()


def test_a_silent_handshake_holds_up_nobody(tmp_path: Path, ca: Path) -> None:
    """Connections that never start their handshake leave the next peer's echo quick, and end in time."""
    node = listening(tmp_path, ca, acse_timeout_s=3.0)
    silent = [socket.create_connection(("127.0.0.1", node.receiver.tls_port)) for _ in range(20)]
    try:
        started = time.monotonic()
        assert echo(ours(node, client(ca))).ok
        assert time.monotonic() - started < 2.0
        wait_for(lambda: node.receiver.associations == 0, 10.0)
    finally:
        for connection in silent:
            connection.close()
        node.receiver.stop(5.0)
        node.index.close()


def test_nothing_older_than_tls_1_2_and_no_weak_suite(ca: Path) -> None:
    """Both contexts start at TLS 1.2, and every suite has forward secrecy and authenticated encryption."""
    for context in (server_context(server(ca), True), client_context(client(ca))):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        for suite in context.get_ciphers():
            assert suite["aead"], suite["name"]
            assert suite["protocol"] == "TLSv1.3" or suite["name"].startswith("ECDHE-")


def test_only_the_encrypted_port_when_plain_is_off(tmp_path: Path, ca: Path) -> None:
    """With plain = false nobody listens without encryption."""
    node = listening(tmp_path, ca, plain=False)
    try:
        assert echo(ours(node, client(ca))).ok
        assert node.port == 0
    finally:
        node.receiver.stop(5.0)
        node.index.close()


def test_the_test_ca_is_private_and_never_overwritten(tmp_path: Path) -> None:
    """Six files for the owner alone; a second run into the same folder changes nothing."""
    folder = tmp_path / "new"
    done = CliRunner().invoke(app, ["tls", "make-test-ca", str(folder), "--host", "pacs.example.org"])
    assert done.exit_code == 0, done.output
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [
        f"{name}.{suffix}" for name in ("ca", "client", "server") for suffix in ("crt", "key")
    ]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    before = [file.read_bytes() for file in files]
    again = CliRunner().invoke(app, ["tls", "make-test-ca", str(folder)])
    assert again.exit_code == 1
    assert [file.read_bytes() for file in files] == before


def _settings(folder: Path, tmp_path: Path) -> Settings:
    path = tmp_path / "settings.toml"
    keys = f'certificate = "{folder}/server.crt"\nkey = "{folder}/server.key"\nca = "{folder}/ca.crt"'
    path.write_text(f"[tls]\n{keys}\n")
    return load_settings(path)


def test_a_certificate_that_ends_soon_is_told_a_month_ahead(tmp_path: Path, ca: Path) -> None:
    """Certificates of 20 days are listed with their key and day; those of a year are not."""
    assert expiring(_settings(ca, tmp_path)) == []
    make_test_ca(tmp_path / "short", NAMES, days=20)
    found = expiring(_settings(tmp_path / "short", tmp_path))
    assert [item.key for item in found] == ["tls.ca", "tls.certificate"] or len(found) == 2
    assert all(19 <= item.days <= 20 and "ends on" in str(item) for item in found)


@pytest.mark.parametrize(("syslog", "keys"), [("audit.example.org:6514", ["audit.syslog_ca"]), ("", [])])
def test_the_ca_of_the_audit_repository_is_watched(tmp_path: Path, syslog: str, keys: list[str]) -> None:
    """Its end is told like that of any other certificate, where a repository is written to."""
    make_test_ca(tmp_path / "short", NAMES, days=20)
    path = tmp_path / "settings.toml"
    path.write_text(f'[audit]\nsyslog = "{syslog}"\nsyslog_ca = "short/ca.crt"\n')
    assert list(days_left(load_settings(path))) == keys
    assert [item.key for item in expiring(load_settings(path))] == keys


def test_the_check_shows_what_ends_soon(tmp_path: Path) -> None:
    """``daemon check`` has a line for a certificate that ends within a month."""
    from daemon.check import _certificates

    make_test_ca(tmp_path / "short", NAMES, days=20)
    items = _certificates(_settings(tmp_path / "short", tmp_path))
    assert {item.level for item in items} == {"warning"}
    assert any("server.crt" in item.result for item in items)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"certificate": Path("missing.crt")}, "tls.certificate: cannot read"),
        ({"key": Path("CLIENT")}, "mismatch"),
        ({"ca": Path("KEY")}, "tls.ca"),
        ({"ca": None}, "tls.ca"),
    ],
)
def test_a_wrong_file_is_named(ca: Path, change: dict[str, Path | None], said: str) -> None:
    """A missing file, a key of another certificate and a CA file without certificates name their key."""
    swaps = {Path("CLIENT"): ca / "client.key", Path("KEY"): ca / "ca.key"}
    fields = {"certificate": ca / "server.crt", "key": ca / "server.key", "ca": ca / "ca.crt"}
    fields |= {name: swaps.get(value, value) if value else None for name, value in change.items()}
    with pytest.raises(SettingsError, match=said):
        server_context(Credentials(**fields), True)
