"""The modality of the fault runs: it sends until each instance was answered with Success."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from daemon.part10 import read_file_header
from daemon.phantom import make_case, write_case
from daemon.sender import Destination, send


def send_once(port: str, path: str) -> None:
    """Send one file."""
    send([Path(path)], Destination("daemon", "ANOMALYD", "127.0.0.1", int(port), "MODALITY"))


class Modality:
    """Sends tiny studies one after another until each instance was answered with Success.

    Parameters
    ----------
    addresses
        Hosts and ports of the daemons; when one does not answer, the next is tried.
    folder
        For the files that it sends.
    first
        Number of its first study; the same number makes the same study.
    """

    def __init__(self, addresses: Sequence[tuple[str, int]], folder: Path, *, first: int = 0) -> None:
        self.targets = [
            Destination("daemon", "ANOMALYD", host, port, "MODALITY", 3.0, 5.0, 10.0, 10.0)
            for host, port in addresses
        ]
        self.folder, self.next = folder, first
        self.answered: dict[str, str] = {}  # SOP Instance UID → SHA-256 of the data set sent
        self.studies: set[str] = set()
        self.statuses: Counter[str] = Counter()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def draw(self, slices: int = 2) -> list[Path]:
        """Make the next study."""
        case = make_case(self.next, abnormal=self.next % 2 == 0, slices=slices, seed=7)
        files = write_case(case, self.folder / f"{self.next:05d}")
        self.next += 1
        self.studies.add(case.study_instance_uid)
        return list(files)

    def send(self, files: list[Path], timeout_s: float = 600.0) -> bool:
        """Send until everything was answered with Success, as a modality's queue does."""
        waiting = list(files)
        deadline = time.monotonic() + timeout_s
        while waiting and time.monotonic() < deadline:
            outcomes = send(waiting, self.targets[0])
            for outcome in outcomes:
                status = "none" if outcome.status is None else f"{outcome.status:04X}"
                self.statuses[status] += 1
                if outcome.status == 0:
                    self.answered[outcome.sop_instance_uid] = data_set_sha256(outcome.path)
            waiting = [outcome.path for outcome in outcomes if outcome.status != 0]
            if waiting:
                self.targets.append(self.targets.pop(0))
                time.sleep(0.3)
        return not waiting

    def wait_until_refused(self, timeout_s: float = 120.0) -> bool:
        """Wait until one more C-STORE than now was answered with something else than Success."""
        before, deadline = self._refused(), time.monotonic() + timeout_s
        while self._refused() == before and time.monotonic() < deadline:
            time.sleep(0.05)
        return self._refused() > before

    def _refused(self) -> int:
        return self.statuses.total() - self.statuses["0000"]

    def start(self, pause_s: float = 0.2, slices: int = 2) -> None:
        """Send study after study in a thread until :meth:`stop`."""

        def loop() -> None:
            while not self._stop.is_set():
                self.send(self.draw(slices))
                self._stop.wait(pause_s)

        self._thread = threading.Thread(target=loop, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Finish the study in hand and stop."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()


def data_set_sha256(path: Path) -> str:
    """Return the hash of a file's data set.

    Raises
    ------
    OSError, SpoolError
        It cannot be read.
    """
    offset = read_file_header(path)[1]
    with path.open("rb") as stream:
        stream.seek(offset)
        return hashlib.file_digest(stream, "sha256").hexdigest()
