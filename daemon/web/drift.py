"""Drift: whether scores of new studies still look like those before, by a test with a known false-alarm rate.

Per bundle version and scanner the scored studies are put into blocks of 30 as they come, each study
once and for ever (:mod:`daemon.score_blocks`). A full block is compared with two references, by a
permutation test on the Kolmogorov-Smirnov distance:

- with the **first block** of this bundle and scanner, which stays the first: if nothing changed,
  blocks are exchangeable and the test says "drift" with a probability of at most ``ALPHA`` per block;
- with the **calibration set** of the bundle, its held-out normal patients: this also differs where
  the site has more abnormal patients than the calibration set, and is shown, not raised.

The comparison with the first block is made once, when a block is full, and its outcome kept, so that
looking more often raises no more alarms. The permutations are seeded: everybody sees the same verdict.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from daemon.log import event
from daemon.score_blocks import ScoreBlock, ScoreBlocks

if TYPE_CHECKING:
    from daemon.web.bundles import Bundles

BLOCK = 30
ALPHA = 0.01
_PERMUTATIONS = 1999
_EVERY_S = 60.0


def drifted(block: ScoreBlock) -> bool:
    """Whether a block was found to be unlike the first one."""
    return block.p_first is not None and block.p_first <= ALPHA


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


@lru_cache(maxsize=1024)
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


class DriftWatch:
    """Looks for drift now and then in a thread of its own, so that no page waits for it.

    Parameters
    ----------
    blocks, bundles
        The scores in blocks, and which bundles are in use.
    """

    def __init__(self, blocks: ScoreBlocks, bundles: Bundles) -> None:
        self.blocks, self._bundles = blocks, bundles
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drift", daemon=True)
        self.found: list[str] = []

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()

    def look(self) -> None:
        """Test the blocks that are full by now, and tell what has drifted."""
        while self.blocks.close_full(p_value) and not self._stop.is_set():
            pass
        self.found = drifting(self.blocks, self._bundles)

    def _run(self) -> None:
        while True:
            try:
                self.look()
            except Exception as error:  # the database may be away: the next look will tell
                event("drift not looked for", level=logging.WARNING, error=type(error).__name__)
            if self._stop.wait(_EVERY_S):
                return


def drifting(blocks: ScoreBlocks, bundles: Bundles) -> list[str]:
    """A line for each bundle in use and scanner whose newest full block is unlike its first."""
    in_use = {(line.name, line.version) for line in bundles.in_use()}
    found = []
    for block in blocks.newest():
        origin = block.origin
        if (origin.bundle_name, origin.bundle_version) in in_use and drifted(block):
            where = f" on scanner {origin.scanner[:6]}" if origin.scanner else ""
            found.append(
                f"scores of {origin.bundle_name} {origin.bundle_version}{where} "
                f"have drifted from the first {BLOCK} studies"
            )
    return found
