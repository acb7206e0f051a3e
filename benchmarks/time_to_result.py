"""``python -m benchmarks.time_to_result``: from the last instance stored to SEG and SR in Orthanc.

A modality sends a study at the pace of a scanner; the quiet time is taken off. Each size is measured
with early scoring and without it, one after the other, with a fresh daemon and an empty database
each time. ``--backbone`` takes any open_clip ViT: its weights are random, its cost is real.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import peers
from benchmarks.machine import describe, sentence
from benchmarks.main_job import QUIET_S, apart, read_times, wait_for_line
from benchmarks.report import write_section

_MARKER = "time_to_result"
_READY = "event=bundle"


def main() -> None:
    """Measure, print the table, and write it to ``benchmarks/``."""
    parser = argparse.ArgumentParser(description="Time from the last instance to the result.")
    parser.add_argument("--slices", type=int, nargs="+", default=[60, 300, 1000])
    parser.add_argument("--repeats", type=int, default=3, help="of each size and way; the median counts")
    parser.add_argument("--backbone", default="tiny", help="an open_clip model name")
    parser.add_argument("--pace", type=float, default=25.0, help="slices per second that the modality sends")
    parser.add_argument("--no-write", action="store_true", help="print only; keep the recorded results")
    options = parser.parse_args()
    machine = describe()
    peers.need("Orthanc", "storescu")
    console = Console()
    rows = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        apart(_fit_bundle, Path(name), options.backbone)
        for slices in options.slices:
            site = Path(name) / str(slices)
            site.mkdir()
            study = apart(_prepare, site, slices)
            found: dict[bool, list[float]] = {True: [], False: []}
            for repeat in range(options.repeats):
                for early in (True, False):
                    way = Way(early, repeat, options.backbone, options.pace)
                    seconds = _run(site, study, way)
                    found[early].append(seconds)
                    console.print(f"benchmark: {slices} slices, early={early}: {seconds:.2f} s")
            rows.append({"slices": slices, "early_s": found[True], "late_s": found[False]})
    record = {
        "date": date.today().isoformat(),
        "machine": machine,
        "backbone": options.backbone,
        "pace_per_s": options.pace,
        "rows": rows,
    }
    text = _markdown(record)
    console.print(text)
    if not options.no_write:
        write_section(f"{_MARKER}_{options.backbone}", text, record)


@dataclass(frozen=True, slots=True)
class Way:
    """How one study is sent and scored."""

    early: bool
    repeat: int
    backbone: str
    pace_per_s: float


def _fit_bundle(folder: Path, backbone: str) -> None:
    """Fit the bundle that every run serves."""
    from benchmarks.stages import prepare_bundle

    prepare_bundle(folder, backbone)


def _prepare(site: Path, slices: int) -> str:
    from benchmarks.phantom_study import write_study

    return write_study(site / "explicit", slices=slices)


def _run(site: Path, study: str, way: Way) -> float:
    """Send one study to a fresh daemon; return the seconds from its last instance to its delivery."""
    home = site / f"run-{way.early}-{way.repeat}"
    home.mkdir()
    port, pacs_port = peers.free_port(), peers.free_port()
    settings_path = _write_settings(site, home, port, pacs_port, way)
    log = home / "log"
    with peers.orthanc(home / "orthanc", pacs_port), peers.daemon(settings_path, log) as process:
        peers.wait_for_port(port, process)
        wait_for_line(log, _READY)
        time.sleep(1.0)
        _send_paced(port, site / "explicit", way.pace_per_s)
        wait_for_line(log, "event=delivery", 3_600.0)
        time.sleep(0.5)
    times = apart(read_times, settings_path, study)
    if times["state"] != "scored" or not {"SEG", "SR"} <= set(times["results"]):
        raise SystemExit(f"benchmark: the study ended {times['state']} with {times['results']}")
    return float(times["deliver.ended"] - times["last_received"] - QUIET_S)


def _send_paced(port: int, folder: Path, pace: float) -> None:
    """Send a study over one association, no faster than the pace."""
    from pydicom import dcmread
    from pynetdicom import AE
    from pynetdicom.sop_class import CTImageStorage  # type: ignore[attr-defined]

    entity = AE("MODALITY")
    entity.add_requested_context(CTImageStorage, "1.2.840.10008.1.2.1")
    association = entity.associate("127.0.0.1", port, ae_title="ANOMALYD")
    if not association.is_established:
        raise SystemExit("benchmark: the daemon refused the association")
    started = time.monotonic()
    for number, file in enumerate(sorted(folder.iterdir())):
        time.sleep(max(0.0, started + number / pace - time.monotonic()))
        if association.send_c_store(dcmread(file)).Status != 0x0000:
            raise SystemExit("benchmark: an instance was not stored")
    association.release()


def _write_settings(site: Path, home: Path, port: int, pacs_port: int, way: Way) -> Path:
    (home / "data").mkdir()
    (home / "data" / "bundles").symlink_to(site.parent / "bundles")
    path = home / "settings.toml"
    path.write_text(
        f'[service]\ndata_dir = "data"\n[receiver]\nport = {port}\nreserve_bytes = 1000000\n'
        f'[web]\nport = 0\n[model]\nbackbone = "{way.backbone}"\nearly = {json.dumps(way.early)}\n'
        f"[study]\nquiet_s = {QUIET_S}\n"
        f'[[destinations]]\nname = "pacs"\nae_title = "ORTHANC"\nhost = "127.0.0.1"\nport = {pacs_port}\n'
    )
    return path


def _markdown(record: dict[str, Any]) -> str:
    lines = [
        f"{record['backbone']} backbone, {sentence(record)} Sent at {record['pace_per_s']:.0f} slices/s; "
        "median (least to most).",
        "",
        "| slices | early scoring, s | at the end, s | ratio |",
        "|---:|---:|---:|---:|",
    ]
    for row in record["rows"]:
        early, late = statistics.median(row["early_s"]), statistics.median(row["late_s"])
        lines.append(
            f"| {row['slices']} | {early:.2f} ({min(row['early_s']):.2f} to {max(row['early_s']):.2f}) "
            f"| {late:.2f} ({min(row['late_s']):.2f} to {max(row['late_s']):.2f}) | {late / early:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
