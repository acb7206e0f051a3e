"""Drift: whether scores of new series still look like those before, by a test with a known false-alarm rate.

Per bundle version and scanner the scored series (the highest slice score of each) are cut into blocks
of 30 in order of time. A complete block is compared once with two references, by a permutation test
on the Kolmogorov-Smirnov distance:

- with the **first block** of this bundle and scanner: if nothing changed, blocks are exchangeable
  and the test says "drift" with a probability of at most ``ALPHA`` per block;
- with the **calibration set** of the bundle, its held-out normal patients: this also differs where
  the site has more abnormal patients than the calibration set, and is shown, not raised.

Each block is tested once, so that looking more often raises no more alarms. The permutations are
seeded: everybody sees the same verdict.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from daemon.log import event
from daemon.records import ScoreRecord

if TYPE_CHECKING:
    from daemon.catalogue import Catalogue
    from daemon.web.bundles import Bundles

BLOCK = 30
ALPHA = 0.01
_PERMUTATIONS = 1999
_SPAN_S = 180 * 86_400.0
_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Block:
    """So many series in a row, and how unlike the references they are.

    Parameters
    ----------
    start, end
        Seconds since the epoch of the first and last series.
    scores
        The highest slice score of each series.
    p_first, p_calibration
        p-values; None for the first block, and where there is no calibration set.
    """

    start: float
    end: float
    scores: tuple[float, ...]
    p_first: float | None
    p_calibration: float | None

    @property
    def drifted(self) -> bool:
        """Whether the block is unlike the first one."""
        return self.p_first is not None and self.p_first <= ALPHA

    @property
    def complete(self) -> bool:
        """Whether it has all its series, and was tested."""
        return len(self.scores) == BLOCK


def distance(one: ArrayLike, other: ArrayLike) -> float:
    """Kolmogorov-Smirnov distance of two samples: the largest difference of their distributions."""
    a, b = np.sort(np.asarray(one, float)), np.sort(np.asarray(other, float))
    at = np.concatenate([a, b])
    share_a = np.searchsorted(a, at, side="right") / a.size
    share_b = np.searchsorted(b, at, side="right") / b.size
    return float(np.max(np.abs(share_a - share_b)))


def p_value(one: Sequence[float], other: Sequence[float], seed: int = 0) -> float:
    """Permutation p-value (1 + #{permuted distance >= seen}) / (1 + permutations); exact at its level."""
    return _p_value(tuple(one), tuple(other), seed)


@lru_cache(maxsize=4096)
def _p_value(one: tuple[float, ...], other: tuple[float, ...], seed: int) -> float:
    pool = np.asarray([*one, *other], dtype=float)
    seen = distance(one, other)
    rng = np.random.default_rng(seed)
    order = np.argsort(pool, kind="stable")
    sorted_pool = pool[order]
    # The last of equal values: there the distribution has taken the whole step.
    ends = np.flatnonzero(np.append(np.diff(sorted_pool) > 0, True))
    n, m = len(one), len(other)
    labels: NDArray[np.bool_] = np.zeros(n + m, dtype=bool)
    labels[:n] = True
    mixed = rng.permuted(np.tile(labels, (_PERMUTATIONS, 1)), axis=1)  # (permutations, n + m)
    steps = np.cumsum(np.where(mixed, 1 / n, -1 / m), axis=1)[:, ends]
    larger = int(np.sum(np.max(np.abs(steps), axis=1) >= seen - 1e-12))
    return (1 + larger) / (1 + _PERMUTATIONS)


def blocks(scores: Sequence[ScoreRecord], normals: Sequence[float]) -> list[Block]:
    """Cut the scores of one bundle version into blocks and test the complete ones.

    Parameters
    ----------
    scores
        Oldest first.
    normals
        Of the bundle's calibration set.
    """
    parts = [scores[i : i + BLOCK] for i in range(0, len(scores), BLOCK)]
    found: list[Block] = []
    for part in parts:
        values = tuple(s.maximum for s in part)
        whole = len(values) == BLOCK
        found.append(
            Block(
                part[0].scored_at,
                part[-1].scored_at,
                values,
                p_value(values, found[0].scores) if whole and found else None,
                p_value(values, tuple(normals)) if whole and len(normals) >= 5 else None,
            )
        )
    return found


def by_scanner(scores: Sequence[ScoreRecord]) -> dict[tuple[str, str, str], list[ScoreRecord]]:
    """(name, version, scanner) → scores that were sent, shadows left out."""
    found: dict[tuple[str, str, str], list[ScoreRecord]] = defaultdict(list)
    for score in scores:
        if not score.shadow:
            found[(score.bundle_name, score.bundle_version, score.scanner)].append(score)
    return dict(found)


class DriftWatch:
    """Looks for drift now and then in a thread of its own, so that no page waits for it.

    Parameters
    ----------
    catalogue, bundles
        The scores, and which bundles are in use.
    """

    def __init__(self, catalogue: Catalogue, bundles: Bundles) -> None:
        self._catalogue, self._bundles = catalogue, bundles
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drift", daemon=True)
        self.found: list[str] = []

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()

    def _run(self) -> None:
        while True:
            try:
                self.found = drifting(self._catalogue, self._bundles)
            except Exception as error:  # the database may be away: the next look will tell
                event("drift not looked for", level=logging.WARNING, error=type(error).__name__)
            if self._stop.wait(_EVERY_S):
                return


def drifting(catalogue: Catalogue, bundles: Bundles) -> list[str]:
    """A line for each bundle in use and scanner whose newest complete block is unlike its first."""
    in_use = {(line.name, line.version) for line in bundles.in_use()}
    found = []
    for key, scores in by_scanner(catalogue.recent_scores(time.time() - _SPAN_S)).items():
        whole = len(scores) // BLOCK
        if key[:2] not in in_use or whole < 2:
            continue
        first, last = scores[:BLOCK], scores[(whole - 1) * BLOCK : whole * BLOCK]
        if p_value([s.maximum for s in last], [s.maximum for s in first]) <= ALPHA:
            where = f" on scanner {key[2][:6]}" if key[2] else ""
            found.append(f"scores of {key[0]} {key[1]}{where} have drifted from the first {BLOCK} series")
    return found
