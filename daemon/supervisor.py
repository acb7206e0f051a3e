"""The process that ``daemon run`` is: it starts one process per role, restarts them, stops them in order.

Reception, scoring and delivery are processes of their own: a study in work must not slow a
C-STORE down (Python runs one thread at a time), a model that dies must not take reception along.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from daemon.log import event
from daemon.notify import Listener, Pulse, notify

ROLES = ("receive", "score", "send", "web")  # also the order of stopping: stop accepting first
# The main job goes on without these, whatever is wrong with their settings.
_OPTIONAL = frozenset({"web"})
PARENT_VARIABLE = "PACS_ANOMALY_SUPERVISOR"  # process id of the supervisor, for its roles
PATIENCE_S = 5.0  # how long after its time a role is killed
_RESTART_DELAYS_S = (0.2, 1.0, 5.0, 15.0, 60.0)
_STEADY_S = 60.0


@dataclass(slots=True)
class _Child:
    role: str
    process: subprocess.Popen[bytes]
    started: float
    failures: int = 0
    restart_at: float | None = None
    # Whether it once ran with these settings, or with those before.
    has_run: bool = False


class Supervisor:
    """Runs ``python -m daemon run --role ROLE`` for each role.

    Parameters
    ----------
    settings_path
        Passed on; None for defaults.
    stop_timeout_s
        How long each role may take to finish its work when asked to stop.
    roles
        In the order of stopping.
    """

    def __init__(
        self, settings_path: Path | None, stop_timeout_s: float, roles: Sequence[str] = ROLES
    ) -> None:
        self._roles = roles
        self._settings_path = settings_path
        self._stop_timeout_s = stop_timeout_s
        self._stopping = False
        # Where the receiving role says that it is ready; systemd hears of it from us.
        self._listener = Listener()

    def run(self) -> int:
        """Start every role and keep it alive until SIGTERM or SIGINT.

        Returns
        -------
        int
            0 after an orderly stop; 1 if a role could not start at all (settings, port in use).
        """
        previous = {s: signal.signal(s, self._on_signal) for s in (signal.SIGTERM, signal.SIGINT)}
        children = [self._start(role) for role in self._roles]
        pulse, ready = Pulse(), False
        try:
            while not self._stopping:
                pulse.beat()
                # Always listened to: a full queue would hold the role up.
                if self._listener.heard("READY=1") and not ready:
                    ready = True
                    notify("READY=1")
                for child in children:
                    if self._tend(child):
                        return 1
                time.sleep(0.1)
            return 0
        finally:
            notify("STOPPING=1")
            for child in children:
                self._stop(child)
            self._listener.close()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _start(self, role: str) -> _Child:
        command = [sys.executable, "-m", "daemon", "run", "--role", role]
        if self._settings_path is not None:
            command += ["--settings", str(self._settings_path)]
        # Its own session: Ctrl-C at a terminal reaches us alone, and we stop the roles in order.
        own = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
        own.pop("NOTIFY_SOCKET", None)
        if role == self._roles[0]:
            own["NOTIFY_SOCKET"] = self._listener.address
        process = subprocess.Popen(command, start_new_session=True, env=own)
        event("role started", role=role, pid=process.pid)
        return _Child(role, process, time.monotonic())

    def _tend(self, child: _Child) -> bool:
        """Restart a dead role after a growing delay; True if it can never start."""
        now = time.monotonic()
        if child.restart_at is not None:
            if now >= child.restart_at:
                fresh = self._start(child.role)
                child.process, child.started, child.restart_at = fresh.process, fresh.started, None
            return False
        code = child.process.poll()
        if code is None:
            return False
        if code == 2 and (child.role in _OPTIONAL or child.has_run):
            # Settings that were changed and are wrong now must not take the other roles along.
            event("role cannot start; the others go on", level=logging.ERROR, role=child.role, status=code)
            child.restart_at = now + _RESTART_DELAYS_S[-1]
            return False
        if code == 2:  # exit code of wrong settings: trying again cannot help
            event("role cannot start", level=logging.ERROR, role=child.role, status=code)
            return True
        child.has_run = True
        child.failures = 0 if now - child.started > _STEADY_S else child.failures + 1
        delay = _RESTART_DELAYS_S[min(child.failures, len(_RESTART_DELAYS_S) - 1)]
        child.restart_at = now + delay
        event("role died; restarting", level=logging.ERROR, role=child.role, status=code, duration_s=delay)
        return False

    def _stop(self, child: _Child) -> None:
        if child.process.poll() is not None:
            return
        child.process.terminate()
        try:
            child.process.wait(self._stop_timeout_s + PATIENCE_S)
        except subprocess.TimeoutExpired:
            event("role did not stop in time; killed", level=logging.ERROR, role=child.role)
            child.process.kill()
            child.process.wait()
