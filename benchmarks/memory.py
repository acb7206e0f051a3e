"""Memory of a process and its descendants, as the kernel's proportional set size (PSS).

PSS counts a page that n processes share as 1/n in each, so the sum over the daemon's processes is the
memory that they take together; RSS would count the libraries once per process.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

ROLES = ("receive", "score", "send")


@dataclass(slots=True)
class Sample:
    """PSS of each of the daemon's parts at one time, and how much of it is no file's page."""

    at: float
    pss_bytes: dict[str, int]
    anonymous_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """Of all parts together."""
        return sum(self.pss_bytes.values())


@dataclass
class MemorySampler:
    """Samples the process tree under a root in a thread of its own.

    Parameters
    ----------
    root_pid
        The supervisor.
    interval_s
        Between samples.
    """

    root_pid: int
    interval_s: float = 0.05
    samples: list[Sample] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Start sampling."""
        self._thread = threading.Thread(target=self._run, name="memory-sampler", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Stop sampling."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def since(self, start: float) -> list[Sample]:
        """Return the samples from a time on (seconds since the epoch)."""
        return [sample for sample in self.samples if sample.at >= start]

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            self.samples.append(take_sample(self.root_pid))
            due = max(due + self.interval_s, time.monotonic())
            self._stop.wait(due - time.monotonic())


def take_sample(root_pid: int) -> Sample:
    """Return the PSS of the supervisor and of every descendant, by part."""
    parts: dict[str, int] = {}
    at = time.time()
    anonymous = _add(root_pid, "supervisor", parts)
    return Sample(at, parts, anonymous)


def _add(pid: int, part: str, parts: dict[str, int]) -> int:
    """Add a process and its children; return their anonymous bytes. One that ended has no memory."""
    anonymous = 0
    proc = Path("/proc") / str(pid)
    with contextlib.suppress(OSError):
        pss = _pss_bytes(proc)
        parts[part] = parts.get(part, 0) + pss["Pss"]
        anonymous += pss["Pss_Anon"]
        for task in (proc / "task").iterdir():
            for child in (task / "children").read_text().split():
                anonymous += _add(int(child), _part_of(int(child), part), parts)
    return anonymous


def _part_of(pid: int, parent: str) -> str:
    """Name of a child's part: its role, else the decoder of its parent."""
    with contextlib.suppress(OSError):
        words = (Path("/proc") / str(pid) / "cmdline").read_bytes().decode().split("\0")
        if "--role" in words:
            return words[words.index("--role") + 1]
    return f"{parent}: decoder" if ":" not in parent else parent


def _pss_bytes(proc: Path) -> dict[str, int]:
    """Fields of smaps_rollup in bytes; a process that is just ending has none."""
    found = {"Pss": 0, "Pss_Anon": 0}
    for line in (proc / "smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in found:
            found[name] = int(value.split()[0]) * 1024
    return found
