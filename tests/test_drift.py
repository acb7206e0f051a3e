"""Drift: the false-alarm rate is what is stated for as long as it runs, a real change is seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from peers_postgres import postgres
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from daemon.catalogue import Catalogue
from daemon.database import open_database
from daemon.records import ScoreRecord, fields_of
from daemon.score_blocks import Origin, ScoreBlock, ScoreBlocks
from daemon.tables import ScoreRow, StudyRow
from daemon.web.drift import ALPHA, BLOCK, DriftWatch, distance, drifted, p_value
from daemon.web.quality_page import by_origin, panels

DAY_S = 86_400.0
NOW = 1_800_000_000.0
# Percent point function of the binomial distribution at 99.9 %: scipy.stats.binom(400, ALPHA).ppf(0.999).
MOST_OF_400 = 11


class Ward:
    """A database, the scores that come in, and what looks for drift.

    Parameters
    ----------
    url
        Of the database.
    """

    def __init__(self, url: str) -> None:
        self.reader, self.writer = open_database(url)
        self.blocks = ScoreBlocks(self.reader, self.writer, BLOCK)
        self.catalogue = Catalogue(self.reader)
        lines = [SimpleNamespace(name="b", version="0" * 12)]
        self.bundles: Any = SimpleNamespace(in_use=lambda: lines, line=lambda _version: None)
        self.watch = DriftWatch(self.blocks, self.bundles)

    def add(self, scores: Sequence[ScoreRecord]) -> None:
        """Write scores and their studies into the index."""
        study = {"first_received": 0.0, "last_received": 0.0, "state": "scored"}
        with Session(self.writer) as session, session.begin():
            uids = {score.study_instance_uid for score in scores}
            known = select(StudyRow.study_instance_uid).where(StudyRow.study_instance_uid.in_(uids))
            uids -= set(session.scalars(known))
            if uids:
                session.execute(insert(StudyRow), [{**study, "study_instance_uid": uid} for uid in uids])
            session.execute(insert(ScoreRow), [fields_of(score) for score in scores])

    def full(self, scanner: str = "", since: float = 0.0) -> list[ScoreBlock]:
        """The full blocks that the page shows."""
        return [b for b in self.blocks.of(origin(scanner), since, 1000) if b.number is not None]


def origin(scanner: str = "") -> Origin:
    """The bundle in use, on a scanner."""
    return Origin("b", "0" * 12, scanner)


def score(number: int, value: float, at: float | None = None, scanner: str = "") -> ScoreRecord:
    """What the bundle said of the only series of a study."""
    uid = f"1.2.{number}"
    at = float(number) if at is None else at
    return ScoreRecord(
        uid, 1, "0" * 16, "0" * 12, f"{uid}.1", "CT", "b", False, 9, value, value / 2, 0, at, scanner
    )


def row(values: np.ndarray, start: int = 0, scanner: str = "") -> list[ScoreRecord]:
    """Studies one after another with these scores."""
    return [score(start + i, v, scanner=scanner) for i, v in enumerate(map(float, values))]


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    """Nothing scored yet."""
    ward = Ward(f"sqlite:///{tmp_path}/index.sqlite")
    yield ward
    ward.reader.dispose()


def test_nothing_changed_raises_few_alarms() -> None:
    """Of 400 pairs of blocks from one distribution no more are called drift than the rate allows."""
    rng = np.random.default_rng(7)
    pairs = rng.beta(2, 6, (400, 2, BLOCK))
    alarms = sum(p_value(list(a), list(b)) <= ALPHA for a, b in pairs)
    # 1 % of 400 is 4; more than 11 would happen by chance in 1 of 1,000 runs, and the seed is fixed.
    assert alarms <= MOST_OF_400


def test_p_values_of_equal_distributions_are_no_smaller_than_uniform() -> None:
    """At each level, at most that share of p-values lies below it (with room for 300 draws)."""
    rng = np.random.default_rng(3)
    found = np.array([p_value(list(a), list(b)) for a, b in rng.normal(size=(300, 2, BLOCK))])
    for level in (0.05, 0.1, 0.25, 0.5):
        assert np.mean(found <= level) <= level + 3 * np.sqrt(level * (1 - level) / 300)


def test_months_without_a_change_raise_few_alarms(ward: Ward) -> None:
    """A year of looks at 40 scanners: blocks never change, and of 400 tests few are called drift."""
    rng = np.random.default_rng(11)
    seen: dict[tuple[Origin, int], ScoreBlock] = {}
    raised: set[str] = set()
    scanners = [f"{n:06}" for n in range(40)]
    for week in range(55):
        at = NOW + 7 * week * DAY_S
        ward.add(
            [
                score((week * 40 + n) * 6 + i, float(rng.beta(2, 6)), at + i * DAY_S, scanner)
                for n, scanner in enumerate(scanners)
                for i in range(6)
            ]
        )
        ward.watch.look()
        raised |= set(ward.watch.found)
        for scanner in scanners if week % 6 == 0 or week == 54 else ():
            # The page shows half a year; what it shows of a block is what it showed before.
            for block in ward.full(scanner, at - 180 * DAY_S):
                assert seen.setdefault((block.origin, block.number or 0), block) == block
    assert len(seen) == 40 * 55 * 6 // BLOCK
    tested = [block for block in seen.values() if block.p_first is not None]
    assert len(tested) == 400
    alarms = [block for block in tested if drifted(block)]
    assert len(alarms) <= MOST_OF_400
    # And what is raised on the way is those alone.
    assert len(raised) == len({block.origin for block in alarms})


def test_a_slow_drift_is_found_however_slow(ward: Ward) -> None:
    """Scores that creep up over three years are drift, though half a year alone shows little of it."""
    rng = np.random.default_rng(5)
    days = np.arange(0, 3 * 365)
    values = np.clip(rng.normal(0.3 + 0.25 * days / days[-1], 0.12), 0, 1)
    found = []
    for start in range(0, len(days), 30):
        ward.add(
            [
                score(int(d), float(v), NOW + int(d) * DAY_S)
                for d, v in zip(days[start : start + 30], values[start : start + 30], strict=True)
            ]
        )
        ward.watch.look()
        found.append(bool(ward.watch.found))
    assert not any(found[:6])
    assert all(found[-6:])


def test_a_real_change_is_seen(ward: Ward) -> None:
    """Scores that moved up by a standard deviation or two are drift; the block before is none."""
    rng = np.random.default_rng(2)
    ward.add(
        row(np.concatenate([rng.beta(2, 8, 2 * BLOCK), rng.beta(5, 5, BLOCK), rng.beta(2, 8, 5)])),
    )
    ward.watch.look()
    found = ward.blocks.of(origin(), 0.0, 100)
    assert [(b.number, drifted(b)) for b in found] == [(1, False), (2, False), (3, True), (None, False)]
    assert found[0].p_first is None and found[3].p_first is None
    assert ward.watch.found == ["scores of b 000000000000 have drifted from the first 30 studies"]


def test_a_study_that_is_scored_again_counts_once(ward: Ward) -> None:
    """Its first revision counts, whether a later one comes before or after the block is full."""
    first = row(np.full(BLOCK, 0.1))
    ward.add(first[:20])
    ward.add([replace(s, revision=2, maximum=0.9, scored_at=100.0) for s in first[:20]])
    ward.watch.look()
    assert ward.full() == []
    ward.add(first[20:])
    ward.watch.look()
    ward.add([replace(s, revision=3, maximum=0.9, scored_at=200.0) for s in first])
    ward.watch.look()
    found = ward.blocks.of(origin(), 0.0, 100)
    assert [(b.number, set(b.scores)) for b in found] == [(1, {0.1})]


def test_the_series_of_a_patient_are_one_value(ward: Ward) -> None:
    """A study counts with the highest score of its series, which are too alike to count each."""
    studies = row(np.full(BLOCK, 0.2))
    ward.add([*studies, *(replace(s, group_key="1" * 16, maximum=0.7) for s in studies)])
    ward.watch.look()
    assert [(b.number, set(b.scores)) for b in ward.blocks.of(origin(), 0.0, 100)] == [(1, {0.7})]


def test_what_comes_late_changes_no_block(ward: Ward) -> None:
    """A study that was begun earlier and is entered later goes into the next block."""
    ward.add(row(np.full(BLOCK, 0.3), start=1000))
    ward.watch.look()
    before = ward.full()
    ward.add(row(np.full(5, 0.3)))
    ward.watch.look()
    assert ward.full() == before
    assert len(ward.blocks.of(origin(), 0.0, 100)[-1].scores) == 5


def test_two_hosts_put_no_study_into_two_blocks(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that was slower keeps nothing, and goes on with the next block at its next look."""
    ward.add(row(np.full(2 * BLOCK, 0.3)))
    other = ScoreBlocks(ward.reader, ward.writer, BLOCK)
    keep = ward.blocks._keep

    def late(*args: Any) -> None:
        other.close_full(p_value)
        keep(*args)

    monkeypatch.setattr(ward.blocks, "_keep", late)
    ward.watch.look()
    assert [b.number for b in ward.blocks.of(origin(), 0.0, 100)] == [1, 2]


@pytest.mark.peer
def test_blocks_are_the_same_on_postgresql() -> None:
    """Full blocks are kept, later revisions left out, and the rest waits, there as in SQLite."""
    with postgres() as peer:
        ward = Ward(peer.url)
        first = row(np.random.default_rng(1).beta(2, 6, 2 * BLOCK + 3))
        ward.add([*first, *(replace(s, revision=2, scored_at=s.scored_at + 1000) for s in first)])
        ward.watch.look()
        found = ward.blocks.of(origin(), 0.0, 100)
        assert [b.number for b in found] == [1, 2, None]
        assert [v for b in found for v in b.scores] == [s.maximum for s in first]
        ward.reader.dispose()


def test_years_of_scores_are_cut_when_drift_is_first_looked_for(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an upgrade everything is in no block; it is taken in by parts, from the oldest on."""
    monkeypatch.setattr("daemon.score_blocks._AT_ONCE", 2)
    values = np.random.default_rng(1).beta(2, 6, 7 * BLOCK + 3)
    ward.add(row(values))
    ward.watch.look()
    found = ward.full()
    assert [b.number for b in found] == list(range(1, 8))
    assert [v for b in found for v in b.scores] == list(values[: 7 * BLOCK])


def test_shadows_take_no_part(ward: Ward) -> None:
    """Candidates are in no block, and leave all of the limit to what was sent."""
    ward.add([replace(s, shadow=True) for s in row(np.full(40, 0.9), start=100)])
    ward.add(row(np.full(40, 0.1)))
    ward.watch.look()
    assert [len(b.scores) for b in ward.blocks.of(origin(), 0.0, 100)] == [BLOCK, 10]
    assert len(ward.catalogue.recent_scores(0.0, 40, shadows=False)) == 40


def test_scanners_do_not_hide_each_other(ward: Ward) -> None:
    """Each scanner has blocks of its own."""
    ward.add(row(np.full(BLOCK, 0.1), scanner="a") + row(np.full(2, 0.9), 100, "b"))
    ward.watch.look()
    assert [len(b.scores) for b in ward.blocks.of(origin("a"), 0.0, 9)] == [BLOCK]
    assert [len(b.scores) for b in ward.blocks.of(origin("b"), 0.0, 9)] == [2]
    recent = ward.catalogue.recent_scores(0.0, shadows=False)
    assert {key.scanner: len(found) for key, found in by_origin(recent).items()} == {"a": BLOCK, "b": 2}


def test_the_chart_shows_each_block_once(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first block stays the reference when it is older than the chart, and boxes lie among the dots."""
    monkeypatch.setattr("daemon.web.quality_page.time.time", lambda: NOW)
    old = [score(n, 0.2 + n / 1000, NOW - 400 * DAY_S + n) for n in range(BLOCK)]
    new = [score(100 + n, 0.2 + n / 1000, NOW - 40 * DAY_S + n * DAY_S) for n in range(BLOCK + 4)]
    ward.add([*old, *new, replace(new[0], revision=2, scored_at=NOW)])
    ward.watch.look()
    desk: Any = SimpleNamespace(
        verdicts=SimpleNamespace(newest=dict),
        catalogue=ward.catalogue,
        bundles=ward.bundles,
        drift=ward.watch,
    )
    (panel,) = panels(desk)
    assert [(len(b.scores), b.complete, b.p_first is None) for b in panel.blocks] == [
        (BLOCK, True, True),
        (BLOCK, True, False),
        (4, False, True),
    ]
    assert panel.series == BLOCK + 4
    (box,) = panel.boxes
    assert panel.dots[0][0] < box.x < panel.dots[BLOCK - 1][0]


@pytest.mark.parametrize(
    ("one", "other", "expected"), [([0, 1], [0, 1], 0.0), ([0, 0], [1, 1], 1.0), ([0, 1], [1, 1], 0.5)]
)
def test_the_distance_is_the_largest_gap_of_the_distributions(
    one: list[float], other: list[float], expected: float
) -> None:
    """Kolmogorov-Smirnov: ties are taken as one step."""
    assert distance(one, other) == expected
