"""Three real tasks through training and evaluation: figures, baselines, false positives → JSON and docs.

    python -m benchmarks.real_tasks                 all tasks with the chosen backbone, written to docs
    python -m benchmarks.real_tasks --choose        every candidate backbone on the train splits alone

The tasks lie below ``SITE_IMAGES`` (default ``../shared/images``), each as
``<task>/{train,test}/{normal,abnormal,mask}`` with a manifest.csv.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from adapters.backbone import TINY, Backbone, BackboneSpec, load_backbone
from adapters.slices import Normalisation
from benchmarks.real_tasks_page import page_tables
from training.baselines import baselines_on
from training.cases import Case, SiteData
from training.evaluate import Evaluation, evaluate_bundle
from training.metrics import Figure
from training.options import Options
from training.site import read_site
from training.train import train

ROOT = Path(__file__).parent.parent
IMAGES = Path(os.environ.get("SITE_IMAGES", ROOT.parent / "shared" / "images"))
RESULTS = ROOT / "benchmarks" / "results" / "real_tasks.json"
PAGE = ROOT / "docs" / "real-tasks.md"
MARKS = ("<!-- figures: written by benchmarks/real_tasks.py -->", "<!-- end of figures -->")
SHOTS = 16
ALPHA = 0.1


@dataclass(frozen=True, slots=True)
class Task:
    """A task and its operating point: the false-positive rate that its normal train patients support."""

    class_name: str
    alpha: float = ALPHA


TASKS: Mapping[str, Task] = {
    "breast_us": Task("Breast ultrasound"),
    # Two train patients: 1 / (2 + 1) is the smallest rate that they can support.
    "brain_tumour_mri": Task("Brain", 0.34),
    "cxr_pneumonia_child": Task("Chest X-ray film"),
}


def _config(size: int, patch: int, layers: int, width: int) -> dict[str, Any]:
    vision = {"image_size": size, "layers": layers, "width": width, "head_width": 32, "patch_size": patch}
    return {**TINY, "vision_cfg": vision}


# All with seeded random weights; the first is the one that `model.backbone = "tiny"` names.
BACKBONES: Mapping[str, BackboneSpec] = {
    "tiny": BackboneSpec(),
    "192px-p8-2x96": BackboneSpec(model="192px-p8-2x96", config=_config(192, 8, 2, 96)),
    "128px-p8-2x192": BackboneSpec(model="128px-p8-2x192", config=_config(128, 8, 2, 192)),
    "224px-p16-2x192": BackboneSpec(model="224px-p16-2x192", config=_config(224, 16, 2, 192)),
}
# Best mean of image and pixel AUROC over the tasks in cross-validation on the train splits (--choose).
CHOSEN = "192px-p8-2x96"


def main() -> None:
    """Run, write the results, and put the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--choose", action="store_true", help="compare backbones on the train splits")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--backbones", nargs="*", choices=list(BACKBONES), help="default: the chosen, or all")
    parser.add_argument("--resplits", type=int, default=5, help="random splits by patient beside the given")
    parser.add_argument("--table", action="store_true", help="only write the page from the stored results")
    options = parser.parse_args()
    if options.choose:
        for name in options.backbones or BACKBONES:
            for task in options.tasks:
                record(train_split(name, task), "train_split", name, task)
    elif not options.table:
        for name in options.backbones or [CHOSEN]:
            for task in options.tasks:
                record(given_split(name, task), "given_split", name, task)
        for task in options.tasks:
            if TASKS[task].alpha == ALPHA and options.resplits:
                for name in options.backbones or [CHOSEN]:
                    resplits(name, task, options.resplits)
    record(CHOSEN, "backbone")
    write_page(json.loads(RESULTS.read_text()))


def record(value: object, *keys: str) -> None:
    """Put one result into the stored ones."""
    stored: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    stored |= {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": _machine(), "shots_per_class": SHOTS}
    place = stored
    for key in keys[:-1]:
        place = place.setdefault(key, {})
    place[keys[-1]] = value
    RESULTS.write_text(json.dumps(stored, indent=1) + "\n")


def _machine() -> str:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.machine(),
    )  # fmt: skip
    return f"{os.cpu_count()} cores, {model}, no GPU"


def read_task(task: str, backbone: Backbone) -> SiteData:
    """Read both splits of a task as one site, so that a patient has one key in both."""
    pixels = Normalisation(kind="object", size_px=backbone.image_size_px)
    return read_site(IMAGES / task, pixels, max_frame_pixels=1 << 22)


def split(site: SiteData) -> tuple[SiteData, SiteData]:
    """Return the given train and test split.

    Raises
    ------
    ValueError
        A patient stands on both sides.
    """
    parts = [
        tuple(case for case in site.cases if case.shots and case.shots[0].key.startswith(f"{name}/"))
        for name in ("train", "test")
    ]
    shared = {c.patient_key for c in parts[0]} & {c.patient_key for c in parts[1]}
    if shared:
        raise ValueError(f"{len(shared)} patients stand on both sides of the split")
    return SiteData(parts[0], ()), SiteData(parts[1], ())


def train_split(name: str, task: str) -> dict[str, Any]:
    """Cross-validate a backbone on the train split alone: what the choice of a backbone may look at."""
    backbone = load_backbone(BACKBONES[name], "cpu", "fp32")
    started = time.monotonic()
    outcome = _train(split(read_task(task, backbone))[0], backbone, task)
    return {**outcome.evaluation.as_dict(), "seconds": round(time.monotonic() - started)}


def _train(site: SiteData, backbone: Backbone, task: str, seed: int = 0) -> Any:
    return train(
        site,
        backbone,
        name=task,
        class_name=TASKS[task].class_name,
        normalisation=Normalisation(kind="object", size_px=backbone.image_size_px),
        shots_per_class=SHOTS,
        alpha=TASKS[task].alpha,
        seed=seed,
        progress=lambda stage, epoch, epochs, loss: (
            print(f"  {task} {stage} {epoch}/{epochs} {loss:.3f}", flush=True) if epoch == epochs else None
        ),
    )


def given_split(name: str, task: str) -> dict[str, Any]:
    """Fit on the train split, evaluate on the test split, with baselines and paired differences."""
    backbone = load_backbone(BACKBONES[name], "cpu", "fp32")
    fitted, other = split(read_task(task, backbone))
    started = time.monotonic()
    outcome = _train(fitted, backbone, task)
    seconds = time.monotonic() - started
    evaluation = evaluate_bundle(outcome.bundle, backbone, other)
    found, gains = baselines_on(
        evaluation, fitted, other, backbone, class_name=TASKS[task].class_name, shots_per_class=SHOTS,
        options=Options(pixel_fpr=0.01),
    )  # fmt: skip
    return {
        "train": outcome.evaluation.as_dict(),
        "test": _with_interval(evaluation),
        "patients": {"train": _patients(fitted.cases), "test": _patients(other.cases)},
        "calibrated_on": outcome.provenance["calibrated_on"],
        "baselines": {name: _with_interval(e) for name, e in found.items()},
        "differences": {n: {k: _plain(f) for k, f in figures.items()} for n, figures in gains.items()},
        "warnings": list(outcome.warnings),
        "seconds": round(seconds),
    }


def resplits(name: str, task: str, count: int) -> None:
    """Pool both splits and deal the patients anew: does the false-positive rate hold where splits are alike?

    Each split has as many normal and abnormal patients to fit and calibrate on as the given one.
    """
    backbone = load_backbone(BACKBONES[name], "cpu", "fp32")
    site = read_task(task, backbone)
    sizes = _patients(split(site)[0].cases)
    rows: list[dict[str, Any]] = []
    for seed in range(1, count + 1):
        fitted, other = _deal(site.cases, sizes, seed)
        evaluation = evaluate_bundle(_train(fitted, backbone, task, seed).bundle, backbone, other)
        rows.append({"seed": seed, **_with_interval(evaluation)})
        record({"backbone": name, "splits": rows}, "resplits", task)


def _deal(cases: Sequence[Case], sizes: Sequence[int], seed: int) -> tuple[SiteData, SiteData]:
    normal = {c.patient_key for c in cases if not c.abnormal}
    abnormal = {c.patient_key for c in cases if c.abnormal}
    rng = random.Random(seed)
    inside: set[str] = set()
    for group, size in ((abnormal, sizes[1]), (normal - abnormal, sizes[0])):
        inside |= set(rng.sample(sorted(group), min(size, len(group) // 2)))
    parts = [tuple(c for c in cases if (c.patient_key in inside) == side) for side in (True, False)]
    return SiteData(parts[0], ()), SiteData(parts[1], ())


def _patients(cases: Sequence[Case]) -> list[int]:
    return [
        len({c.patient_key for c in cases for s in c.shots if s.label == k}) for k in ("normal", "abnormal")
    ]


def _with_interval(evaluation: Evaluation) -> dict[str, Any]:
    interval = [round(v, 4) for v in evaluation.false_positive_interval]
    return {**evaluation.as_dict(), "false_positive_interval": interval}


def _plain(figure: Figure) -> list[float | None]:
    values = (figure.value, figure.low, figure.high)
    return [round(float(v), 4) if np.isfinite(v) else None for v in values]


def write_page(stored: Mapping[str, Any]) -> None:
    """Replace what stands between the marks of the page."""
    text = PAGE.read_text()
    before, rest = text.split(MARKS[0])
    PAGE.write_text(f"{before}{MARKS[0]}\n\n{page_tables(stored)}\n{MARKS[1]}{rest.split(MARKS[1])[1]}")


if __name__ == "__main__":
    main()
