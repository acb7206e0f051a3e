"""``python -m benchmarks.objects``: what encoding SEG and SR costs, by the size of the study.

A scorer that knows the phantom's lesions takes the model's place, so that every study has the same
findings and the objects alone are measured, by the functions and with the settings of the daemon.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from adapters import registry
from adapters.bundle import AdapterBundle
from adapters.score import SliceScore
from adapters.slices import Slice
from benchmarks.machine import describe, sentence
from benchmarks.phantom_study import write_study
from benchmarks.report import write_section
from benchmarks.stages import Stopwatch, prepare_bundle
from daemon import pipeline, variants
from daemon.analyst import make_job
from daemon.jobs import JobRecord
from daemon.results import is_own
from daemon.serving import OneBundle
from daemon.settings import Settings, load_settings
from daemon.study import assemble

# CPU seconds that careful use of highdicom was found to take on two cores, by slices.
_POSSIBLE_S = {60: {"SEG": 0.14}, 300: {"SEG": 0.59, "SR": 1.3}, 1000: {"SEG": 2.8, "SR": 4.4}}
# Shares of the stack (from, to) and of the slice (row, column, radius).
_LESIONS = ((0.1, 0.3, 0.4, 0.3, 0.05), (0.4, 0.6, 0.5, 0.7, 0.04), (0.7, 0.9, 0.6, 0.4, 0.06))


class _Oracle:
    """A scorer that knows three lesions, each in a fifth of the slices.

    Parameters
    ----------
    bundle
        Whose thresholds count.
    slices
        Of the study.
    """

    def __init__(self, bundle: AdapterBundle, slices: int) -> None:
        self.bundle, self._slices = bundle, slices

    def score(self, slices: Iterator[Slice]) -> Iterator[SliceScore]:
        """Score slices in their order along the normal."""
        for number, item in enumerate(slices):
            marked = _map(item.pixels.shape, number / self._slices)
            score = float(marked.max())
            yield SliceScore(item.sop_instance_uid, item.frame_number, score, partial(np.copy, marked))


def _map(shape: tuple[int, ...], place: float) -> NDArray[np.float32]:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    found = np.zeros(shape[:2], np.float32)
    for first, last, row, column, radius in _LESIONS:
        if first <= place < last:
            away = np.hypot(rows / shape[0] - row, columns / shape[1] - column)
            found = np.maximum(found, np.clip(1.5 - away / radius, 0, 1).astype(np.float32))
    return found


def main() -> None:
    """Measure, print the table, and write it to ``benchmarks/``."""
    parser = argparse.ArgumentParser(description="CPU seconds of SEG and SR.")
    parser.add_argument("--slices", type=int, nargs="+", default=[60, 300, 1000])
    parser.add_argument("--repeats", type=int, default=3, help="the median counts")
    parser.add_argument("--no-write", action="store_true", help="print only; keep the recorded results")
    options = parser.parse_args()
    console, machine = Console(), describe()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        settings, bundle = _site(folder)
        watch = Stopwatch(time.process_time)
        watch.wrap(variants, "encode_seg", "SEG")
        watch.wrap(variants, "encode_sr", "SR")
        measure(folder / "warm", 8, settings, bundle, watch, 1)
        rows = [measure(folder / str(n), n, settings, bundle, watch, options.repeats) for n in options.slices]
    record = {"date": date.today().isoformat(), "machine": machine, "rows": rows}
    text = _markdown(record)
    console.print(text)
    if not options.no_write:
        write_section("objects", text, record)


def _site(folder: Path) -> tuple[Settings, AdapterBundle]:
    prepare_bundle(folder)
    path = folder / "settings.toml"
    path.write_text('[service]\ndata_dir = "."\n')
    return load_settings(path), registry.select(folder / "bundles", "phantom-ct")


def measure(
    folder: Path, slices: int, settings: Settings, bundle: AdapterBundle, watch: Stopwatch, repeats: int
) -> dict[str, Any]:
    """Encode one study's results a few times and return the medians."""
    study = write_study(folder, slices=slices)
    spent: dict[str, list[float]] = {"SEG": [], "SR": []}
    findings, sizes = 0, dict[str, int]()
    for _ in range(repeats):
        assembled = assemble(
            study,
            sorted(folder.iterdir()),
            max_frame_pixels=settings.study.maximum_frame_pixels,
            max_study_frames=settings.study.maximum_study_frames,
            is_own=is_own,
        )
        job = make_job(
            JobRecord(study, 1, datetime.now(UTC).isoformat(), {bundle.name: bundle.version}), settings
        )
        watch.seconds.clear()
        result = pipeline.analyse(assembled, OneBundle(_Oracle(bundle, slices)), job, settings)
        for kind, seconds in watch.seconds.items():
            spent[kind].append(seconds)
        findings = sum(len(analysis.findings) for analysis in result.analyses)
        sizes = {item.kind: len(item.content) for item in result.objects}
    medians = {kind: round(statistics.median(values), 3) for kind, values in spent.items()}
    return {"slices": slices, "findings": findings, "cpu_s": medians, "result_bytes": sizes}


def _markdown(record: dict[str, Any]) -> str:
    lines = [
        f"512 × 512, median CPU seconds, {sentence(record)}",
        "",
        "| slices | findings | SEG, s | possible, s | SEG, MB | SR, s | possible, s | SR, MB |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in record["rows"]:
        cells = [str(row["slices"]), str(row["findings"])]
        for kind in ("SEG", "SR"):
            possible = _POSSIBLE_S.get(row["slices"], {}).get(kind)
            cells += [
                f"{row['cpu_s'][kind]:.2f}",
                "–" if possible is None else f"{possible}",
                f"{row['result_bytes'].get(kind, 0) / 1e6:.2f}",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
