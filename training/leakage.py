"""Why good figures may be too good: shared patients, copies, burned-in text, trivial cues."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from training.cues import Cues
from training.evaluate import Evaluation
from training.metrics import auroc, tally
from training.pool import Pool

# Correlation of fine thumbnails above which two images are called copies of each other.
NEAR_DUPLICATE = 0.97
# A cue this far from chance is worth naming even where the model is better.
SUSPECT = 0.75
# A cue is named "as good as the model" within this much of the model's AUROC.
MARGIN = 0.02


def leakage_warnings(pool: Pool, evaluation: Evaluation) -> list[str]:
    """Return one sentence with its number per finding.

    Parameters
    ----------
    pool
        Images with their cues.
    evaluation
        Of the same images: the model that cues are compared with.
    """
    ours = evaluation.figures["image AUROC"].value
    return [
        *shared_patients(pool.patients, pool.labels),
        *near_duplicates(pool.cues, pool.patients, pool.labels),
        *trivial_cues(pool.cues, pool.labels, ours),
    ]


def shared_patients(patients: Sequence[str], labels: NDArray[np.intp]) -> Iterator[str]:
    """Yield a warning where patients have both normal and abnormal images."""
    having = [{p for p, label in zip(patients, labels, strict=True) if label == k} for k in (0, 1)]
    both, of_all = len(having[0] & having[1]), len(having[0] | having[1])
    if both:
        yield (
            f"{both} of {of_all} patients have normal and abnormal images: their normal images come from "
            f"patients with disease, and say little about healthy ones."
        )


def near_duplicates(cues: Sequence[Cues], patients: Sequence[str], labels: NDArray[np.intp]) -> Iterator[str]:
    """Yield warnings for images of different patients that are equal or nearly so."""
    thumbs = np.stack([c.thumb for c in cues])
    pairs = equal = crossing = 0
    best = 0.0
    for start in range(0, len(thumbs), 512):
        alike = thumbs[start : start + 512] @ thumbs.T
        for i, j in zip(*np.nonzero(alike > NEAR_DUPLICATE), strict=True):
            a, b = start + int(i), int(j)
            if a >= b or patients[a] == patients[b]:
                continue
            pairs += 1
            equal += cues[a].digest == cues[b].digest
            crossing += bool(labels[a] != labels[b])
            best = max(best, float(alike[i, j]))
    if pairs:
        yield (
            f"{pairs} pairs of images of different patients are near-duplicates (correlation up to "
            f"{best:.3f}; {equal} identical, {crossing} with opposite labels): if they are of one patient, "
            f"give both the same patient, or the figures are too good."
        )


def trivial_cues(cues: Sequence[Cues], labels: NDArray[np.intp], ours: float) -> Iterator[str]:
    """Yield a warning per cue that separates the classes about as well as the model does, or suspiciously."""
    for name, value in sorted(cue_aurocs(cues, labels).items(), key=lambda item: -item[1]):
        if name == "burned-in text" and value >= 0.65:
            yield (
                f"Burned-in text or markers at the border alone separate the classes with AUROC {value:.3f}: "
                f"crop or mask them."
            )
        elif value >= ours - MARGIN and value >= 0.6:
            yield (
                f"{name.capitalize()} alone separates the classes with AUROC {value:.3f}, as well as the "
                f"model ({ours:.3f}): the model may have learnt nothing else."
            )
        elif value >= SUSPECT:
            yield f"{name.capitalize()} alone separates the classes, AUROC {value:.3f} (model {ours:.3f})."


def cue_aurocs(cues: Sequence[Cues], labels: NDArray[np.intp]) -> dict[str, float]:
    """Return the image AUROC of each cue, in whichever direction is better.

    A word such as the manufacturer is scored by the share of abnormal images among the *other* images that
    have it, so that rare words gain nothing by chance.
    """
    out: dict[str, float] = {}
    for name in cues[0].numbers:
        value = _auroc([c.numbers[name] for c in cues], labels)
        out[name] = max(value, 1 - value)
    for name in sorted({key for c in cues for key in c.words}):
        words = [c.words.get(name, "") for c in cues]
        if len(set(words)) > 1:
            out[name] = _auroc(_leave_one_out(words, labels), labels)
    return out


def _leave_one_out(words: Sequence[str], labels: NDArray[np.intp]) -> list[float]:
    total = dict.fromkeys(words, 0)
    hits = dict(total)
    for word, label in zip(words, labels, strict=True):
        total[word] += 1
        hits[word] += int(label)
    share = float(labels.mean())
    # Two images' worth of the overall share: a word seen once says nothing.
    return [
        (hits[w] - int(label) + 2 * share) / (total[w] - 1 + 2)
        for w, label in zip(words, labels, strict=True)
    ]


def _auroc(values: Sequence[float], labels: NDArray[np.intp]) -> float:
    counts = tally(np.round(values, 6), labels == 1, ["all"] * len(labels))
    return float(auroc(counts, np.ones((1, 1)))[0])
