"""Figures of merit equal their definitions, and their intervals cover."""

from __future__ import annotations

import numpy as np
import pytest

from training.metrics import (
    Figure,
    Tally,
    auroc,
    average_precision,
    binomial_interval,
    difference,
    figure,
    mean_figure,
    pro,
    rates,
    sensitivity_at,
    tally,
)
from training.pixels import PixelCase, best_threshold, components, dice, edges_of, pixel_tally, thin

ONE = np.ones((1, 1))


def _units(seed: int, n: int = 80) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % 2 == 0
    scores = np.round(rng.normal(truth * 1.0, 1.0), 1)  # ties on purpose
    return scores, truth, [f"p{i // 2 * 2 + int(t)}" for i, t in enumerate(truth)]


def _pairs(scores: np.ndarray, truth: np.ndarray) -> float:
    p, n = scores[truth], scores[~truth]
    return float(np.mean((p[:, None] > n) + 0.5 * (p[:, None] == n)))


def test_auroc_is_the_share_of_ordered_pairs() -> None:
    """AUROC equals the share of pairs in order, ties one half."""
    scores, truth, patients = _units(0)
    assert figure(tally(scores, truth, patients), auroc).value == pytest.approx(_pairs(scores, truth))


def test_average_precision_is_the_mean_precision_at_each_hit() -> None:
    """AP equals the sum of precision times the step in recall, equal scores taken together."""
    scores, truth, patients = _units(1)
    expected, seen = 0.0, 0.0
    for cut in np.unique(scores)[::-1]:
        recall, precision = truth[scores >= cut].sum() / truth.sum(), truth[scores >= cut].mean()
        expected, seen = expected + (recall - seen) * precision, recall
    assert figure(tally(scores, truth, patients), average_precision).value == pytest.approx(expected)


def test_sensitivity_is_read_where_specificity_suffices() -> None:
    """The sensitivity is the best of the cuts that keep the asked specificity."""
    scores, truth = np.array([1, 2, 3, 4, 5, 6.0]), np.array([0, 0, 1, 0, 1, 1], bool)
    counts = tally(scores, truth, list("abcdef"))
    assert sensitivity_at(1.0)(counts, np.ones((1, 6)))[0] == pytest.approx(2 / 3)
    assert sensitivity_at(0.6)(counts, np.ones((1, 6)))[0] == pytest.approx(1.0)


def test_curves_run_from_nothing_to_everything() -> None:
    """ROC curves start at (0, 0) and end at (1, 1)."""
    fpr, tpr = rates(tally(*_units(2)), np.ones((1, 80)))
    assert (fpr[0, 0], tpr[0, 0], fpr[0, -1], tpr[0, -1]) == (0, 0, 1, 1)


def test_a_bootstrap_repeats_and_covers() -> None:
    """One seed gives one interval; over many samples, 95 % intervals hold the true AUROC about as often."""
    scores, truth, patients = _units(3)
    counts = tally(scores, truth, patients)
    assert figure(counts, auroc, seed=4) == figure(counts, auroc, seed=4)
    true, inside = 0.7602, 0  # P(N(1, 1) > N(0, 1))
    for seed in range(100):
        found = figure(tally(*_units(seed)), auroc, replicates=200)
        inside += found.low <= true <= found.high
    assert inside >= 87


def test_slices_of_one_patient_are_drawn_together() -> None:
    """Ten copies of each slice in the same patient leave the interval as wide as it was."""
    scores, truth, patients = _units(5, 40)
    once = figure(tally(scores, truth, patients), auroc)
    tenfold = figure(tally(np.tile(scores, 10), np.tile(truth, 10), patients * 10), auroc)
    assert (tenfold.low, tenfold.high) == pytest.approx((once.low, once.high))


def test_a_class_of_one_patient_has_no_interval() -> None:
    """With one patient of a class the value stands without an interval, and says so."""
    found = figure(tally([0.1, 0.2, 0.9], [False, False, True], ["a", "b", "c"]), auroc)
    assert (found.value, np.isnan(found.low)) == (1.0, True)
    assert "no interval" in str(found)
    assert str(Figure(float("nan"), 0, 0, 0)) == "–"


def test_paired_differences_are_narrower_than_their_parts() -> None:
    """A small gain on the same images is seen although both intervals overlap; other patients are refused."""
    scores, truth, patients = _units(6, 200)
    rng = np.random.default_rng(0)
    worse = scores - truth * 0.35 + rng.normal(0, 0.1, len(scores))
    ours, other = tally(scores, truth, patients), tally(worse, truth, patients)
    gain = difference(ours, other, auroc)
    assert 0 < gain.low < gain.value < gain.high
    assert figure(ours, auroc).low < figure(other, auroc).high
    with pytest.raises(ValueError, match="same patients"):
        difference(ours, tally(scores, truth, [p + "x" for p in patients]), auroc)


def _lesions(seed: int, n: int = 12) -> list[PixelCase]:
    rng = np.random.default_rng(seed)
    cases = []
    for i in range(n):
        mask = np.zeros((40, 40), bool)
        if i % 2:
            mask[4:8, 5:9] = mask[20:30, 22:36] = True
        values = np.clip(rng.normal(0.3 + 0.25 * mask, 0.15), 0, 1).astype(np.float32)
        cases.append(PixelCase(f"p{i}", values, mask))
    return cases


def _tally(cases: list[PixelCase]) -> Tally:
    edges = edges_of([c.map for c in cases], [c.map[c.mask] for c in cases if c.mask.any()])
    return pixel_tally(cases, edges, [c.patient for c in cases])


def test_pixel_figures_by_histogram_equal_the_exact_ones() -> None:
    """Binned AUROC and AP of pixels agree with the exact ones to three digits."""
    cases = _lesions(0)
    scores = np.concatenate([c.map.ravel() for c in cases])
    truth = np.concatenate([c.mask.ravel() for c in cases])
    exact, binned = tally(scores, truth, ["all"] * len(scores)), _tally(cases)
    every = np.ones((1, len(cases)))
    assert auroc(binned, every)[0] == pytest.approx(auroc(exact, ONE)[0], abs=1e-3)
    assert average_precision(binned, every)[0] == pytest.approx(average_precision(exact, ONE)[0], abs=2e-3)


def test_pro_counts_regions_not_pixels() -> None:
    """A missed small lesion beside a found big one costs half the PRO; a perfect map scores 1."""
    mask = np.zeros((60, 60), bool)
    mask[2:5, 2:5] = mask[20:50, 20:50] = True
    big_only = mask.copy()
    big_only[2:5, 2:5] = False
    normal = PixelCase("n", np.zeros((60, 60), np.float32), np.zeros_like(mask))
    every = np.ones((1, 2))
    perfect = _tally([PixelCase("a", mask.astype(np.float32), mask), normal])
    half = _tally([PixelCase("a", big_only.astype(np.float32), mask), normal])
    assert pro(perfect, every)[0] == pytest.approx(1.0, abs=1e-3)
    # Below the big lesion's score everything is flagged at once: the line from (0, 1/2) to (1, 1).
    assert pro(half, every)[0] == pytest.approx(0.5 + 0.5 * 0.3 / 2, abs=0.01)
    assert np.isnan(pro(tally([0, 1.0], [False, True], ["a", "b"]), every)[0])


def test_regions_touching_at_corners_are_one() -> None:
    """Components are 8-connected."""
    assert components(np.eye(4, dtype=bool)).max() == 1


def test_dice_and_its_best_threshold() -> None:
    """Dice is 1 for equal or empty pairs; the best threshold is found and never below its floor."""
    empty, mask = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    assert (dice(mask, mask), dice(empty, empty), dice(mask, empty)) == (1, 1, 0)
    values = np.where(mask, 0.7, 0.4).astype(np.float32)
    threshold, value = best_threshold([(values, mask)], 0.1)
    assert (0.4 < threshold <= 0.7, value) == (True, 1.0)
    assert best_threshold([(values, mask)], 0.8) == (0.8, 0.0)


def test_big_grids_are_thinned() -> None:
    """A 2000 px side comes down to at most 512."""
    assert thin(np.zeros((2000, 30), bool)).shape == (500, 8)


def test_binomial_intervals_are_exact() -> None:
    """Clopper-Pearson: textbook values, the ends, and large counts without underflow."""
    assert binomial_interval(1, 10) == pytest.approx((0.0025, 0.4450), abs=1e-4)
    assert binomial_interval(0, 20) == pytest.approx((0.0, 0.1684), abs=1e-4)
    assert binomial_interval(20, 20) == pytest.approx((0.8316, 1.0), abs=1e-4)
    assert binomial_interval(500, 5000) == pytest.approx((0.0918, 0.1087), abs=2e-4)
    assert binomial_interval(0, 0) == (0.0, 1.0)


def test_means_are_drawn_by_patient() -> None:
    """A mean over images has an interval over patients, none for one patient, NaN for nobody."""
    found = mean_figure([0.2, 0.4, 0.9], ["a", "a", "b"])
    assert (found.value, found.patients) == (pytest.approx(0.5), 2)
    assert np.isnan(mean_figure([0.5], ["a"]).low)
    assert np.isnan(mean_figure([], []).value)
