"""``daemon run`` whose processes begin where their libraries are loaded: a start takes a tenth of its CPU.

Supervisor and roles are the real ones, each a process of its own that is started, signalled, restarted
and killed as ever; in place of a new interpreter and its imports each is forked from one that has
them. ``python -m daemon run`` itself is started by the tests of the supervisor (stop, restart, wrong
settings, starts that fail), README's commands, the demo, an upgrade and systemd; and by the long fault runs.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from commands import SERVER, become


class WarmDaemon:
    """The supervisor's process, as a Popen has it.

    Parameters
    ----------
    settings_path
        Its settings.
    log
        Its output and that of its roles is written behind this file's end.
    environment
        Beside ours.
    """

    def __init__(self, settings_path: Path, log: Path, **environment: str) -> None:
        self._words = ("daemon", "run", "--settings", str(settings_path))
        given = (self._words, Path.cwd(), {**os.environ, **environment}, log)
        self._process = SERVER.Process(target=_supervise, args=given)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """Exit code, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._words, timeout or 0.0)
        return self._process.exitcode

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()


def roles(supervisor: int, log: Path) -> dict[str, int]:
    """Process id of each role that a supervisor has, warm or not, by what it wrote to its log."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children")
    try:
        alive = {int(pid) for pid in children.read_text().split()}
    except OSError:
        return {}
    started = re.findall(r'event="?role started"? role=(\w+) pid=(\d+)', log.read_text())
    return {role: int(pid) for role, pid in started if int(pid) in alive}


class _Role:
    """In the supervisor: a role that is forked from it, as a Popen has it."""

    def __init__(self, command: list[str], start_new_session: bool, env: dict[str, str]) -> None:
        assert start_new_session
        self._command, self._code = command, None
        self.pid = os.fork()
        if self.pid == 0:
            _end_with(lambda: _play(tuple(command[2:]), env))

    def poll(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def wait(self, timeout: float = 1e9) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self._command, timeout)
            time.sleep(0.02)
        return code

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def _supervise(words: tuple[str, ...], folder: Path, environment: dict[str, str], log: Path) -> None:
    """What becomes of the process that is forked for the supervisor."""
    from daemon import cli, supervisor

    become(words, folder, environment)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    supervisor.subprocess = SimpleNamespace(  # type: ignore[attr-defined]
        Popen=_Role, TimeoutExpired=subprocess.TimeoutExpired
    )
    cli.main()


def _play(words: tuple[str, ...], environment: dict[str, str]) -> None:
    """What becomes of a role's process: nothing of its parent's stays open or in force."""
    from daemon import cli

    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    for logger in (logging.getLogger(), logging.getLogger("daemon")):
        logger.handlers.clear()
    become(words, Path.cwd(), environment)
    cli.main()


def _end_with(work: Callable[[], None]) -> None:
    """Do the work of a forked process and end it, as an interpreter does."""
    code = 1
    try:
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
