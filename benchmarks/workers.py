"""``python -m benchmarks.workers``: one to four scoring processes that share a PostgreSQL and a spool.

A receiver takes small studies; when their quiet time is over all of them are due at once, and the
scorers share them. Measured from the first study's opening to the last one's closing, as the queue
recorded it. Each scorer has one thread; on a machine with fewer cores than scorers they share those.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import peers
from benchmarks.machine import describe, sentence
from benchmarks.main_job import apart, wait_for_line
from benchmarks.postgres import postgres, why_not
from benchmarks.report import write_section

_QUIET_S = 20.0


def main() -> None:
    """Measure, print the table, and write it to ``benchmarks/``."""
    parser = argparse.ArgumentParser(description="Scoring processes that share the work.")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--studies", type=int, default=24)
    parser.add_argument("--slices", type=int, default=40)
    parser.add_argument("--no-write", action="store_true", help="print only; keep the recorded results")
    options = parser.parse_args()
    if reason := why_not():
        raise SystemExit(f"benchmark: {reason}")
    peers.need("storescu")
    console, machine, rows = Console(), describe(), []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        site = Path(name)
        apart(_prepare, site, options.studies, options.slices)
        for count in options.workers:
            seconds = _run(site, count, options.studies)
            rate = options.studies * options.slices / seconds
            rows.append({"workers": count, "seconds": round(seconds, 2), "slices_per_s": round(rate, 1)})
            console.print(f"benchmark: {count} scorers: {rate:.1f} slices/s")
    record = {
        "date": date.today().isoformat(),
        "machine": machine,
        "studies": options.studies,
        "slices": options.slices,
        "rows": rows,
    }
    text = _markdown(record)
    console.print(text)
    if not options.no_write:
        write_section("workers", text, record)


def _prepare(site: Path, studies: int, slices: int) -> None:
    from benchmarks.stages import prepare_bundle
    from daemon.phantom import make_case, write_case

    prepare_bundle(site)
    for number in range(studies):
        case = make_case(100 + number, abnormal=number % 2 == 0, slices=slices)
        write_case(case, site / "studies" / str(number))


def _run(site: Path, count: int, studies: int) -> float:
    port = peers.free_port()
    with postgres() as server, contextlib.ExitStack() as stack:
        home = site / f"run-{count}"
        receiver = _settings(site, home, "receiver", port, server.url)
        process = stack.enter_context(_role("receive", receiver))
        peers.wait_for_port(port, process)
        logs = []
        for number in range(count):
            settings = _settings(site, home, f"scorer{number}", peers.free_port(), server.url)
            stack.enter_context(_role("score", settings))
            logs.append(settings.parent / "log")
        for log in logs:
            wait_for_line(log, "event=bundle")
        peers.storescu(port, site / "studies", "+r")
        return float(apart(_wait_until_scored, receiver, studies))


def _settings(site: Path, home: Path, name: str, port: int, database: str) -> Path:
    folder = home / name
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "bundles").symlink_to(site / "bundles")
    path = folder / "settings.toml"
    path.write_text(
        f'[service]\ndata_dir = "data"\nspool_dir = "{home / "spool"}"\ndatabase = "{database}"\n'
        f"[receiver]\nport = {port}\nreserve_bytes = 1000000\n[retention]\nprune_below_bytes = 0\n"
        f"[study]\nquiet_s = {_QUIET_S}\n[model]\nthreads = 1\nearly = false\n[web]\nport = 0\n"
        f'[engine]\nnode = "{name}"\npoll_s = 0.1\n'
    )
    return path


@contextlib.contextmanager
def _role(role: str, settings: Path) -> Any:
    command = [sys.executable, "-m", "daemon", "run", "--role", role, "--settings", str(settings)]
    with (settings.parent / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)


def _wait_until_scored(settings_path: Path, studies: int) -> float:
    """Seconds from the first revision's opening to the last one's closing."""
    from dbos import DBOSClient, DBOSPortableJSONSerializer

    from daemon.index import Index
    from daemon.settings import load_settings

    settings = load_settings(settings_path)
    index = Index(settings.database_url)
    deadline = time.monotonic() + 900
    while len(found := index.list_studies(["scored"])) < studies:
        if time.monotonic() > deadline:
            raise SystemExit(f"benchmark: only {len(found)} of {studies} studies were scored")
        time.sleep(0.5)
    index.close()
    client = DBOSClient(system_database_url=settings.engine_url, serializer=DBOSPortableJSONSerializer())
    steps = [
        step for study in found for step in client.list_workflow_steps(f"score:{study.study_instance_uid}:1")
    ]
    client.destroy()
    started = min(int(step["started_at_epoch_ms"] or 0) for step in steps)
    ended = max(int(step["completed_at_epoch_ms"] or 0) for step in steps)
    return (ended - started) / 1000


def _markdown(record: dict[str, Any]) -> str:
    base = record["rows"][0]["slices_per_s"]
    lines = [
        f"{record['studies']} studies of {record['slices']} slices of 128 × 128, tiny backbone, PostgreSQL. "
        f"{sentence(record)}",
        "",
        "| scoring processes | slices/s | of one |",
        "|---:|---:|---:|",
    ]
    for row in record["rows"]:
        rate = row["slices_per_s"]
        lines.append(f"| {row['workers']} | {rate:.1f} | {rate / base:.2f} × |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
