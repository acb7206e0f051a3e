"""What is looked at again and again in the background: processor, graphics card, destinations."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from daemon.requestor import Destination
from daemon.sender import echo

_SAMPLE_S = 2.0
_GPU_FIELDS = "name,utilization.gpu,memory.used,memory.total"


@dataclass(frozen=True, slots=True)
class Machine:
    """Use of processor and memory in [0, 1], and one line per graphics card."""

    cpu: float
    cores: int
    memory: float
    memory_bytes: int
    gpus: tuple[tuple[str, float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """How a destination answered a C-ECHO, and when it was asked."""

    ok: bool
    reason: str
    asked_at: float
    duration_s: float


class Watch:
    """Samples in threads of its own, so that no page waits.

    Parameters
    ----------
    targets
        Destinations to ask.
    echo_s
        Between questions.
    """

    def __init__(self, targets: Sequence[Destination], echo_s: float) -> None:
        self._targets, self._echo_s = targets, echo_s
        self._stop = threading.Event()
        self._answers: dict[str, Answer] = {}
        self._machine = Machine(0.0, os.cpu_count() or 1, *_memory())
        self._threads = [
            threading.Thread(target=loop, name=name, daemon=True)
            for name, loop in (("machine", self._sample), ("echo", self._ask))
        ]

    def start(self) -> None:
        """Begin to look."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()

    @property
    def machine(self) -> Machine:
        """The last sample."""
        return self._machine

    def answer(self, destination: str) -> Answer | None:
        """The last answer of a destination; None before the first."""
        return self._answers.get(destination)

    def _sample(self) -> None:
        before = _cpu_ticks()
        while not self._stop.wait(_SAMPLE_S):
            now = _cpu_ticks()
            total = now[1] - before[1]
            busy = (now[0] - before[0]) / total if total > 0 else 0.0
            before = now
            self._machine = Machine(busy, os.cpu_count() or 1, *_memory(), _gpus())

    def _ask(self) -> None:
        if not self._targets:
            return
        with ThreadPoolExecutor(min(8, len(self._targets))) as pool:
            while not self._stop.is_set():
                for target, answer in zip(self._targets, pool.map(_echo, self._targets), strict=True):
                    self._answers[target.name] = answer
                self._stop.wait(self._echo_s)


def role_runs(data_dir: Path, role: str) -> bool:
    """Whether a process of this host has the role: it holds the role's lock as long as it lives."""
    try:
        with (data_dir / f"{role}.lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _echo(target: Destination) -> Answer:
    try:
        answer = echo(target)
    except Exception as error:  # whatever a peer's answer breaks is the answer
        return Answer(False, type(error).__name__, time.time(), 0.0)
    return Answer(answer.ok, answer.reason.removeprefix(f"{target.name}: "), time.time(), answer.duration_s)


def _cpu_ticks() -> tuple[int, int]:
    """(busy, total) ticks of all cores since boot, proc(5)."""
    try:
        fields = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    return sum(fields) - fields[3] - fields[4], sum(fields)


def _memory() -> tuple[float, int]:
    """Used share and size of the memory, proc(5)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        values = {name: int(rest.split()[0]) * 1024 for name, _, rest in (x.partition(":") for x in lines)}
        return 1 - values["MemAvailable"] / values["MemTotal"], values["MemTotal"]
    except (OSError, ValueError, KeyError, IndexError):
        return 0.0, 0


def _gpus() -> tuple[tuple[str, float, float], ...]:
    """Name, use and used share of memory of each NVIDIA card; empty without the driver's tool."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    command = [program, f"--query-gpu={_GPU_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=5.0, check=True).stdout
        rows = [[cell.strip() for cell in line.split(",")] for line in said.strip().splitlines()]
        return tuple((row[0], float(row[1]) / 100, float(row[2]) / float(row[3])) for row in rows)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError, ZeroDivisionError):
        return ()
