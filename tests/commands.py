"""``daemon`` as processes that begin where its libraries are loaded: torch alone takes seconds of each.

They are forked from a server process (multiprocessing's "forkserver") that has loaded what the
commands use. Folder, environment, output, signals and exit code are those of a process of its own.
What depends on how the command starts is run as ``python -m daemon`` by the tests of those things.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

Done = subprocess.CompletedProcess[str]
HERE = Path.cwd()

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "daemon.cli",
        "daemon.service",
        "daemon.analyst",
        "daemon.web.server",
        "training.train",
        "training.evaluate",
        "training.report",
    ]
)


class Command:
    """A running command.

    Parameters
    ----------
    arguments
        Behind ``daemon``.
    folder
        It starts there.
    environment
        In place of ours.
    given
        On its standard input.
    """

    def __init__(
        self, arguments: tuple[str, ...], folder: Path, environment: dict[str, str], given: str = ""
    ) -> None:
        self.args = ("daemon", *arguments)
        self._output = tempfile.TemporaryDirectory()
        self._files = [Path(self._output.name, name) for name in ("in", "out", "err")]
        self._files[0].write_text(given)
        self._process = SERVER.Process(target=_main, args=(self.args, folder, environment, *self._files))
        self._process.start()

    @property
    def pid(self) -> int:
        """Of its process."""
        assert self._process.pid is not None
        return self._process.pid

    def errors(self) -> str:
        """What it has written to its standard error so far."""
        return self._files[2].read_text()

    def poll(self) -> int | None:
        """Exit code, or None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """As of Popen."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def finish(self, timeout_s: float = 120.0) -> Done:
        """Wait for the end; one that does not come is a failure."""
        self._process.join(timeout_s)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            self._process.join()
        out, err = (path.read_text() for path in self._files[1:])
        self._output.cleanup()
        assert code is not None, f"{self.args} did not end within {timeout_s:g} s: {out}{err}"
        return Done(self.args, code, out, err)


def start(*arguments: object, cwd: Path = HERE, given: str = "", **environment: str) -> Command:
    """Start a command in a folder."""
    return Command(tuple(map(str, arguments)), cwd, {**os.environ, **environment}, given)


def run(*arguments: object, cwd: Path = HERE, given: str = "", **environment: str) -> Done:
    """Run a command in a folder to its end."""
    return start(*arguments, cwd=cwd, given=given, **environment).finish()


def become(arguments: tuple[str, ...], folder: Path, environment: dict[str, str]) -> None:
    """Give the forked process what a process of its own would begin with."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv[:] = arguments


def _main(arguments: tuple[str, ...], folder: Path, environment: dict[str, str], *files: Path) -> None:
    """What becomes of the forked process."""
    from daemon.cli import main

    become(arguments, folder, environment)
    for descriptor, path in enumerate(files):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), descriptor)
    # multiprocessing has put another in its place.
    sys.stdin = os.fdopen(0)
    main()
