"""The audit trail at a syslog server that others wrote: rsyslog, over mutual TLS (RFC 5425)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from audit_schema import check
from factories import ct_series
from peers_syslog import SyslogPeer, rsyslog
from test_audit import event_of
from test_receiver import association, encoded, running, store_raw, wait_for

from daemon.audit import Trail, Transfer, open_trail
from daemon.settings import load_settings
from daemon.try_ca import make_test_ca

pytestmark = pytest.mark.peer


@pytest.fixture(params=["gtls", "ossl"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SyslogPeer]:
    """The server with each of its TLS drivers, and certificates in ``tls``."""
    make_test_ca(tmp_path / "tls")
    with rsyslog(tmp_path, tmp_path / "tls", request.param) as found:
        yield found


def _trail(folder: Path, server: SyslogPeer) -> Trail:
    tls = folder / "tls"
    path = folder / "settings.toml"
    path.write_text(
        f'[service]\ndata_dir = "data"\n[tls]\ncertificate = "{tls}/client.crt"\nkey = "{tls}/client.key"\n'
        f'ca = "{tls}/ca.crt"\n[engine]\nnode = "node-7"\n[audit]\nsyslog = "127.0.0.1:{server.port}"\n'
    )
    return open_trail(load_settings(path), "receive")


def test_rsyslog_has_what_the_file_has(tmp_path: Path, server: SyslogPeer) -> None:
    """Start, an instance that came, a long message of somebody called Zoë and the stop arrive whole."""
    trail = _trail(tmp_path, server)
    trail.started()
    with running(tmp_path, trail=trail) as node:
        with association(node) as assoc:
            data = encoded(PatientName="Müller^Zoë", SpecificCharacterSet="ISO_IR 192")
            assert store_raw(assoc, data, str(ct_series()[0].SOPInstanceUID)) == 0
        wait_for(lambda: node.receiver.associations == 0)
        (instance,) = node.scan()
        many = {f"1.2.840.10008.5.1.4.1.1.{number}": number for number in range(1, 1_000)}
        trail.accessed("Zoë", "192.0.2.3", Transfer("1.2.3", many, node.spool.path(instance.path)))
    trail.stopped()
    wait_for(lambda: len(server.lines()) == 4, 20.0)
    lines = server.lines()
    expected = (tmp_path / "data" / "audit" / "receive.log").read_text("utf-8").splitlines()
    assert [line["msg"].removeprefix("\ufeff") for line in lines] == expected
    assert max(map(len, expected)) > 50_000
    assert 'UserID="Zoë"' in lines[2]["msg"]
    codes = [event_of(check(text))[0] for text in expected]
    assert codes == ["110100", "110104", "110103", "110100"]
    for line in lines:
        assert (line["syslogfacility"], line["syslogseverity"]) == ("10", "5")
        assert (line["hostname"], line["app-name"]) == ("node-7", "pacs-anomaly-daemon")
        assert line["msgid"] == "DICOM+RFC3881"
