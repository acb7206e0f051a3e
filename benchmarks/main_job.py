"""``python -m benchmarks.main_job``: one large study through the running daemon, timed and weighed.

300 CT slices go by storescu into ``daemon run``, and SEG and SR come out at Orthanc; once as
Explicit VR Little Endian, once as JPEG Lossless, which the decoding child process has to unpack.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from benchmarks import peers
from benchmarks.machine import describe
from benchmarks.memory import MemorySampler, Sample
from benchmarks.report import print_table, write_report

T = TypeVar("T")
QUIET_S = 2.0
_SETTLE_S = 3.0
_SYNTAXES = {"explicit": (), "jpeg-lossless": ("-xs",)}  # folder → storescu's proposal


def main() -> None:
    """Measure, print the table, and write it to ``benchmarks/``."""
    parser = argparse.ArgumentParser(description="Measure one large study through the daemon.")
    parser.add_argument("--slices", type=int, default=300, help="slices of the study")
    parser.add_argument("--no-write", action="store_true", help="print only; keep the recorded results")
    options = parser.parse_args()
    machine = describe()
    peers.need("Orthanc", "storescu", "dcmcjpeg")
    console = Console()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        site = Path(name)
        console.print(f"benchmark: drawing {options.slices} slices and fitting the phantom's bundle")
        study = apart(_prepare, site, options.slices)
        runs = {}
        for syntax in _SYNTAXES:
            console.print(f"benchmark: sending {syntax}")
            runs[syntax] = _run(site, syntax, study)
    record = {
        "date": date.today().isoformat(),
        "machine": machine,
        "study": {"slices": options.slices, "rows": 512, "columns": 512, "quiet_s": QUIET_S},
        "runs": runs,
    }
    print_table(console, record)
    if not options.no_write:
        write_report(record)


def _prepare(site: Path, slices: int) -> str:
    from benchmarks.stages import prepare

    return prepare(site, slices)


def read_times(settings_path: Path, study: str) -> dict[str, Any]:
    """What index and queue recorded of a study; to be run :func:`apart`."""
    from benchmarks import stages

    return stages.read_times(settings_path, study)


def _time_stages(settings_path: Path, study: str) -> dict[str, Any]:
    from benchmarks.stages import time_stages

    return time_stages(settings_path, study)


def apart(work: Callable[..., T], *args: object) -> T:
    """Run in a fresh process, so that this one maps none of the daemon's libraries."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def _run(site: Path, syntax: str, study: str) -> dict[str, Any]:
    """Send the study to a fresh daemon, wait for its delivery and collect what was measured."""
    home = site / f"run-{syntax}"
    port, pacs_port = peers.free_port(), peers.free_port()
    log, settings_path = home / "log", _write_settings(site, home, port, pacs_port)
    with peers.orthanc(home / "orthanc", pacs_port), peers.daemon(settings_path, log) as process:
        peers.wait_for_port(port, process)
        wait_for_line(log, "event=bundle")
        with MemorySampler(process.pid) as sampler:
            time.sleep(_SETTLE_S)
            idle = sampler.since(time.time() - 1.0)
            started = time.time()
            sent_s = peers.storescu(port, site / syntax, *_SYNTAXES[syntax])
            wait_for_line(log, "event=delivery")
            time.sleep(0.5)
        busy = sampler.since(started)
    times = apart(read_times, settings_path, study)
    if times["state"] != "scored" or "SEG" not in times["results"]:
        raise SystemExit(f"benchmark: the study ended {times['state']} with {times['results']}")
    return {
        "wall_s": _wall(times, sent_s),
        "instances": times["instances"],
        "stages": apart(_time_stages, settings_path, study),
        "memory": _memory(idle, busy),
        "study_bytes": sum(file.stat().st_size for file in (site / syntax).iterdir()),
    }


def _write_settings(site: Path, home: Path, port: int, pacs_port: int) -> Path:
    home.mkdir()
    (home / "data").mkdir()
    (home / "data" / "bundles").symlink_to(site / "bundles")
    path = home / "settings.toml"
    path.write_text(
        f'[service]\ndata_dir = "data"\n[receiver]\nport = {port}\nreserve_bytes = 1000000\n'
        f"[study]\nquiet_s = {QUIET_S}\n"
        f'[[destinations]]\nname = "pacs"\nae_title = "ORTHANC"\nhost = "127.0.0.1"\nport = {pacs_port}\n'
    )
    return path


def wait_for_line(log: Path, text: str, timeout_s: float = 600.0) -> None:
    """Wait until a text is in the daemon's log."""
    deadline = time.monotonic() + timeout_s
    while text not in log.read_text(errors="replace"):
        if time.monotonic() > deadline:
            raise SystemExit(f"benchmark: no {text!r} in the daemon's log after {timeout_s:.0f} s")
        time.sleep(0.1)


def _wall(times: dict[str, Any], sent_s: float) -> dict[str, float]:
    """Seconds between the milestones that index and queue recorded."""
    marks = {
        "reception": ("first_received", "last_received"),
        "queue wait": ("last_received", "open_job.started"),
        "open job": ("open_job.started", "run_job.started"),
        "scoring": ("run_job.started", "run_job.ended"),
        "record results": ("run_job.ended", "close_job.ended"),
        "delivery wait": ("close_job.ended", "deliver.started"),
        "delivery": ("deliver.started", "deliver.ended"),
        "last instance to delivered": ("last_received", "deliver.ended"),
        "first instance to delivered": ("first_received", "deliver.ended"),
    }
    wall = {name: round(times[end] - times[start], 3) for name, (start, end) in marks.items()}
    # The queue dates an entry to the second only; the quiet time is known from the settings.
    wall["queue wait"] = round(wall["queue wait"] - QUIET_S, 3)
    return {"storescu": round(sent_s, 3), **wall}


def _memory(idle: list[Sample], busy: list[Sample]) -> dict[str, Any]:
    """Peak of the sum, what it was made of, and each part's own peak."""
    peak = max(busy, key=lambda sample: sample.total_bytes)
    model = round(statistics.median(sample.pss_bytes.get("score", 0) for sample in idle))
    return {
        "samples": len(busy),
        "mean_interval_s": round((busy[-1].at - busy[0].at) / max(1, len(busy) - 1), 4),
        "idle_total_bytes": round(statistics.median(sample.total_bytes for sample in idle)),
        "idle_score_bytes": model,
        "peak_total_bytes": peak.total_bytes,
        "idle_anonymous_bytes": round(statistics.median(sample.anonymous_bytes for sample in idle)),
        "peak_anonymous_bytes": max(sample.anonymous_bytes for sample in busy),
        "peak_by_part_bytes": peak.pss_bytes,
        "part_peaks_bytes": {
            part: max(sample.pss_bytes.get(part, 0) for sample in busy)
            for part in sorted({part for sample in busy for part in sample.pss_bytes})
        },
        "beyond_model_bytes": peak.total_bytes - model,
    }


if __name__ == "__main__":
    main()
