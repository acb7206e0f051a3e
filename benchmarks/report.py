"""The table of the main job: on the console, in README.md between markers, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import sentence

BAR_BYTES = 2_000_000_000
_FOLDER = Path(__file__).parent
_SECTION = "# "
_TITLES = {"explicit": "Explicit VR LE", "jpeg-lossless": "JPEG Lossless SV1"}
# Row of the table → stages that are added up for it; the rows marked "·" are parts of the row above.
_STAGES = {
    "assemble (headers)": ("assemble",),
    "decode + normalise": ("load_slice",),
    "· header": ("header",),
    "· decode": ("decode",),
    "· normalise": ("normalise",),
    "model": ("model",),
    "· to the model's grid": ("to the model's grid",),
    "findings": ("find",),
    "· maps to the source's grid": ("to the source's grid",),
    "SEG encode": ("encode_seg",),
    "SR encode": ("encode_sr",),
    "write": ("write",),
}


def print_table(console: Console, record: dict[str, Any]) -> None:
    """Print the record as a table."""
    table = Table(title=_caption(record))
    table.add_column("what")
    for syntax in record["runs"]:
        table.add_column(_TITLES[syntax], justify="right")
    for row in _rows(record):
        if row[0].startswith(_SECTION):
            table.add_section()
        table.add_row(row[0].removeprefix(_SECTION), *row[1:])
    console.print(table)


def write_report(record: dict[str, Any]) -> None:
    """Write ``results/main_job.json`` and the table of README.md."""
    write_section("main_job", _markdown(record), record)


def write_section(name: str, text: str, record: dict[str, Any]) -> None:
    """Write ``results/NAME.json``, and the text between the markers of this name in README.md."""
    (_FOLDER / "results").mkdir(exist_ok=True)
    (_FOLDER / "results" / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    readme = _FOLDER / "README.md"
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = readme.read_text().partition(begin)
    if not found or end not in rest:
        raise SystemExit(f"benchmark: README.md has no place for {name}: {begin} … {end}")
    readme.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")


def _markdown(record: dict[str, Any]) -> str:
    lines = [
        f"{_caption(record)}, {sentence(record)}",
        "",
        "| | " + " | ".join(_TITLES[syntax] for syntax in record["runs"]) + " |",
        "|---|" + "---:|" * len(record["runs"]),
    ]
    for name, *cells in _rows(record):
        title = f"**{name.removeprefix(_SECTION)}**" if name.startswith(_SECTION) else name
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _caption(record: dict[str, Any]) -> str:
    study = record["study"]
    return f"{study['slices']} slices of {study['rows']} × {study['columns']}, tiny backbone"


def _rows(record: dict[str, Any]) -> Iterator[list[str]]:
    runs = list(record["runs"].values())
    blank = [""] * len(runs)
    yield [_SECTION + "End to end, s", *blank]
    for name in runs[0]["wall_s"]:
        if name == "queue wait":
            yield ["quiet time (as set)", *(f"{record['study']['quiet_s']:.2f}" for _ in runs)]
        yield [name, *(f"{run['wall_s'][name]:.2f}" for run in runs)]
    yield [_SECTION + "Stages of scoring, s", *blank]
    for name, stages in _STAGES.items():
        yield [name, *(f"{_seconds(run, stages):.2f}" for run in runs)]
    named = [stages for name, stages in _STAGES.items() if not name.startswith("·")]
    rest = [
        run["stages"]["seconds"]["total"] - sum(_seconds(run, stages) for stages in named) for run in runs
    ]
    yield ["everything else", *(f"{value:.2f}" for value in rest)]
    yield ["sum", *(f"{run['stages']['seconds']['total']:.2f}" for run in runs)]
    yield from _memory_rows(runs, blank)
    yield [_SECTION + "Results", *blank]
    yield ["findings", *(str(run["stages"]["findings"]) for run in runs)]
    for kind in ("SEG", "SR"):
        yield [f"{kind}, MB", *(f"{run['stages']['result_bytes'].get(kind, 0) / 1e6:.2f}" for run in runs)]


def _memory_rows(runs: list[dict[str, Any]], blank: list[str]) -> Iterator[list[str]]:
    memory = [run["memory"] for run in runs]
    yield [_SECTION + "Memory (PSS), MB", *blank]
    yield ["all processes, idle", *(_mb(m["idle_total_bytes"]) for m in memory)]
    yield ["score process, model loaded, idle", *(_mb(m["idle_score_bytes"]) for m in memory)]
    yield ["all processes, peak", *(_mb(m["peak_total_bytes"]) for m in memory)]
    for part in sorted({part for m in memory for part in m["peak_by_part_bytes"]}):
        yield [f"· {part} at that moment", *(_mb(m["peak_by_part_bytes"].get(part, 0)) for m in memory)]
    yield ["anonymous pages alone, idle", *(_mb(m["idle_anonymous_bytes"]) for m in memory)]
    yield ["anonymous pages alone, peak", *(_mb(m["peak_anonymous_bytes"]) for m in memory)]
    yield ["peak beyond the model", *(_mb(m["beyond_model_bytes"]) for m in memory)]
    within = ["yes" if m["beyond_model_bytes"] < BAR_BYTES else "NO" for m in memory]
    yield [f"within the bar of {BAR_BYTES / 1e9:.0f} GB", *within]


def _seconds(run: dict[str, Any], stages: tuple[str, ...]) -> float:
    seconds = run["stages"]["seconds"]
    return float(sum(seconds.get(stage, 0.0) for stage in stages))


def _mb(value: int) -> str:
    return f"{value / 1e6:.0f}"
