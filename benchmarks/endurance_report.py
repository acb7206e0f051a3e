"""Figures of the endurance run: slopes after warm-up, a plot, the table of README.md, JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

_FOLDER = Path(__file__).parent
_BEGIN, _END = "<!-- endurance: begin -->", "<!-- endurance: end -->"
# The share of the associations that counts as warm-up.
_WARM_UP = 0.25
_ORDER = ("supervisor", "receive", "helper", "score", "send", "web")


@dataclass(frozen=True, slots=True)
class Sample:
    """One process at one time, and how much had been sent by then."""

    role: str
    at_s: float
    associations: int
    studies: int
    rss_bytes: int
    anonymous_bytes: int
    threads: int
    files: int


def slopes(samples: list[Sample]) -> dict[str, dict[str, float]]:
    """Fit a line through each process' memory after warm-up, least squares over associations.

    Returns
    -------
    dict of str to dict
        By role: megabytes at warm-up and at the end (medians of a tenth of the samples), slope of
        resident and of anonymous memory in kilobytes per 1,000 associations, threads and files.
    """
    last = max(sample.associations for sample in samples)
    found = {}
    for role in _ORDER:
        own = [s for s in samples if s.role == role and s.associations >= _WARM_UP * last]
        if len(own) < 10:
            continue
        x = np.array([s.associations for s in own], dtype=float)
        tenth = max(len(own) // 10, 3)
        found[role] = {
            "warm_mb": _median([s.rss_bytes for s in own[:tenth]]) / 1e6,
            "end_mb": _median([s.rss_bytes for s in own[-tenth:]]) / 1e6,
            "peak_mb": max(s.rss_bytes for s in own) / 1e6,
            "kb_per_1000": _slope(x, [s.rss_bytes for s in own]),
            "anonymous_kb_per_1000": _slope(x, [s.anonymous_bytes for s in own]),
            "threads": _median([s.threads for s in own[-tenth:]]),
            "files_warm": _median([s.files for s in own[:tenth]]),
            "files_end": _median([s.files for s in own[-tenth:]]),
        }
    return found


def _median(values: list[int]) -> float:
    return float(np.median(values))


def _slope(x: np.ndarray, values: list[int]) -> float:
    if np.ptp(x) == 0:
        return 0.0
    return float(np.polyfit(x / 1_000, np.array(values, dtype=float) / 1e3, 1)[0])


def print_report(record: dict[str, Any], samples: list[Sample]) -> None:
    """Print what :func:`write_report` writes."""
    Console().print(_text(record, slopes(samples)), markup=False, soft_wrap=True)


def write_report(record: dict[str, Any], samples: list[Sample]) -> None:
    """Write ``results/endurance.json``, its plot and the table of README.md."""
    found = slopes(samples)
    series = {
        role: [[s.at_s, s.associations, s.studies, s.rss_bytes, s.anonymous_bytes] for s in own][
            :: _step(own)
        ]
        for role in _ORDER
        if (own := [s for s in samples if s.role == role])
    }
    results = _FOLDER / "results"
    results.mkdir(exist_ok=True)
    columns = ["at_s", "associations", "studies", "rss_bytes", "anonymous_bytes"]
    content = {**record, "processes": found, "columns": columns, "samples": series}
    (results / "endurance.json").write_text(json.dumps(content) + "\n")
    plot(samples, results / "endurance.png")
    readme = _FOLDER / "README.md"
    before, _, rest = readme.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    readme.write_text(f"{before}{_BEGIN}\n{_text(record, found)}\n{_END}{after}")


def _step(own: list[Sample]) -> int:
    return max(1, len(own) // 200)


def plot(samples: list[Sample], path: Path) -> None:
    """Draw resident memory of each process over associations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for role in _ORDER:
        own = [s for s in samples if s.role == role]
        axes.plot([s.associations for s in own], [s.rss_bytes / 1e6 for s in own], label=role, linewidth=1)
    axes.set(xlabel="associations", ylabel="resident memory, MB", ylim=(0, None))
    axes.axvline(_WARM_UP * max(s.associations for s in samples), color="grey", linestyle=":", linewidth=1)
    axes.legend(loc="center right")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _text(record: dict[str, Any], found: dict[str, dict[str, float]]) -> str:
    answers = ", ".join(f"{count} × {status}" for status, count in sorted(record["answers"].items()))
    restarted = ", ".join(record["restarted"]) or "none"
    lines = [
        f"{record['date']}: {record['associations']:,} associations and {record['studies']:,} studies in "
        f"{record['seconds'] / 60:.0f} min; answers {answers}; everything delivered: "
        f"{'yes' if record['all_delivered'] else 'NO'} ({record['objects_at_pacs']:,} objects at the PACS); "
        f"processes restarted: {restarted}.",
        "",
        "| process | after warm-up, MB | end, MB | peak, MB | slope, kB per 1,000 associations | "
        "of it anonymous | open files, warm → end |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for role, row in found.items():
        lines.append(
            f"| {role} | {row['warm_mb']:.1f} | {row['end_mb']:.1f} | {row['peak_mb']:.1f} | "
            f"{row['kb_per_1000']:+.0f} | {row['anonymous_kb_per_1000']:+.0f} | "
            f"{row['files_warm']:.0f} → {row['files_end']:.0f} |"
        )
    return "\n".join(lines)
