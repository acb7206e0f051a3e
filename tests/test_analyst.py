"""The analyst: which revisions are scored, and which only hold what people or a PACS sent back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_corrections import COMPREHENSIVE_SR, Echo
from test_upkeep import SR

from daemon.analyst import Analyst
from daemon.jobs import JobRecord, ResultRef
from daemon.records import ResultRecord

STUDY = "1.5"


class NoModels:
    """No bundle is in use: a revision that is to be scored is refused."""

    def versions(self) -> dict[str, str]:
        """None."""
        return {}


class Line:
    """An analyst and the studies that it is given."""

    def __init__(self, folder: Path) -> None:
        self.echo = Echo(folder)
        models: Any = NoModels()
        self.analyst = Analyst(self.echo.settings, self.echo.index, self.echo.spool, models, b"key")

    def ended(self, state: str) -> None:
        """Take the next revision through its steps, up to this outcome."""
        revision = self.echo.index.open_revision(STUDY)
        job = self.analyst.open_job(STUDY, revision)
        results = []
        if state == "scored":
            uid = f"{STUDY}.9.{revision}"
            path = self.echo.spool.write_result(STUDY, revision, f"SR.{uid}.dcm", b"result")
            result = ResultRecord(STUDY, revision, "SR", SR, uid, f"{STUDY}.8", path, "0" * 64)
            results = [dataclasses.asdict(result)]
        self.analyst.close_job(job, ResultRef(state, "", results))

    def next_is_scored(self) -> bool:
        """Whether the next revision is looked at, or skipped as scored."""
        revision = self.echo.index.open_revision(STUDY)
        job = JobRecord.from_dict(dataclasses.asdict(self.analyst.open_job(STUDY, revision)))
        reference = self.analyst.run_job(job)
        assert reference.state == "refused" or "no image came" in reference.reason
        return reference.state == "refused"


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    """One study whose first revision was scored."""
    found = Line(tmp_path)
    found.echo.receive("1.5.1")
    found.ended("scored")
    yield found
    found.echo.index.close()


def test_a_correction_alone_is_not_scored(line: Line) -> None:
    """A report came after a revision that was scored: there is nothing to score again."""
    line.echo.receive("1.5.2", COMPREHENSIVE_SR)
    assert not line.next_is_scored()


@pytest.mark.parametrize("state", ["failed", "refused"])
def test_a_correction_does_not_hide_a_failed_revision(line: Line, state: str) -> None:
    """Late slices could not be scored, then a report came: the slices are tried again with it."""
    line.echo.receive("1.5.2")
    line.ended(state)
    line.echo.receive("1.5.3", COMPREHENSIVE_SR)
    assert line.next_is_scored()


def test_a_revision_that_was_set_aside_counts_as_failed(line: Line) -> None:
    """The engine gave it up, so that nothing of its end is kept."""
    line.echo.receive("1.5.2")
    line.analyst.open_job(STUDY, line.echo.index.open_revision(STUDY))
    line.echo.index.set_state(STUDY, "failed")
    line.echo.receive("1.5.3", COMPREHENSIVE_SR)
    assert line.next_is_scored()


@pytest.mark.parametrize("bundle", ["", "demo 000000000000"])
def test_a_correction_does_not_swallow_a_persons_order(line: Line, bundle: str) -> None:
    """Somebody asked to score again, then a report came: it is scored, this once."""
    line.echo.index.rescore(STUDY, bundle)
    line.echo.receive("1.5.2", COMPREHENSIVE_SR)
    revision = line.echo.index.open_revision(STUDY)
    job = line.analyst.open_job(STUDY, revision)
    assert job.asked and job.bundles == ({"demo": "000000000000"} if bundle else {})
    assert line.echo.index.wanted_bundle(STUDY) == ""
    assert not line.analyst._only_own_results_came(job)


def test_a_correction_of_a_pruned_study_is_not_scored(line: Line) -> None:
    """Nothing is here that could be scored; the study stays scored."""
    (delivery,) = line.echo.index.deliveries(STUDY)
    line.echo.index.update_delivery(delivery, "sent")
    pruner = line.echo.pruner()
    assert pruner.prune(pruner.plan()) == 1
    line.echo.receive("1.5.2", COMPREHENSIVE_SR)
    assert not line.next_is_scored()


def test_a_job_of_an_earlier_version_is_read() -> None:
    """What was in work before an upgrade does not know that a person may have asked for it."""
    values = dataclasses.asdict(JobRecord(STUDY, 1, "2026-01-01T00:00:00+00:00", {}))
    del values["asked"]
    assert not JobRecord.from_dict(values).asked


def test_an_outcome_that_cannot_be_read_counts_as_failed(line: Line) -> None:
    """A damaged file is no reason to leave images unscored."""
    (line.echo.spool.results_dir(STUDY) / "1" / "outcome.json").write_text("{")
    line.echo.receive("1.5.2", COMPREHENSIVE_SR)
    assert line.next_is_scored()
