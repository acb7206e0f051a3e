"""The tables of the reception benchmark."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks.machine import sentence
from benchmarks.reception_servers import ORTHANC, ROLE, SERVERS, STORESCP

_FIGURES = {
    "objects_per_s": ("objects/s", "{:.3g}"),
    "median_ms": ("median, ms", "{:.1f}"),
    "p99_ms": ("99 %, ms", "{:.0f}"),
    "cpu_s_per_gb": ("CPU s/GB", "{:.1f}"),
    "peak_mb": ("peak, MB", "{:.0f}"),
}
# No receiver: the journal's durable write of one object alone.
WRITE = "one durable write"
_CT, _SMALL = "CT slice, 0.5 MB", "small slice, 0.1 MB"


def markdown(record: dict[str, Any]) -> str:
    """Return the tables of a record."""
    rows = record["rows"]
    loads = [row["load_1m"] for row in rows if "load_1m" in row]
    lines = [
        f"Medians of {record['repeats']} rounds, {sentence(record)} Load meanwhile {min(loads):.1f} to "
        f"{max(loads):.1f}.",
        "",
        "| receiver | objects | sender | assoc. | " + " | ".join(t for t, _ in _FIGURES.values()) + " |",
        "|---|---|---|---:|" + "---:|" * len(_FIGURES),
    ]
    for kind, sender, associations in _cases(rows):
        for server in SERVERS:
            cells = [
                _cell(rows, figure, form, server.name, kind, sender, associations)
                for figure, (_, form) in _FIGURES.items()
            ]
            head = f"| {server.name} | {kind} | {sender} | {associations} | "
            lines.append(head + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *_goals(rows), "", *_bound(rows)])


def _cases(rows: list[dict[str, Any]]) -> Iterator[tuple[str, str, int]]:
    cases = ((row["kind"], row["sender"], row["associations"]) for row in rows if row["server"] != WRITE)
    yield from dict.fromkeys(cases)


def _median(rows: list[dict[str, Any]], figure: str, *case: Any) -> float | None:
    keys = ("server", "kind", "sender", "associations")
    found = [row[figure] for row in rows if figure in row and tuple(row[k] for k in keys) == case]
    return statistics.median(found) if found else None


def _cell(rows: list[dict[str, Any]], figure: str, form: str, *case: Any) -> str:
    value = _median(rows, figure, *case)
    return "–" if value is None else form.format(value)


def _goals(rows: list[dict[str, Any]]) -> list[str]:
    """The goals, and how far the daemon's receive role is from each."""
    lines = ["| goal | case | reached | |", "|---|---|---:|---|"]
    for kind, sender, associations in _cases(rows):
        case = (kind, sender, associations)
        ours = _median(rows, "objects_per_s", ROLE, *case)
        for other, factor in ((ORTHANC, 2.0), (STORESCP, 0.6 if kind == _CT else 1.0)):
            theirs = _median(rows, "objects_per_s", other, *case)
            if ours and theirs and (other == ORTHANC or kind in (_CT, _SMALL)):
                ratio = ours / theirs
                lines.append(_goal(f"≥ {factor:g} × {other}", case, f"{ratio:.2f} ×", ratio >= factor))
    for sender in dict.fromkeys(sender for _, sender, _ in _cases(rows)):
        cpu = _median(rows, "cpu_s_per_gb", ROLE, _CT, sender, 1)
        if cpu is not None:
            lines.append(_goal("≤ 3 CPU s/GB", (_CT, sender, 1), f"{cpu:.1f}", cpu <= 3.0))
        for kind in (_CT, _SMALL):
            one, four = (_median(rows, "objects_per_s", ROLE, kind, sender, n) for n in (1, 4))
            if one and four:
                ratio = four / one
                lines.append(_goal("4 associations ≥ 1", (kind, sender, 4), f"{ratio:.2f} ×", ratio >= 1))
    return lines


def _bound(rows: list[dict[str, Any]]) -> list[str]:
    """What a receiver as quick as storescp would reach that also makes each object durable."""
    lines = [
        f"| objects, sender, one association | {STORESCP}, ms each | {WRITE}, ms | both after each other, "
        "× storescp | goal |",
        "|---|---:|---:|---:|---:|",
    ]
    for kind, sender, associations in _cases(rows):
        speed = _median(rows, "objects_per_s", STORESCP, kind, sender, associations)
        write_ms = _median(rows, "median_ms", WRITE, kind, "", 0)
        if associations == 1 and speed and write_ms:
            each_ms = 1e3 / speed
            most = each_ms / (each_ms + write_ms)
            goal = 0.6 if kind == _CT else 1.0
            cells = f"{each_ms:.2f} | {write_ms:.2f} | {most:.2f} | {goal:g}"
            lines.append(f"| {kind}, {sender} | {cells} |")
    return lines


def _goal(goal: str, case: tuple[str, str, int], value: str, reached: bool) -> str:
    kind, sender, associations = case
    return f"| {goal} | {kind}, {sender}, {associations} | {value} | {'yes' if reached else 'missed'} |"
