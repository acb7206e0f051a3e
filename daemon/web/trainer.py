"""A training run that is started from the page: ``daemon train`` as a child process, one at a time."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from daemon.errors import SettingsError, StudyError
from daemon.log import event
from daemon.settings import Settings

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}")
_PROGRESS = re.compile(
    r"^progress (?P<stage>.+) (?P<done>\d+)/(?P<total>\d+)(?: loss (?P<loss>[\d.]+|nan))?$"
)
_SHOWN_LINES = 14
_TAIL_BYTES = 20_000
_INTERRUPTED, _STOP_S = 130, 20.0


@dataclass(frozen=True, slots=True)
class Run:
    """One training run.

    Parameters
    ----------
    folder, name, class_name
        What was asked for.
    started_at, ended_at
        Seconds since the epoch; None while it runs.
    code
        Exit code; None while it runs.
    """

    folder: str
    name: str
    class_name: str
    started_at: float
    ended_at: float | None = None
    code: int | None = None

    @property
    def state(self) -> str:
        """``running``, ``done``, ``stopped`` or ``failed``."""
        if self.code is None:
            return "running"
        return {0: "done", _INTERRUPTED: "stopped", -signal.SIGINT: "stopped"}.get(self.code, "failed")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: stage, steps, loss, and the last lines that it printed."""

    stage: str = ""
    done: int = 0
    total: int = 0
    loss: str = ""
    lines: tuple[str, ...] = ()


class Trainer:
    """Starts, watches and stops ``daemon train``.

    Parameters
    ----------
    settings
        ``web.training_dir`` has the folders of cases; the log is kept in ``service.data_dir``.
    """

    def __init__(self, settings: Settings) -> None:
        self._root = Path(settings.web.training_dir) if settings.web.training_dir else None
        self._home = settings.service.data_dir / "training"
        self._process: subprocess.Popen[bytes] | None = None
        self._run = self._kept()
        self._lock = threading.Lock()

    @property
    def enabled(self) -> bool:
        """Whether the settings name a folder."""
        return self._root is not None

    def folders(self) -> list[str]:
        """Folders of cases that can be chosen."""
        if self._root is None or not self._root.is_dir():
            return []
        return sorted(p.name for p in self._root.iterdir() if p.is_dir() and not p.name.startswith("."))

    def start(self, folder: str, name: str, class_name: str) -> Run:
        """Begin a run.

        Raises
        ------
        StudyError, SettingsError
            There is no such folder; the name will not do, or a run is going on.
        """
        if self._root is None or folder not in self.folders():
            raise StudyError("there is no such folder in web.training_dir")
        if not _NAME.fullmatch(name):
            raise SettingsError("the name needs letters, digits, '.', '_' and '-', at most 64")
        label = " ".join(class_name.split())[:64] or "body part"
        with self._lock:
            if self._process is not None:
                raise SettingsError("a training run is going on: wait for it, or stop it")
            self._home.mkdir(parents=True, exist_ok=True)
            # "=" keeps a value that begins with a dash a value.
            command = [
                sys.executable, "-m", "daemon", "train", f"--site-data={self._root / folder}",
                f"--name={name}", f"--class-name={label}", *_own_settings(sys.argv),
            ]  # fmt: skip
            nice = shutil.which("nice")
            with (self._home / "page.log").open("wb") as log:
                self._process = subprocess.Popen(
                    [nice, "-n", "10", *command] if nice else command,
                    stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
            self._run = Run(folder, name, label, time.time())
            self._keep()
            threading.Thread(target=self._wait, args=(self._process,), name="trainer", daemon=True).start()
            event("training started", bundle=name)
            return self._run

    def stop(self) -> None:
        """Interrupt the run; complete folds are kept for ``daemon train --resume``."""
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGINT)

    def close(self) -> None:
        """Interrupt the run and wait for its end."""
        process = self._process
        self.stop()
        if process is not None:
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()

    def look(self) -> tuple[Run | None, Progress]:
        """The last run and how far it is."""
        return self._run, _progress(self._home / "page.log") if self._run else Progress()

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        with self._lock:
            assert self._run is not None
            values = asdict(self._run) | {"ended_at": time.time(), "code": code}
            self._run, self._process = Run(**values), None
            self._keep()
        event("training ended", bundle=self._run.name, status=code)

    def _keep(self) -> None:
        assert self._run is not None
        part = self._home / "page.json.part"
        part.write_text(json.dumps(asdict(self._run)))
        part.replace(self._home / "page.json")

    def _kept(self) -> Run | None:
        try:
            run = Run(**json.loads((self._home / "page.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None
        # The page's process ended before it did: it was interrupted then.
        return run if run.code is not None else Run(**(asdict(run) | {"code": _INTERRUPTED}))


def _own_settings(arguments: Sequence[str]) -> list[str]:
    """The settings of this very process: the supervisor passes the file on."""
    for place, argument in enumerate(arguments):
        if argument in ("--settings", "-s") and place + 1 < len(arguments):
            return ["--settings", arguments[place + 1]]
    return []


def _progress(log: Path) -> Progress:
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return Progress()
    said = tuple(line.rstrip() for line in lines if line.strip() and not _PROGRESS.match(line))[
        -_SHOWN_LINES:
    ]
    for line in reversed(lines):
        found = _PROGRESS.match(line)
        if found:
            return Progress(
                found["stage"], int(found["done"]), int(found["total"]), found["loss"] or "", said
            )
    return Progress(lines=said)
