"""Drift: the false-alarm rate is what is stated, a real change is seen, scanners are apart."""

from __future__ import annotations

import numpy as np
import pytest

from daemon.records import ScoreRecord
from daemon.web.drift import ALPHA, BLOCK, blocks, by_scanner, distance, p_value


def _scores(values: np.ndarray, scanner: str = "") -> list[ScoreRecord]:
    return [
        ScoreRecord("1.2", 1, "0" * 16, "0" * 12, "1.3", "CT", "b", False, 9, v, v / 2, 0, float(i), scanner)
        for i, v in enumerate(map(float, values))
    ]


def test_nothing_changed_raises_few_alarms() -> None:
    """Of 400 pairs of blocks from one distribution no more are called drift than the rate allows."""
    rng = np.random.default_rng(7)
    pairs = rng.beta(2, 6, (400, 2, BLOCK))
    alarms = sum(p_value(list(a), list(b)) <= ALPHA for a, b in pairs)
    # 1 % of 400 is 4; more than 11 would happen by chance in 1 of 1,000 runs, and the seed is fixed.
    assert alarms <= 11


def test_p_values_of_equal_distributions_are_no_smaller_than_uniform() -> None:
    """At each level, at most that share of p-values lies below it (with room for 300 draws)."""
    rng = np.random.default_rng(3)
    found = np.array([p_value(list(a), list(b)) for a, b in rng.normal(size=(300, 2, BLOCK))])
    for level in (0.05, 0.1, 0.25, 0.5):
        assert np.mean(found <= level) <= level + 3 * np.sqrt(level * (1 - level) / 300)


def test_a_real_change_is_seen() -> None:
    """Scores that moved up by a standard deviation or two are drift; the block before is none."""
    rng = np.random.default_rng(2)
    values = np.concatenate([rng.beta(2, 8, 2 * BLOCK), rng.beta(5, 5, BLOCK), rng.beta(2, 8, 5)])
    found = blocks(_scores(values), ())
    assert [(b.complete, b.drifted) for b in found] == [
        (True, False),
        (True, False),
        (True, True),
        (False, False),
    ]
    assert found[0].p_first is None and found[3].p_first is None


def test_scanners_do_not_hide_each_other() -> None:
    """Each scanner has blocks of its own."""
    scores = _scores(np.full(3, 0.1), "a") + _scores(np.full(2, 0.9), "b")
    assert {key[2]: len(found) for key, found in by_scanner(scores).items()} == {"a": 3, "b": 2}


@pytest.mark.parametrize(
    ("one", "other", "expected"), [([0, 1], [0, 1], 0.0), ([0, 0], [1, 1], 1.0), ([0, 1], [1, 1], 0.5)]
)
def test_the_distance_is_the_largest_gap_of_the_distributions(
    one: list[float], other: list[float], expected: float
) -> None:
    """Kolmogorov-Smirnov: ties are taken as one step."""
    assert distance(one, other) == expected
