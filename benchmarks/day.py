"""``python -m benchmarks.day``: a day of a large hospital through the real index, on a virtual clock.

2,000 studies with about a million slices arrive as they do in a hospital: few at night, most from 8 to
17 o'clock, short ones of projection images and long ones of CT and MR. Every instance, revision, result
and delivery is written to a real database by the code that the daemon runs, at the virtual time; only
the pixels, the model and the network are replaced by their measured cost. The queue is first in, first
out, as the engine's is.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from heapq import merge
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.machine import describe, sentence
from benchmarks.report import write_section
from daemon.index import Index
from daemon.records import ResultRecord
from daemon.spool import Spool, StoredInstance

# Share of a day's studies that begin in each hour, 0 to 23.
_HOURS = (1, 1, 1, 1, 1, 1, 2, 5, 8, 9, 9, 9, 8, 8, 9, 8, 7, 5, 3, 2, 2, 1.5, 1.5, 1)
# (share of the studies, median slices, spread of its logarithm, slices per second while it is sent)
_KINDS = ((0.45, 2, 0.4, 1.0), (0.10, 60, 0.8, 5.0), (0.25, 500, 0.7, 20.0), (0.20, 1_400, 0.6, 10.0))
_QUIET_S = 60.0
_TICK_S = 5.0
_START_S = 3.0  # of a study's scoring: assembly, encoding, writing
_SEND_S = 1.0


@dataclass(slots=True)
class Day:
    """What became of each study, in virtual seconds."""

    due_at: dict[str, float] = field(default_factory=dict)
    started_at: dict[str, float] = field(default_factory=dict)
    delivered_at: dict[str, float] = field(default_factory=dict)
    queue_depths: list[int] = field(default_factory=list)


class _Elsewhere(Spool):
    """A spool whose files are all there: pixels are no part of this."""

    def path(self, relative: str) -> Path:
        return Path(__file__)


def main() -> None:
    """Run the day, print the tables, and write them to ``benchmarks/``."""
    parser = argparse.ArgumentParser(description="A simulated day of a large hospital.")
    parser.add_argument("--studies", type=int, default=2_000)
    parser.add_argument("--speeds", type=float, nargs="+", default=[20, 30, 50, 100, 500], help="slices/s")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-write", action="store_true", help="print only; keep the recorded results")
    options = parser.parse_args()
    console, machine = Console(), describe()
    studies = draw_day(options.studies, np.random.default_rng(options.seed))
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        database = _through_the_index(studies, Path(folder) / "index.db", options.speeds[-1], console)
    queues = {f"{speed:g}": summarise(queue_alone(studies, speed)) for speed in options.speeds}
    record = {
        "date": date.today().isoformat(),
        "machine": machine,
        "studies": len(studies),
        "slices": int(sum(len(times) for times in studies.values())),
        "quiet_s": _QUIET_S,
        "queues": queues,
        "database": database,
    }
    text = _markdown(record)
    console.print(text)
    if not options.no_write:
        write_section("day", text, record)


def draw_day(count: int, rng: np.random.Generator) -> dict[str, NDArray[np.float64]]:
    """Return study → times of its instances in seconds after midnight, ascending."""
    hours = np.asarray(_HOURS) / sum(_HOURS)
    studies = {}
    for number in range(count):
        start = (rng.choice(24, p=hours) + rng.uniform()) * 3600.0
        _, median, spread, pace = _KINDS[rng.choice(len(_KINDS), p=[kind[0] for kind in _KINDS])]
        slices = min(5_000, max(1, round(median * np.exp(spread * rng.normal()))))
        studies[f"1.2.826.0.1.3680043.10.1.{number + 1}"] = start + np.cumsum(
            rng.exponential(1 / pace, slices)
        )
    return studies


def queue_alone(studies: dict[str, NDArray[np.float64]], slices_per_s: float, workers: int = 1) -> Day:
    """The queue without its database: what a scorer of this speed makes of the day."""
    day = Day()
    free = [0.0] * workers
    due = sorted((float(times[-1]) + _QUIET_S, uid) for uid, times in studies.items())
    for due_at, uid in due:
        worker = min(range(workers), key=free.__getitem__)
        day.due_at[uid] = due_at
        day.started_at[uid] = max(due_at, free[worker])
        free[worker] = day.started_at[uid] + _START_S + len(studies[uid]) / slices_per_s
        day.delivered_at[uid] = free[worker] + _SEND_S
    return day


def summarise(day: Day) -> dict[str, float]:
    """Percentiles of the time from a study's being due to its delivery, in seconds."""
    ages = np.array([day.delivered_at[uid] - day.due_at[uid] for uid in day.due_at])
    waits = np.array([day.started_at[uid] - day.due_at[uid] for uid in day.due_at])
    return {
        **{f"p{q}": round(float(np.percentile(ages, q)), 1) for q in (50, 90, 99)},
        "max": round(float(ages.max()), 1),
        "wait_p99": round(float(np.percentile(waits, 99)), 1),
    }


def _through_the_index(
    studies: dict[str, NDArray[np.float64]], path: Path, slices_per_s: float, console: Console
) -> dict[str, Any]:
    """Write the whole day through the real index; measure its calls, its size and our memory."""
    index, day = Index(f"sqlite:///{path}"), Day()
    took: dict[str, list[float]] = {"add_instances": [], "due_studies": [], "record": []}
    working: deque[tuple[float, str]] = deque()
    next_tick, started, memory, entered = 0.0, time.monotonic(), [_rss_bytes()], 0
    waiting: list[StoredInstance] = []
    spool = _Elsewhere(path.parent / "spool")
    for at, uid, number in merge(*(_arrivals(uid, times) for uid, times in studies.items())):
        while next_tick <= at:
            if waiting:
                # As reception does: what came within a moment is entered in one transaction.
                _timed(took["add_instances"], index.add_instances, waiting, spool)
                entered += len(waiting)
                waiting = []
            _tick(index, day, working, studies, next_tick, slices_per_s, took)
            next_tick += _TICK_S
            if entered // 50_000 >= len(memory):
                memory.append(_rss_bytes())
                console.print(f"benchmark: {entered:,} slices, {at / 3600:.1f} h")
        waiting.append(_instance(uid, number, at))
    index.add_instances(waiting, spool)
    while len(day.delivered_at) < len(studies):
        _tick(index, day, working, studies, next_tick, slices_per_s, took)
        next_tick += _TICK_S
    index.close()
    tenth = max(1, len(took["add_instances"]) // 10)
    return {
        "slices_per_s": slices_per_s,
        "wall_s": round(time.monotonic() - started, 1),
        "size_bytes": sum(file.stat().st_size for file in path.parent.glob("index.db*")),
        "first_tenth_ms": _milliseconds(took["add_instances"][:tenth]),
        "last_tenth_ms": _milliseconds(took["add_instances"][-tenth:]),
        "due_studies_ms": _milliseconds(took["due_studies"]),
        "record_ms": _milliseconds(took["record"]),
        "add_ms_per_slice": round(1000 * sum(took["add_instances"]) / entered, 3),
        "rss_start_bytes": memory[0],
        "rss_after_50000_bytes": memory[min(1, len(memory) - 1)],
        "rss_end_bytes": _rss_bytes(),
        "deepest_queue": max(day.queue_depths, default=0),
        **{f"age_{name}": value for name, value in summarise(day).items()},
    }


def _arrivals(uid: str, times: NDArray[np.float64]) -> Iterator[tuple[float, str, int]]:
    for number, at in enumerate(times):
        yield float(at), uid, number


def _tick(
    index: Index,
    day: Day,
    working: deque[tuple[float, str]],
    studies: dict[str, NDArray[np.float64]],
    now: float,
    slices_per_s: float,
    took: dict[str, list[float]],
) -> None:
    """What dispatcher, scorer and sender do in the index at this time."""
    for study in _timed(took["due_studies"], index.due_studies, now, _QUIET_S):
        uid = study.study_instance_uid
        index.open_revision(uid, study.revision + 1)
        day.due_at[uid] = study.last_received + _QUIET_S
        free_at = working[-1][0] if working else now
        day.started_at[uid] = max(now, free_at)
        working.append((day.started_at[uid] + _START_S + len(studies[uid]) / slices_per_s, uid))
    day.queue_depths.append(len(working))
    while working and working[0][0] <= now:
        ended_at, uid = working.popleft()
        _timed(took["record"], _record, index, uid)
        day.delivered_at[uid] = ended_at + _SEND_S


def _record(index: Index, uid: str) -> None:
    index.set_state(uid, "scoring")
    index.add_results(
        ResultRecord(uid, 1, kind, "1.2.840.10008.5.1.4.1.1.66.4", f"{uid}.{n}", f"{uid}.9", kind, "0" * 64)
        for n, kind in enumerate(("SEG", "SR"), 1)
    )
    index.plan_deliveries(uid, 1, ["pacs"], 1e9)
    index.set_state(uid, "scored")
    for delivery in index.deliveries(uid, 1):
        index.update_delivery(delivery, "sent")


def _instance(uid: str, number: int, at: float) -> StoredInstance:
    sop = f"{uid}.1.{number + 1}"
    return StoredInstance(
        study_instance_uid=uid,
        series_instance_uid=f"{uid}.1",
        sop_instance_uid=sop,
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        path=f"00/{uid}/{uid}.1/{sop}.dcm",
        size_bytes=526_000,
        received_at=at,
        calling_ae="CT1",
        version=1,
    )


def _timed(seconds: list[float], call: Any, *arguments: Any) -> Any:
    started = time.perf_counter()
    try:
        return call(*arguments)
    finally:
        seconds.append(time.perf_counter() - started)


def _milliseconds(seconds: list[float]) -> dict[str, float]:
    values = 1000 * np.asarray(seconds or [0.0])
    return {f"p{q}": round(float(np.percentile(values, q)), 3) for q in (50, 99)}


def _rss_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _markdown(record: dict[str, Any]) -> str:
    found = record["database"]
    lines = [
        f"{record['studies']:,} studies, {record['slices']:,} slices, quiet time {record['quiet_s']:.0f} s, "
        f"one scorer. {sentence(record)}",
        "",
        "| scorer, slices/s | due to delivered, s: median | 90 % | 99 % | longest | waiting, 99 % |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for speed, row in record["queues"].items():
        cells = " | ".join(f"{row[name]:,.0f}" for name in ("p50", "p90", "p99", "max", "wait_p99"))
        lines.append(f"| {speed} | {cells} |")
    lines += [
        "",
        "| the index, SQLite | |",
        "|---|---:|",
        f"| the whole day written in, s | {found['wall_s']:,.0f} |",
        f"| database at its end, MB | {found['size_bytes'] / 1e6:,.0f} |",
        f"| bytes per slice | {found['size_bytes'] / record['slices']:,.0f} |",
        f"| a slice entered, ms on average | {found['add_ms_per_slice']:.2f} |",
        f"| 5 s of arrivals entered, first tenth, ms (median, 99 %) | {_pair(found['first_tenth_ms'])} |",
        f"| the same, last tenth | {_pair(found['last_tenth_ms'])} |",
        f"| looking for due studies, ms (median, 99 %) | {_pair(found['due_studies_ms'])} |",
        f"| recording a study's results and deliveries, ms (median, 99 %) | {_pair(found['record_ms'])} |",
        f"| resident memory after 50,000 slices, MB | {found['rss_after_50000_bytes'] / 1e6:,.0f} |",
        f"| resident memory at the end, MB | {found['rss_end_bytes'] / 1e6:,.0f} |",
        f"| most studies in the queue at {found['slices_per_s']:g} slices/s | {found['deepest_queue']} |",
    ]
    return "\n".join(lines)


def _pair(found: dict[str, float]) -> str:
    return f"{found['p50']:.2f}, {found['p99']:.2f}"


if __name__ == "__main__":
    main()
