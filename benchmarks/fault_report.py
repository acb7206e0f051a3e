"""The table of the fault runs: on the console, in README.md between markers, and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_FOLDER = Path(__file__).parent
_BEGIN, _END = "<!-- faults: begin -->", "<!-- faults: end -->"
_COLUMNS = (
    ("met", "faults met"),
    ("instances", "instances"),
    ("studies", "studies"),
    ("results", "results"),
    ("lost", "lost"),
    ("doubled", "doubled"),
    ("orphans", "orphan files"),
    ("dead_letters", "dead letters"),
    ("sent_again", "object sent again"),
)


def print_report(console: Console, record: dict[str, Any]) -> None:
    """Print the record as a table."""
    table = Table(*_header(), title=f"faults, {record['date']}")
    for row in _rows(record):
        table.add_row(*row)
    console.print(table)


def write_report(record: dict[str, Any]) -> None:
    """Write ``results/faults.json`` and the table of README.md; runs that were not repeated stay."""
    path = _FOLDER / "results" / "faults.json"
    if path.is_file():
        record = {**record, "runs": {**json.loads(path.read_text())["runs"], **record["runs"]}}
    path.write_text(json.dumps(record, indent=2) + "\n")
    lines = ["| " + " | ".join(_header()) + " |", "|---|" + "---:|" * (len(_COLUMNS) + 2)]
    lines += ["| " + " | ".join(row) + " |" for row in _rows(record)]
    for run in record["runs"].values():
        if "killed" in run:
            lines += ["", _resumption(run)]
    readme = _FOLDER / "README.md"
    before, _, rest = readme.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    readme.write_text(f"{before}{_BEGIN}\n{chr(10).join(lines)}\n{_END}{after}")


def failures(record: dict[str, Any]) -> list[str]:
    """Return what a run lost, doubled, left behind or did not finish, in words."""
    wrong = []
    for name, run in record["runs"].items():
        if "skipped" in run:
            continue
        counts = [f"{run[key]} {key}" for key in ("lost", "doubled", "orphans", "failed_studies") if run[key]]
        if run.get("met") == 0:
            counts.append("nobody met the fault")
        if not run["finished"]:
            counts.append("not finished in time")
        wrong += [f"{name}: {', '.join(counts)}"] if counts else []
    return wrong


def _resumption(run: dict[str, Any]) -> str:
    times = "; ".join(
        f"{what}: {', '.join(f'{seconds:.1f}' for seconds in found)}" for what, found in run["killed"].items()
    )
    return (
        f"From `kill -9` to the resumed step, seconds ({times}): median {run['median_s']:.1f}, "
        f"longest {run['maximum_s']:.1f}; load average at the start {run['load']}. {run.get('note', '')}"
    ).strip()


def _header() -> list[str]:
    return ["run", "kills", *(title for _, title in _COLUMNS), "seconds"]


def _rows(record: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, run in record["runs"].items():
        if "skipped" in run:
            rows.append([name, f"skipped: {run['skipped']}", *[""] * (len(_COLUMNS) + 1)])
            continue
        kills = sum(run.get("kills", {}).values()) or sum(
            len(found) for found in run.get("killed", {}).values()
        )
        cells = [str(run.get(key, "")) for key, _ in _COLUMNS]
        rows.append([name, str(kills or ""), *cells, f"{run['seconds']:.0f}"])
    return rows
