"""A real PostgreSQL of our own: a new cluster in a temporary folder, on a free port."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import free_port


@dataclass(frozen=True, slots=True)
class Postgres:
    """A running PostgreSQL server."""

    binaries: Path
    cluster: Path
    host: str
    port: int

    @property
    def url(self) -> str:
        """The setting ``service.database`` for it."""
        return f"postgresql://postgres@{self.host}:{self.port}/daemon"

    def start(self, prefix: Sequence[str] = ()) -> None:
        """Start it; ``prefix`` may put it into a network namespace."""
        options = f"-p {self.port} -k {self.cluster} -c listen_addresses='*' -c max_connections=200"
        self._control("start", "-l", str(self.cluster / "log"), "-o", options, prefix=prefix)

    def stop(self) -> None:
        """Stop it as hard as a crash of the server would."""
        self._control("stop", "-m", "immediate")

    def _control(self, *arguments: str, prefix: Sequence[str] = ()) -> None:
        command = [str(self.binaries / "pg_ctl"), "-D", str(self.cluster), "-w", "-s", *arguments]
        subprocess.run(
            [*prefix, *_as_postgres(), *command], check=True, timeout=60, cwd="/", stdout=subprocess.DEVNULL
        )


def why_not() -> str:
    """Return why no PostgreSQL can be started here, or an empty text."""
    if _find_binaries() is None:
        return "the PostgreSQL server is not installed"
    if os.getuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            return "PostgreSQL does not run as root and there is no user postgres"
    return ""


@contextlib.contextmanager
def postgres(
    prefix: Sequence[str] = (), host: str = "127.0.0.1", tables: Path | None = None
) -> Iterator[Postgres]:
    """Run a PostgreSQL with an empty database ``daemon`` that trusts whoever connects.

    Parameters
    ----------
    prefix
        A command in front of the server, such as ``ip netns exec NAME``.
    host
        The address at which it is reached.
    tables
        An empty folder of the server's user, in which the database's tables lie; by default beside the rest.
    """
    binaries = _find_binaries()
    if binaries is None:
        raise SystemExit(f"benchmark: {why_not()}")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    if os.getuid() == 0:
        owner = pwd.getpwnam("postgres")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    peer = Postgres(binaries, folder / "cluster", host, free_port())
    made = [str(binaries / "initdb"), "-D", str(peer.cluster), "-A", "trust", "-U", "postgres"]
    try:
        subprocess.run([*_as_postgres(), *made], check=True, cwd="/", stdout=subprocess.DEVNULL)
        with (peer.cluster / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 0.0.0.0/0 trust\n")
        peer.start(prefix)
        target = ["-h", str(peer.cluster), "-p", str(peer.port), "-U", "postgres"]
        options = []
        if tables is not None:
            place = f"CREATE TABLESPACE other LOCATION '{tables}'"
            psql = [str(binaries / "psql"), *target, "-q", "-c", place]
            subprocess.run([*_as_postgres(), *psql], check=True, cwd="/")
            options = ["-D", "other"]
        create = [str(binaries / "createdb"), *target, *options, "daemon"]
        subprocess.run([*_as_postgres(), *create], check=True, cwd="/")
        yield peer
    finally:
        with contextlib.suppress(subprocess.SubprocessError):
            peer.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _as_postgres() -> list[str]:
    """The server refuses to run as root: start it as the user that Debian's package made."""
    return ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []


def _find_binaries() -> Path | None:
    found = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(found, key=lambda path: int(path.parent.parent.name), default=None)
    return newest.parent if newest else None
