"""``python -m benchmarks.endurance``: 24,000 associations and 2,000 studies, and the memory of each process.

A quick sender speaks raw PDUs, one association after another. Each study takes twelve of them: one for
each of its two slices, two that send a slice again, and eight C-ECHO. The page is read all the while.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from benchmarks import attacks
from benchmarks.endurance_report import Sample, print_report, write_report
from benchmarks.fault_pacs import read_journal
from benchmarks.fault_site import Site
from benchmarks.faults import fit_bundle
from benchmarks.peers import free_port
from daemon.part10 import read_file_header
from daemon.phantom import make_case, write_case

_SLICES, _AGAIN, _ECHOES = 2, 2, 8
_PER_STUDY = _SLICES + _AGAIN + _ECHOES
_SAMPLE_S = 5.0
# Studies that may wait for the model before the sender waits, so that all roles work all the while.
_BACKLOG = 40


@dataclass
class Progress:
    """How far the sender is, and what it was answered."""

    associations: int = 0
    studies: int = 0
    answers: Counter[str] = field(default_factory=Counter)


def main() -> None:
    """Send, sample, wait until everything is delivered, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2_000)
    parser.add_argument(
        "--minutes", type=float, default=90.0, help="end after this time, however far it came"
    )
    parser.add_argument("--no-write", action="store_true", help="print only; keep the recorded results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="endurance-") as name:
        folder = Path(name)
        record, samples = run(folder, fit_bundle(folder), options.studies, options.minutes * 60.0)
    print_report(record, samples)
    if not options.no_write:
        write_report(record, samples)


def run(folder: Path, bundles: Path, studies: int, limit_s: float) -> tuple[dict[str, Any], list[Sample]]:
    """Run daemon and PACS under the sender.

    Returns
    -------
    tuple of dict and list of Sample
        What happened, and the memory of each process all the while.
    """
    page = free_port()
    site = Site(folder / "site", bundles, extra=f"[web]\nport = {page}")
    progress, samples, over = Progress(), list[Sample](), threading.Event()
    with site.running():
        started = time.monotonic()
        threads = [
            threading.Thread(target=_sample, args=(site, progress, samples, started, over), daemon=True),
            threading.Thread(target=_read_page, args=(page, over), daemon=True),
        ]
        for thread in threads:
            thread.start()
        before = site.roles()
        while progress.studies < studies and time.monotonic() - started < limit_s:
            _send_study(site.port, folder / "ct", progress)
            if progress.studies % 10 == 0:
                _wait_for_model(site, progress, started + limit_s)
        finished = _settled(site, progress.studies, 600.0)
        time.sleep(4 * _SAMPLE_S)  # a few samples at rest
        over.set()
        for thread in threads:
            thread.join()
        after = site.roles()
        with site.index() as index:
            states = Counter(study.state for study in index.list_studies())
            deliveries = Counter(delivery.state for delivery in index.deliveries())
        objects = len({line["sop"] for line in read_journal(site.pacs)})
    record = {
        "date": date.today().isoformat(),
        "associations": progress.associations,
        "studies": progress.studies,
        "answers": dict(progress.answers),
        "states": dict(states),
        "deliveries": dict(deliveries),
        "objects_at_pacs": objects,
        "all_delivered": finished,
        "restarted": sorted(role for role, pid in before.items() if after.get(role) != pid),
        "seconds": round(time.monotonic() - started, 1),
    }
    return record, samples


def _send_study(port: int, folder: Path, progress: Progress) -> None:
    case = make_case(progress.studies, abnormal=progress.studies % 2 == 0, slices=_SLICES, seed=11)
    paths = list(write_case(case, folder))
    slices = []
    for path in paths:
        header, offset = read_file_header(path)
        slices.append((header.sop_instance_uid, path.read_bytes()[offset:]))
        path.unlink()
    for uid, content in [*slices, *slices[:_AGAIN]]:
        progress.answers[store(port, uid, content)] += 1
    for _ in range(_ECHOES):
        progress.answers[echo(port)] += 1
    progress.associations += _PER_STUDY
    progress.studies += 1


def store(port: int, sop_instance: str, content: bytes) -> str:
    """Store one CT slice over an association of its own; returns the status, or what went wrong."""
    return _asked(port, attacks.EXPLICIT, attacks.CT, attacks.store_message(sop_instance, content))


def echo(port: int) -> str:
    """Ask for a C-ECHO over an association of its own; returns the status, or what went wrong."""
    message = attacks.data(attacks.echo_command(), 3)
    return _asked(port, attacks.IMPLICIT, attacks.VERIFICATION, message)


def _asked(port: int, syntax: str, abstract: str, message: bytes) -> str:
    with contextlib.suppress(OSError), attacks.associate(port, syntax, abstract) as connection:
        connection.settimeout(60.0)
        status = attacks.ask(connection, message)
        attacks.release(connection)
        return f"{status:04X}"
    return "no answer"


def _wait_for_model(site: Site, progress: Progress, deadline: float) -> None:
    while time.monotonic() < deadline:
        with contextlib.suppress(SQLAlchemyError), site.index() as index:
            done = sum(study.state in ("scored", "refused", "failed") for study in index.list_studies())
            if progress.studies - done < _BACKLOG:
                return
        time.sleep(1.0)


def _settled(site: Site, studies: int, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with site.index() as index:
            found = index.list_studies()
            ended = len(found) == studies and all(s.state in ("scored", "refused", "failed") for s in found)
            if ended and not index.deliveries(states=["pending", "failed"]):
                return True
        time.sleep(2.0)
    return False


def _sample(
    site: Site, progress: Progress, samples: list[Sample], started: float, over: threading.Event
) -> None:
    while not over.wait(_SAMPLE_S):
        at = time.monotonic() - started
        for role, pid in site.roles().items():
            with contextlib.suppress(OSError, KeyError, ValueError):
                samples.append(_look(role, pid, at, progress))


def _look(role: str, pid: int, at: float, progress: Progress) -> Sample:
    """Read a process' resident memory, threads and open files, proc(5)."""
    proc = Path("/proc") / str(pid)
    lines = (proc / "status").read_text().splitlines()
    status = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
    return Sample(
        role=role,
        at_s=round(at, 1),
        associations=progress.associations,
        studies=progress.studies,
        rss_bytes=int(status["VmRSS"][0]) * 1024,
        anonymous_bytes=int(status["RssAnon"][0]) * 1024,
        threads=int(status["Threads"][0]),
        files=len(list((proc / "fd").iterdir())),
    )


def _read_page(port: int, over: threading.Event) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while not over.wait(1.0):
        for path in ("/metrics", "/readyz", "/healthz", "/login"):
            with contextlib.suppress(OSError):
                opener.open(f"http://127.0.0.1:{port}{path}", timeout=10.0).read()


if __name__ == "__main__":
    main()
