"""The report that a person reads: one self-contained HTML file, and its figures as PNG beside it."""

from __future__ import annotations

import base64
import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from training.cases import SiteData
from training.evaluate import Evaluation
from training.metrics import Figure
from training.report_figures import draw_figures, encode
from training.report_sheet import as_picture, contact_sheet

TITLES = {
    "roc": "ROC, images",
    "pr": "Precision over recall, images",
    "pixel_roc": "ROC, pixels",
    "pixel_pr": "Precision over recall, pixels",
    "histogram": "Scores of held-out images",
    "calibration": "Calibration, patients",
}
ALTERNATIVES = {
    "roc": "Sensitivity over false-positive rate of images with its interval over patients.",
    "pr": "Precision over recall of images with its interval over patients.",
    "pixel_roc": "Sensitivity over false-positive rate of pixels with its interval over patients.",
    "pixel_pr": "Precision over recall of pixels with its interval over patients.",
    "histogram": "Histograms of the scores of normal and abnormal images with the threshold.",
    "calibration": "Share of normal and abnormal patients flagged over the allowed false-positive rate.",
}


@dataclass(frozen=True, slots=True)
class ReportContent:
    """What a report tells.

    Parameters
    ----------
    name, version
        Of the bundle; the version may be empty.
    site
        The cases, for the table.
    evaluation
        The figures and records.
    warnings
        Sentences.
    provenance
        JSON values.
    baselines, differences
        Figures of the methods without adapters, and ours minus theirs.
    held_out
        How the images were held out, in a sentence.
    created
        ISO date and time; "" for now.
    """

    name: str
    version: str
    site: SiteData
    evaluation: Evaluation
    warnings: Sequence[str] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    baselines: Mapping[str, Evaluation] = field(default_factory=dict)
    differences: Mapping[str, Mapping[str, Figure]] = field(default_factory=dict)
    held_out: str = (
        "Every image was scored by a model that had seen nothing of its patient "
        "(cross-validation grouped by patient)."
    )
    created: str = ""


def write_report(folder: Path, content: ReportContent) -> Path:
    """Write report.html, the figures as PNG and cases.csv; return the HTML file's path.

    The HTML and the PNGs name cases by number. ``cases.csv`` tells which number is which case of the site
    folder, and stays with the site.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {case.key: i for i, case in enumerate(content.site.cases, start=1)}
    canvases = draw_figures(content.evaluation, content.baselines)
    figures = []
    for stem in (s for s in TITLES if s in canvases):
        (folder / f"{stem}.png").write_bytes(encode(canvases[stem], "png"))
        source = _uri(encode(canvases[stem], "svg"), "image/svg+xml")
        figures.append({"title": TITLES[stem], "source": source, "alternative": ALTERNATIVES[stem]})
    groups = contact_sheet(content.evaluation, numbers)
    as_picture(groups).save(folder / "contact_sheet.png")
    sheet = {
        word: [{"caption": t.caption, "source": _uri(t.jpeg(), "image/jpeg")} for t in tiles]
        for word, tiles in groups.items()
    }
    page = _render(content, figures=figures, sheet=sheet, cases=_cases(content, numbers))
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    with (folder / "cases.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("number", "case"), *((i, key) for key, i in numbers.items())])
    return path


def _render(content: ReportContent, **parts: Any) -> str:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((files("training") / "templates" / "report.html").read_text("utf-8"))
    evaluation = content.evaluation
    low, high = evaluation.false_positive_interval
    return template.render(
        content=content,
        created=content.created or datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        headline=_headline(evaluation),
        false_positives=f"{evaluation.flagged_normal_patients} of {evaluation.normal_patients}",
        false_positive_interval=f"{low:.1%} to {high:.1%}",
        smallest=1 / (evaluation.normal_patients + 1),
        counts=_counts(content),
        methods=_methods(content),
        gains=_gains(content),
        skipped=Counter(s.reason for s in content.site.skipped).most_common(),
        provenance=_provenance(content.provenance),
        **parts,
    )


def _headline(evaluation: Evaluation) -> list[dict[str, str]]:
    out = []
    for name, f in evaluation.figures.items():
        between = f"{f.low:.3f} to {f.high:.3f}" if np.isfinite(f.low) else "no interval: too few patients"
        value = f"{f.value:.3f}" if np.isfinite(f.value) else "–"
        out.append({"name": name, "value": value, "interval": between, "patients": str(f.patients)})
    return out


def _counts(content: ReportContent) -> dict[str, int]:
    records = content.evaluation.records
    return {
        "cases": len({r.case.key for r in records}),
        "patients": len({r.patient for r in records}),
        "normal": sum(not r.abnormal for r in records),
        "abnormal": sum(r.abnormal for r in records),
        "outlined": sum(r.abnormal and r.shot.mask is not None for r in records),
    }


def _methods(content: ReportContent) -> list[tuple[str, list[str]]]:
    if not content.baselines:
        return []
    names = list(content.evaluation.figures)
    rows = [("adapters", content.evaluation), *content.baselines.items()]
    return [(name, [str(e.figures[n]) if n in e.figures else "–" for n in names]) for name, e in rows]


def _gains(content: ReportContent) -> list[tuple[str, str, str, bool]]:
    return [
        (name, figure, f"{d.value:+.3f} ({d.low:+.3f} to {d.high:+.3f})", d.low > 0)
        for name, found in content.differences.items()
        for figure, d in found.items()
        if np.isfinite(d.low)
    ]


def _cases(content: ReportContent, numbers: Mapping[str, int]) -> list[dict[str, Any]]:
    best: dict[str, float] = {}
    for r in content.evaluation.records:
        best[r.case.key] = max(r.score, best.get(r.case.key, 0.0))
    patients = {p: i for i, p in enumerate(dict.fromkeys(c.patient_key for c in content.site.cases), start=1)}
    rows = []
    for case in content.site.cases:
        score = best.get(case.key)
        flagged = score is not None and score >= content.evaluation.slice_threshold
        rows.append(
            {
                "number": numbers[case.key],
                "patient": patients[case.patient_key],
                "kind": " ".join(w for w in (case.modality, case.body_part) if w) or "–",
                "label": "abnormal" if case.abnormal else "normal",
                "normal": sum(s.label == "normal" for s in case.shots),
                "abnormal": sum(s.label == "abnormal" for s in case.shots),
                "outlined": sum(s.mask is not None for s in case.shots),
                "unused": case.unused,
                "sources": ", ".join(case.sources) or "–",
                "score": "–" if score is None else f"{score:.2f}",
                "verdict": "–" if score is None else "flagged" if flagged else "not flagged",
                "right": score is None or flagged == case.abnormal,
            }
        )
    return rows


def _provenance(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    plain = {k: v for k, v in values.items() if k != "evaluation"}
    return [
        (k.replace("_", " "), v if isinstance(v, str) else json.dumps(v, default=str))
        for k, v in plain.items()
    ]


def _uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
