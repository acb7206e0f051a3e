"""Figures of the report: ROC, precision over recall, score histograms, calibration."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray

from training.evaluate import Evaluation
from training.metrics import Tally, binomial_interval, rates, resample

Floats = NDArray[np.float64]
# Colour-blind safe (Okabe and Ito): normal blue, abnormal vermilion.
NORMAL, ABNORMAL, INK, GRID = "#0072b2", "#d55e00", "#22303c", "#dfe5ea"
REPLICATES = 300
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.edgecolor": "#8795a1",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "axes.axisbelow": True,
    "legend.framealpha": 0.88,
    "legend.edgecolor": "none",
    "legend.fontsize": 8.5,
    "svg.hashsalt": "report",
}


def draw_figures(evaluation: Evaluation, baselines: Mapping[str, Evaluation]) -> dict[str, Canvas]:
    """Return the figures by file stem; pixel curves are missing where there are no masks."""
    out = {
        "roc": _draw(lambda ax: _roc(ax, evaluation.image, {k: v.image for k, v in baselines.items()})),
        "pr": _draw(lambda ax: _pr(ax, evaluation.image)),
        "histogram": _draw(lambda ax: _histogram(ax, evaluation)),
        "calibration": _draw(lambda ax: _calibration(ax, evaluation)),
    }
    if evaluation.pixel is not None:
        pixels = {k: v.pixel for k, v in baselines.items() if v.pixel is not None}
        pixel = evaluation.pixel
        out["pixel_roc"] = _draw(lambda ax: _roc(ax, pixel, pixels))
        out["pixel_pr"] = _draw(lambda ax: _pr(ax, pixel))
    return out


def encode(canvas: Canvas, kind: str) -> bytes:
    """Return a figure as ``svg`` or ``png`` without a date inside, so that it repeats."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context(STYLE):
        canvas.savefig(buffer, format=kind, dpi=200, metadata=metadata)
    return buffer.getvalue()


def _draw(paint: Callable[[Axes], None]) -> Canvas:
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(4.0, 3.4), layout="constrained")
        paint(canvas.add_subplot())
    return canvas


def _roc(ax: Axes, counts: Tally, baselines: Mapping[str, Tally]) -> None:
    x = np.linspace(0, 1, 201)
    fpr, tpr = rates(counts, np.ones((1, len(counts.patients))))
    low, high = _band(counts, x, lambda f, t: np.interp(x, f, t))
    ax.fill_between(x, low, high, color=ABNORMAL, alpha=0.18, lw=0, label="95 % interval over patients")
    for (name, other), dash in zip(baselines.items(), ((1, 1), (4, 2), (5, 1, 1, 1)), strict=False):
        f, t = rates(other, np.ones((1, len(other.patients))))
        ax.plot(f[0], t[0], color="#687885", lw=1.3, ls=(0, dash), label=name)
    ax.plot(fpr[0], tpr[0], color=ABNORMAL, lw=2, label="adapters")
    ax.plot([0, 1], [0, 1], color="#b8c2cc", lw=1)
    ax.set(xlabel="False-positive rate", ylabel="Sensitivity", xlim=(0, 1), ylim=(0, 1.01))
    ax.legend(loc="lower right")


def _pr(ax: Axes, counts: Tally) -> None:
    x = np.linspace(0.005, 1, 200)
    share = counts.positive.sum() / (counts.positive.sum() + counts.negative.sum())

    def curve(fpr: Floats, tpr: Floats) -> Floats:
        return np.asarray(np.interp(x, tpr, _precision(fpr, tpr, share)))

    low, high = _band(counts, x, curve)
    fpr, tpr = rates(counts, np.ones((1, len(counts.patients))))
    ax.fill_between(x, low, high, color=ABNORMAL, alpha=0.18, lw=0, label="95 % interval over patients")
    ax.plot(x, curve(fpr[0], tpr[0]), color=ABNORMAL, lw=2, label="adapters")
    ax.axhline(share, color="#687885", lw=1.2, ls="--", label=f"chance ({share:.1%})")
    ax.set(xlabel="Sensitivity (recall)", ylabel="Precision", xlim=(0, 1), ylim=(0, 1.02))
    ax.legend(loc="best")


def _precision(fpr: Floats, tpr: Floats, share: float) -> Floats:
    hits, alarms = share * tpr, (1 - share) * fpr
    return np.where(hits + alarms > 0, hits / np.maximum(hits + alarms, 1e-300), 1.0)


def _band(counts: Tally, x: Floats, curve: Callable[[Floats, Floats], Floats]) -> tuple[Floats, Floats]:
    fpr, tpr = rates(counts, resample(counts.stratum, REPLICATES, 0))
    drawn = np.array([curve(f, t) for f, t in zip(fpr, tpr, strict=True) if np.isfinite(f + t).all()])
    if not len(drawn):
        return np.full(len(x), np.nan), np.full(len(x), np.nan)
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    return low, high


def _histogram(ax: Axes, evaluation: Evaluation) -> None:
    bins = [float(v) for v in np.linspace(0, 1, 31)]
    for word, colour, truth in (("normal", NORMAL, False), ("abnormal", ABNORMAL, True)):
        scores = [r.score for r in evaluation.records if r.abnormal == truth]
        label = f"{word} ({len(scores)} images)"
        ax.hist(scores, bins, color=colour, alpha=0.55, label=label, edgecolor="white", lw=0.5)
    cut = evaluation.slice_threshold
    ax.axvline(cut, color=INK, lw=1.5, ls="--", label=f"threshold {cut:.2f}")
    ax.set(xlabel="Calibrated image score, held out", ylabel="Images", xlim=(0, 1))
    ax.grid(axis="x", visible=False)
    ax.legend(loc="upper center")


def _calibration(ax: Axes, evaluation: Evaluation) -> None:
    x = np.linspace(0, 1, 201)
    normal = np.asarray(evaluation.normal_p)
    if normal.size:
        counts = [int((normal <= a + 1e-12).sum()) for a in x]
        bounds = np.array([binomial_interval(k, normal.size) for k in counts])
        ax.fill_between(x, *bounds.T, color=NORMAL, alpha=0.15, lw=0, label="95 % binomial interval")
        share = np.array(counts) / normal.size
        ax.step(x, share, where="post", color=NORMAL, lw=2, label="normal patients flagged")
    if evaluation.abnormal_p:
        p = np.asarray(evaluation.abnormal_p)
        flagged = [float((p <= a + 1e-12).mean()) for a in x]
        ax.step(x, flagged, where="post", color=ABNORMAL, lw=2, label="abnormal patients flagged")
    ax.plot([0, 1], [0, 1], color="#b8c2cc", lw=1)
    ax.axvline(evaluation.alpha, color=INK, lw=1.5, ls="--", label=f"operating point {evaluation.alpha:g}")
    ax.set(
        xlabel="Allowed false-positive rate α", ylabel="Share flagged at p ≤ α", xlim=(0, 1), ylim=(0, 1.01)
    )
    ax.legend(loc="lower right")
