"""Blocks: scored studies of one bundle version on one scanner, so many in a row, each in one block for ever.

A study counts once, with its highest slice score in the first revision that the bundle scored: a study
that is scored again adds nothing, and the series of one patient, which are alike, are one value. A
block that is full is kept with the outcome of its test and never cut anew, however old it gets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, Engine, and_, exists, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from daemon.tables import ScoreRow
from daemon.tables_web import ScoreBlockRow

# Full blocks in one transaction: a site that upgrades has years of scores that are in none.
_AT_ONCE = 50

Compare = Callable[[Sequence[float], Sequence[float]], float]


@dataclass(frozen=True, slots=True)
class Origin:
    """What scores come from, and are compared within."""

    bundle_name: str
    bundle_version: str
    scanner: str


@dataclass(frozen=True, slots=True)
class ScoreBlock:
    """Studies in a row.

    Parameters
    ----------
    origin
        Bundle and scanner.
    number
        From 1; None for one that still fills up.
    start, end
        When its first and last study were scored, seconds since the epoch.
    scores
        The highest slice score of each study.
    p_first
        Of the test against the first block; None for that one, and for one that still fills up.
    """

    origin: Origin
    number: int | None
    start: float
    end: float
    scores: tuple[float, ...]
    p_first: float | None = None


@dataclass(slots=True)
class _Study:
    """One study that is in no block yet: when it was scored first, which revision that was, its score."""

    at: float
    revision: int
    maximum: float


@dataclass(slots=True)
class _Waiting:
    """Studies that are in no block yet, oldest first, and those of which only later revisions are."""

    studies: dict[str, _Study] = field(default_factory=dict)
    again: set[str] = field(default_factory=set)


class ScoreBlocks:
    """The table of blocks.

    Parameters
    ----------
    reader, writer
        The database, to read with and to write with.
    size
        Studies in a block.
    """

    def __init__(self, reader: Engine, writer: Engine, size: int) -> None:
        self._reader, self._writer, self.size = reader, writer, size

    def close_full(self, compare: Compare) -> bool:
        """Keep the blocks that are full by now, each with its p-value against the first of its origin.

        Parameters
        ----------
        compare
            p-value of a block's scores and the first block's.

        Returns
        -------
        Whether there may be more, of what waited for long.
        """
        query = (
            select(ScoreRow.bundle_name, ScoreRow.bundle_version, ScoreRow.scanner)
            .where(~ScoreRow.counted, ~ScoreRow.shadow)
            .group_by(ScoreRow.bundle_name, ScoreRow.bundle_version, ScoreRow.scanner)
            .having(func.count(ScoreRow.study_instance_uid.distinct()) >= self.size)
        )
        with Session(self._reader) as session:
            origins = [Origin(*row) for row in session.execute(query)]
        return sum(self._close(origin, compare) for origin in origins) > 0

    def newest(self) -> list[ScoreBlock]:
        """The newest full block of each origin."""
        other = aliased(ScoreBlockRow)
        last = select(func.max(other.number)).where(
            other.bundle_name == ScoreBlockRow.bundle_name,
            other.bundle_version == ScoreBlockRow.bundle_version,
            other.scanner == ScoreBlockRow.scanner,
        )
        query = select(ScoreBlockRow).where(ScoreBlockRow.number == last.scalar_subquery())
        with Session(self._reader) as session:
            return [_block(row) for row in session.scalars(query)]

    def of(self, origin: Origin, since: float, limit: int) -> list[ScoreBlock]:
        """The first block, the newest ones that ended since then, and what fills up; oldest first."""
        query = (
            select(ScoreBlockRow)
            .where(_same(ScoreBlockRow, origin), ScoreBlockRow.number > 1, ScoreBlockRow.ends_at >= since)
            .order_by(ScoreBlockRow.number.desc())
            .limit(limit)
        )
        with Session(self._reader) as session:
            first = session.get(ScoreBlockRow, (*_key(origin), 1))
            found = [] if first is None else [_block(first)]
            found += [_block(row) for row in reversed(session.scalars(query).all())]
            waiting = list(self._waiting(session, origin, self.size).studies.values())
        return found + ([_cut(origin, None, waiting)] if waiting else [])

    def _close(self, origin: Origin, compare: Compare) -> bool:
        with Session(self._reader) as session:
            # The number before the scores: if another host closes the block in between, ours is taken
            # and nothing is kept; the other way round its studies would be in two blocks.
            last = session.scalar(select(func.max(ScoreBlockRow.number)).where(_same(ScoreBlockRow, origin)))
            first = session.get(ScoreBlockRow, (*_key(origin), 1))
            waiting = self._waiting(session, origin, self.size * _AT_ONCE)
        reference: Sequence[float] = () if first is None else json.loads(first.scores)
        uids, studies = list(waiting.studies), list(waiting.studies.values())
        whole = len(studies) // self.size * self.size
        rows: list[ScoreBlockRow] = []
        for start in range(0, whole, self.size):
            number = (last or 0) + len(rows) + 1
            block = _cut(origin, number, studies[start : start + self.size])
            reference = reference or block.scores
            rows.append(_row(block, None if number == 1 else compare(block.scores, reference)))
        self._keep(origin, rows, [*uids[:whole], *waiting.again])
        return len(rows) == _AT_ONCE

    def _keep(self, origin: Origin, rows: list[ScoreBlockRow], studies: list[str]) -> None:
        if not studies:
            return
        try:
            with Session(self._writer) as session, session.begin():
                session.add_all(rows)
                session.flush()
                session.execute(
                    update(ScoreRow)
                    .where(ScoreRow.study_instance_uid.in_(studies), *_of_study(ScoreRow, origin))
                    .values(counted=True)
                    .execution_options(synchronize_session=False)
                )
        except IntegrityError:
            return  # another host that shares the database was faster: the next look will tell

    def _waiting(self, session: Session, origin: Origin, limit: int) -> _Waiting:
        """Read from the oldest score on until there are so many studies; the rest stays in the database."""
        other = aliased(ScoreRow)
        before = exists().where(
            other.study_instance_uid == ScoreRow.study_instance_uid,
            *_of_study(other, origin),
            other.counted,
            ~other.shadow,
        )
        columns = (ScoreRow.study_instance_uid, ScoreRow.revision, ScoreRow.scored_at, ScoreRow.maximum)
        query = (
            select(*columns, before)
            .where(_uncounted(origin))
            .order_by(ScoreRow.scored_at, ScoreRow.study_instance_uid, ScoreRow.revision)
        )
        found = _Waiting()
        with session.execute(query, execution_options={"yield_per": 500}) as rows:
            for uid, revision, at, maximum, again in rows:
                study = found.studies.get(uid)
                if again:
                    found.again.add(uid)
                elif study is not None:
                    if revision == study.revision:
                        study.maximum = max(study.maximum, maximum)
                elif len(found.studies) < limit:
                    found.studies[uid] = _Study(at, revision, maximum)
                else:
                    break
        return found


def _key(origin: Origin) -> tuple[str, str, str]:
    return origin.bundle_name, origin.bundle_version, origin.scanner


def _same(table: type[ScoreRow] | type[ScoreBlockRow], origin: Origin) -> ColumnElement[bool]:
    return and_(
        table.bundle_name == origin.bundle_name,
        table.bundle_version == origin.bundle_version,
        table.scanner == origin.scanner,
    )


def _uncounted(origin: Origin) -> ColumnElement[bool]:
    return and_(_same(ScoreRow, origin), ~ScoreRow.counted, ~ScoreRow.shadow)


def _of_study(table: type[ScoreRow], origin: Origin) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Narrow the rows of given studies to an origin.

    Without the bundle's name, which its version implies: SQLite would walk through all scores of that
    name instead of the few of these studies.
    """
    return table.bundle_version == origin.bundle_version, table.scanner == origin.scanner


def _cut(origin: Origin, number: int | None, studies: Sequence[_Study]) -> ScoreBlock:
    scores = tuple(study.maximum for study in studies)
    return ScoreBlock(origin, number, studies[0].at, studies[-1].at, scores)


def _row(block: ScoreBlock, p_first: float | None) -> ScoreBlockRow:
    return ScoreBlockRow(
        bundle_name=block.origin.bundle_name,
        bundle_version=block.origin.bundle_version,
        scanner=block.origin.scanner,
        number=block.number,
        starts_at=block.start,
        ends_at=block.end,
        scores=json.dumps(block.scores),
        p_first=p_first,
    )


def _block(row: ScoreBlockRow) -> ScoreBlock:
    origin = Origin(row.bundle_name, row.bundle_version, row.scanner)
    scores = tuple(json.loads(row.scores))
    return ScoreBlock(origin, row.number, row.starts_at, row.ends_at, scores, row.p_first)
