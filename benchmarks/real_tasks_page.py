"""The tables of ``docs/real-tasks.md``, from the stored results of :mod:`benchmarks.real_tasks`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_FIGURES = (
    "image AUROC", "pixel AUROC", "pixel AP", "PRO", "Dice at the operating point",
    "sensitivity at 90% specificity", "abnormal patients flagged",
)  # fmt: skip


def page_tables(stored: Mapping[str, Any]) -> str:
    """Return the tables in Markdown."""
    given, chosen = stored["given_split"], stored["backbone"]
    lines = [
        f"{stored['date']}; {stored['machine']}. K = {stored['shots_per_class']}; backbone `{chosen}` with "
        "seeded random weights, chosen on the train splits (last table). Intervals are 95 %, over patients "
        "or groups.", "",
    ]  # fmt: skip
    for task, result in given[chosen].items():
        lines += [*_task_table(task, result), ""]
    lines += [
        *_other_backbones(given, chosen),
        "",
        *_rates(stored, given),
        "",
        *_choice(stored["train_split"]),
    ]
    return "\n".join(lines) + "\n"


def _task_table(task: str, result: Mapping[str, Any]) -> list[str]:
    columns = {"adapters": result["test"], **result["baselines"]}
    train_, test = result["patients"]["train"], result["patients"]["test"]
    lines = [
        f"**{task}**: patients (or groups) with normal and with abnormal images: train {train_[0]} and "
        f"{train_[1]}, test {test[0]} and {test[1]}; {result['seconds']} s to train.", "",
        "| held-out test split | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|",
    ]  # fmt: skip
    for name in (n for n in _FIGURES if n in result["test"]["figures"]):
        cells = [_figure(column["figures"].get(name)) for column in columns.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for name in (n for n in _FIGURES[:3] if n in result["differences"]["text only"]):
        gains = [_figure(result["differences"][other].get(name)) for other in result["baselines"]]
        lines.append(f"| adapters minus it, {name} | | " + " | ".join(gains) + " |")
    return lines


def _other_backbones(given: Mapping[str, Any], chosen: str) -> list[str]:
    lines = ["| other backbone, test split | task | image AUROC | pixel AUROC | least pixel AUROC gain |",
             "|---|---|---|---|---|"]  # fmt: skip
    for name, tasks in given.items():
        for task, result in tasks.items() if name != chosen else ():
            figures = result["test"]["figures"]
            gains = [g["pixel AUROC"] for g in result["differences"].values() if "pixel AUROC" in g]
            cells = [_figure(figures.get(k)) for k in ("image AUROC", "pixel AUROC")]
            lines.append(f"| {name} | {task} | {' | '.join(cells)} | {_figure(min(gains, default=None))} |")
    return lines


def _rates(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    lines = ["| held-out normal patients flagged | α | share | 95 % binomial interval |", "|---|---|---|---|"]
    for name, tasks in given.items():
        for task, result in tasks.items():
            test = result["test"]
            flagged, normals = test["flagged_normal_patients"]
            low, high = test["false_positive_interval"]
            lines.append(
                f"| {task}, given split, {name} | {test['alpha']} | {flagged} of {normals} = "
                f"{flagged / normals:.3f} | {low:.3f} to {high:.3f} |"
            )
    for task, found in stored.get("resplits", {}).items():
        shares = [row["flagged_normal_patients"] for row in found["splits"]]
        each = ", ".join(f"{flagged / normals:.3f}" for flagged, normals in shares)
        alpha = found["splits"][0]["alpha"]
        mean = sum(flagged / normals for flagged, normals in shares) / len(shares)
        lines.append(
            f"| {task}, {len(shares)} random splits by patient, {found['backbone']} | {alpha} | "
            f"{mean:.3f} on average | each split: {each} |"
        )
    return lines


def _choice(found: Mapping[str, Any]) -> list[str]:
    first = next(iter(found.values()))
    columns = [(task, kind) for task in first for kind in _FIGURES[:2] if kind in first[task]["figures"]]
    names = [f"{task}, {kind.split()[0]}" for task, kind in columns]
    lines = ["| AUROC, cross-validation on the train split | " + " | ".join(names) + " | mean |",
             "|---" * (len(names) + 2) + "|"]  # fmt: skip
    for name, tasks in found.items():
        values = [tasks[task]["figures"][kind] for task, kind in columns]
        mean = sum(v[0] for v in values) / len(values)
        lines.append(f"| {name} | " + " | ".join(f"{v[0]:.3f}" for v in values) + f" | {mean:.3f} |")
    return lines


def _figure(values: Sequence[float | None] | None) -> str:
    if values is None or values[0] is None:
        return "–"
    if values[1] is None:
        return f"{values[0]:.3f}"
    return f"{values[0]:.3f} ({values[1]:.3f} to {values[2]:.3f})"
