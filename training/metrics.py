"""Figures of merit from counts per patient and score: exact for images, histogram-based for many pixels.

Every figure is a function of per-patient counts that is linear in the patients, so a bootstrap over
patients is one matrix product: no pixel is looked at twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
REPLICATES = 1000
PRO_LIMIT = 0.3


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with its 95 % bootstrap interval over patients; NaN where the data cannot say.

    Parameters
    ----------
    value, low, high
        The figure and the 2.5 and 97.5 percentiles of its replicates.
    patients
        How many patients it rests on.
    """

    value: float
    low: float
    high: float
    patients: int

    def __str__(self) -> str:
        """Return as in ``0.91 (0.85 to 0.95)``."""
        if not np.isfinite(self.value):
            return "–"
        if not np.isfinite(self.low):
            return f"{self.value:.3f} (no interval)"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of positives and negatives per patient and score bin.

    Parameters
    ----------
    patients
        (n,) keys.
    stratum
        (n,) int: 1 the patient has positives alone, 2 negatives alone, 3 both; resampled within.
    scores
        (bins,) increasing: the lowest score that falls into each bin.
    positive, negative
        (n, bins) counts.
    region
        (n, bins) sum over the patient's regions of the share of the region that falls into the bin;
        None without regions.
    regions
        (n,) regions per patient; None without.
    """

    patients: tuple[str, ...]
    stratum: NDArray[np.intp]
    scores: Floats
    positive: Floats
    negative: Floats
    region: Floats | None = None
    regions: Floats | None = None


Metric = Callable[[Tally, Floats], Floats]


def tally(scores: ArrayLike, positive: ArrayLike, patients: Sequence[str]) -> Tally:
    """Count scored units, exactly: one bin per distinct score.

    Parameters
    ----------
    scores
        (n,) higher is more abnormal.
    positive
        (n,) bool.
    patients
        (n,) key of each unit's patient.
    """
    values, index = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True)
    keys = list(dict.fromkeys(patients))
    row = np.array([keys.index(p) for p in patients], dtype=np.intp)
    truth = np.asarray(positive, dtype=bool)
    counts = np.zeros((2, len(keys), len(values)))
    np.add.at(counts, (truth.astype(np.intp), row, index.ravel()), 1.0)
    return Tally(tuple(keys), strata(counts[1], counts[0]), values, counts[1], counts[0])


def strata(positive: Floats, negative: Floats) -> NDArray[np.intp]:
    """Return the stratum of each patient from its (n, bins) counts, as in :class:`Tally`."""
    has = (positive.sum(1) > 0, negative.sum(1) > 0)
    return np.asarray(np.where(has[0] & has[1], 3, np.where(has[0], 1, 2)), dtype=np.intp)


def resample(stratum: NDArray[np.intp], replicates: int, seed: int) -> Floats:
    """Return (replicates, n) multiplicities: patients drawn with replacement within their stratum."""
    rng = np.random.default_rng(seed)
    out = np.zeros((replicates, len(stratum)))
    for value in np.unique(stratum):
        rows = np.flatnonzero(stratum == value)
        out[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), replicates)
    return out


def auroc(counts: Tally, weights: Floats) -> Floats:
    """Return (B,) the probability that a positive scores above a negative, ties one half."""
    pos, neg = weights @ counts.positive, weights @ counts.negative  # (B, bins)
    below = np.cumsum(neg, axis=1) - neg
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((pos * (below + neg / 2)).sum(1) / (pos.sum(1) * neg.sum(1)))


def average_precision(counts: Tally, weights: Floats) -> Floats:
    """Return (B,) the area under precision over recall as a step function (no interpolation)."""
    pos, neg = (weights @ counts.positive)[:, ::-1], (weights @ counts.negative)[:, ::-1]
    true, false = np.cumsum(pos, axis=1), np.cumsum(neg, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(true + false > 0, true / (true + false), 1.0)
        return np.asarray((pos * precision).sum(1) / pos.sum(1))


def sensitivity_at(specificity: float) -> Metric:
    """Return the metric: highest sensitivity of any cut whose specificity is at least this."""

    def metric(counts: Tally, weights: Floats) -> Floats:
        fpr, tpr = rates(counts, weights)
        return np.asarray(np.where(fpr <= 1 - specificity + 1e-12, tpr, 0.0).max(axis=1), dtype=np.float64)

    return metric


def pro(counts: Tally, weights: Floats, limit: float = PRO_LIMIT) -> Floats:
    """Return (B,) the per-region overlap, averaged over false-positive rates of 0 to ``limit``.

    As in Bergmann et al., IJCV 2021 (MVTec AD): each connected region counts the same,
    whatever its size; trapezoids in the false-positive rate of pixels outside every region; 1 is best.
    """
    if counts.region is None or counts.regions is None:
        return np.full(len(weights), np.nan)
    neg = (weights @ counts.negative)[:, ::-1]
    overlap = (weights @ counts.region)[:, ::-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        fpr = np.cumsum(neg, axis=1) / neg.sum(1, keepdims=True)
        mean = np.cumsum(overlap, axis=1) / (weights @ counts.regions)[:, None]
    return np.array([_area(f, m, limit) for f, m in zip(fpr, mean, strict=True)])


def rates(counts: Tally, weights: Floats) -> tuple[Floats, Floats]:
    """Return false- and true-positive rates (B, bins + 1), from no flag at all to everything flagged."""
    pos, neg = (weights @ counts.positive)[:, ::-1], (weights @ counts.negative)[:, ::-1]
    zero = np.zeros((len(weights), 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        tpr = np.hstack([zero, np.cumsum(pos, axis=1) / pos.sum(1, keepdims=True)])
        fpr = np.hstack([zero, np.cumsum(neg, axis=1) / neg.sum(1, keepdims=True)])
    return fpr, tpr


def figure(counts: Tally, metric: Metric, *, replicates: int = REPLICATES, seed: int = 0) -> Figure:
    """Return a metric with its interval; no interval where a class has fewer than two patients.

    Parameters
    ----------
    counts
        Of the method.
    metric
        Such as :func:`auroc`.
    replicates, seed
        Of the bootstrap.
    """
    value = float(metric(counts, np.ones((1, len(counts.patients))))[0])
    if not _both_twice(counts):
        return Figure(value, np.nan, np.nan, len(counts.patients))
    drawn = metric(counts, resample(counts.stratum, replicates, seed))
    return Figure(value, *_interval(drawn), len(counts.patients))


def difference(
    ours: Tally, other: Tally, metric: Metric, *, replicates: int = REPLICATES, seed: int = 0
) -> Figure:
    """Return ours minus other with its interval: the same patients are drawn for both.

    Raises
    ------
    ValueError
        The two methods did not score the same patients.
    """
    if ours.patients != other.patients or not np.array_equal(ours.stratum, other.stratum):
        raise ValueError("a paired difference needs the same patients in the same order in both methods")
    ones = np.ones((1, len(ours.patients)))
    value = float(metric(ours, ones)[0] - metric(other, ones)[0])
    if not _both_twice(ours):
        return Figure(value, np.nan, np.nan, len(ours.patients))
    weights = resample(ours.stratum, replicates, seed)
    return Figure(value, *_interval(metric(ours, weights) - metric(other, weights)), len(ours.patients))


def mean_figure(
    values: ArrayLike, patients: Sequence[str], *, replicates: int = REPLICATES, seed: int = 0
) -> Figure:
    """Return the mean of per-image values, such as Dice, with its interval over patients."""
    each = np.asarray(values, dtype=np.float64)
    keys = list(dict.fromkeys(patients))
    if not keys:
        return Figure(np.nan, np.nan, np.nan, 0)
    row = np.array([keys.index(p) for p in patients], dtype=np.intp)
    total, count = np.bincount(row, each, len(keys)), np.bincount(row, minlength=len(keys))
    if len(keys) < 2:
        return Figure(float(each.mean()), np.nan, np.nan, len(keys))
    weights = resample(np.zeros(len(keys), dtype=np.intp), replicates, seed)
    return Figure(float(each.mean()), *_interval((weights @ total) / (weights @ count)), len(keys))


def binomial_interval(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Return the exact (Clopper-Pearson) interval of a rate."""
    if not trials:
        return 0.0, 1.0
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else _root(lambda p: 1 - _below(successes, trials, p), tail)
    high = 1.0 if successes == trials else _root(lambda p: -_below(successes + 1, trials, p), -tail)
    return low, high


def _below(successes: int, trials: int, p: float) -> float:
    """P(X < successes) for a binomial X."""
    if p in (0.0, 1.0):
        return float(p == 0.0)
    k = np.arange(1, successes)
    steps = np.log((trials - k + 1) / k) + np.log(p) - np.log1p(-p)
    logs = trials * np.log1p(-p) + np.concatenate([[0.0], np.cumsum(steps)])
    return float(np.exp(logs).sum())


def _root(rising: Callable[[float], float], target: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return (low + high) / 2


def _both_twice(counts: Tally) -> bool:
    return min(int((counts.positive.sum(1) > 0).sum()), int((counts.negative.sum(1) > 0).sum())) >= 2


def _interval(drawn: Floats) -> tuple[float, float]:
    usable = drawn[np.isfinite(drawn)]
    if not usable.size:
        return np.nan, np.nan
    low, high = np.percentile(usable, (2.5, 97.5))
    return float(low), float(high)


def _area(fpr: Floats, overlap: Floats, limit: float) -> float:
    """Normalised area under a curve that starts at (0, 0), up to ``limit``."""
    if not np.isfinite(fpr).all() or not np.isfinite(overlap).all():
        return float("nan")
    x, y = np.concatenate([[0.0], fpr]), np.concatenate([[0.0], overlap])
    cut = int(np.searchsorted(x, limit, side="right"))
    end = float(np.interp(limit, x, y))
    return float(np.trapezoid(np.append(y[:cut], end), np.append(x[:cut], limit)) / limit)
