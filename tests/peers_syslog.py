"""A real syslog server of the test's own: rsyslog over TLS, or a skip that says why there is none."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# What each line of its file holds, parsed by it (RFC 5424 6), with one space between.
FIELDS = ("syslogfacility", "syslogseverity", "hostname", "app-name", "procid", "msgid", "msg")


@dataclass(frozen=True)
class SyslogPeer:
    """A running rsyslog."""

    port: int
    output: Path

    def lines(self) -> list[dict[str, str]]:
        """What it has written."""
        if not self.output.is_file():
            return []
        text = self.output.read_text("utf-8")
        return [
            dict(zip(FIELDS, line.split(" ", len(FIELDS) - 1), strict=True)) for line in text.splitlines()
        ]


@contextlib.contextmanager
def rsyslog(folder: Path, certificates: Path, driver: str) -> Iterator[SyslogPeer]:
    """Run rsyslog on a free port; it wants a certificate of the CA.

    Parameters
    ----------
    folder
        For its files.
    certificates
        What ``daemon tls make-test-ca`` wrote.
    driver
        ``gtls`` (GnuTLS) or ``ossl`` (OpenSSL).
    """
    program = shutil.which("rsyslogd") or shutil.which("rsyslogd", path="/usr/sbin")
    if program is None:
        pytest.skip("rsyslog is not installed")
    if not list(Path("/usr/lib").glob(f"*/rsyslog/lmnsd_{driver}.so")):
        pytest.skip(f"rsyslog's TLS driver {driver} is not installed")
    configuration, port_file, output = (folder / name for name in ("rsyslog.conf", "port", "messages"))
    columns = ' constant(value=" ") '.join(f'property(name="{name}")' for name in FIELDS)
    configuration.write_text(
        f'global(workDirectory="{folder}" maxMessageSize="256k" defaultNetstreamDriver="{driver}"\n'
        f'  defaultNetstreamDriverCAFile="{certificates}/ca.crt"\n'
        f'  defaultNetstreamDriverCertFile="{certificates}/server.crt"\n'
        f'  defaultNetstreamDriverKeyFile="{certificates}/server.key")\n'
        f'module(load="imtcp" streamDriver.name="{driver}" streamDriver.mode="1"\n'
        '  streamDriver.authMode="x509/certvalid")\n'
        f'template(name="line" type="list") {{ {columns} constant(value="\\n") }}\n'
        'ruleset(name="audit") {\n'
        f'  action(type="omfile" file="{output}" template="line")\n}}\n'
        f'input(type="imtcp" address="127.0.0.1" port="0" listenPortFileName="{port_file}" ruleset="audit")\n'
    )
    log = folder / "rsyslog.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [program, "-n", "-i", "NONE", "-f", str(configuration)], stdout=file, stderr=file
        )
    try:
        yield SyslogPeer(_port(port_file, process, log), output)
    finally:
        process.terminate()
        process.wait(20)


def _port(port_file: Path, process: "subprocess.Popen[bytes]", log: Path) -> int:
    deadline = time.monotonic() + 20.0
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):
            return int(port_file.read_text())
        time.sleep(0.05)
    pytest.fail(f"rsyslog does not listen: {log.read_text()}")
