"""Corrections: what counts as a person's word on our results, and how long retention waits for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_spool import data_set
from test_upkeep import NOW, SR, Desk, planned

from daemon.corrections import Corrections
from daemon.feedback import Exported, Sources, export_feedback
from daemon.records import ResultRecord, ScoreRecord
from daemon.verdicts import VerdictRecord, Verdicts
from daemon.views import Views

IMAGE = "1.2.840.10008.5.1.4.1.1.2"
COMPREHENSIVE_SR = "1.2.840.10008.5.1.4.1.1.88.33"
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
AGE_S = 1_000 * 86_400.0


class Echo(Desk):
    """Studies of a device that sends a report with its images."""

    @property
    def corrections(self) -> Corrections:
        """As the page and the commands have them."""
        return Corrections(self.index._engine, self.index._writer)

    @property
    def verdicts(self) -> Verdicts:
        """What was said on the page."""
        return Verdicts(self.index._engine, self.index._writer)

    def receive(self, sop: str, sop_class: str = IMAGE, text: str = "", study: str = "1.5") -> None:
        """Take one object in, long ago."""
        part = self.spool.begin(sop_class, sop, "1.2.840.10008.1.2.1", "US1")
        part.write(data_set(text, study=study, sop=sop, sop_class=sop_class))
        stored = part.commit(study, "1.2.3")
        self.index.add_instance(dataclasses.replace(stored, received_at=NOW - AGE_S), self.spool)

    def score(self, study: str = "1.5") -> None:
        """Open a revision, make an SR of it, deliver it."""
        revision = self.index.open_revision(study)
        uid = f"{study}.9.{revision}"
        path = self.spool.write_result(study, revision, f"SR.{uid}.dcm", b"result")
        self.index.add_results([ResultRecord(study, revision, "SR", SR, uid, f"{study}.8", path, "0" * 64)])
        self.index.plan_deliveries(study, revision, ["pacs"], NOW)
        for delivery in self.index.deliveries(study, revision):
            self.index.update_delivery(delivery, "sent")
        self.index.set_state(study, "scored")

    def settle(self, study: str = "1.5") -> None:
        """Open a revision of annotations alone: nothing is scored."""
        self.index.open_revision(study)
        self.index.set_state(study, "scored")

    def came(self) -> list[str]:
        """SOP Instance UIDs of what counts as corrections."""
        return [one.sop_instance_uid for one in self.corrections.received()]

    def reject(self) -> None:
        """Say on the page that a finding is none."""
        verdict = VerdictRecord(
            "1.5", "1.7", NOW - AGE_S, "otto", "reject", "", 1, "key", "1.2.3", "000000000000", 0.9
        )
        self.verdicts.give(verdict)

    def export(self, folder: Path) -> Exported:
        """``daemon feedback export``."""
        views = Views(self.settings.views_dir)
        return export_feedback(
            Sources(self.index, self.spool, self.verdicts, self.corrections, views), folder
        )


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[Echo]:
    """A daemon that is not running."""
    found = Echo(tmp_path)
    yield found
    found.index.close()


@pytest.mark.parametrize("sop_class", [COMPREHENSIVE_SR, RTSTRUCT])
def test_what_came_with_the_images_corrects_nothing(echo: Echo, sop_class: str) -> None:
    """A device's own report, or a planning contour, is nobody's word: the study is pruned in its time."""
    echo.receive("1.5.1")
    echo.receive("1.5.2", sop_class)
    echo.score()
    assert echo.came() == []
    assert planned(echo) == ["1.5"]


def test_what_came_while_nothing_was_scored_corrects_nothing(echo: Echo) -> None:
    """A report that follows images which were refused, before a later revision was scored."""
    echo.receive("1.5.1")
    echo.settle()
    echo.receive("1.5.2", COMPREHENSIVE_SR)
    echo.score()
    assert echo.came() == []


@pytest.mark.parametrize("opened", [False, True])
def test_a_report_after_our_result_is_a_correction(echo: Echo, opened: bool) -> None:
    """It counts as soon as it is here, and retention waits until it was exported."""
    echo.receive("1.5.1")
    echo.score()
    echo.receive("1.5.2", COMPREHENSIVE_SR)
    if opened:
        echo.settle()
    assert echo.came() == ["1.5.2"]
    assert planned(echo) == []


def test_a_devices_report_that_was_edited_is_a_correction(echo: Echo) -> None:
    """The report came with the images, and again with other content after our result."""
    echo.receive("1.5.1")
    echo.receive("1.5.2", COMPREHENSIVE_SR)
    echo.score()
    echo.receive("1.5.2", COMPREHENSIVE_SR, "edited")
    echo.settle()
    assert echo.came() == ["1.5.2"]


def test_a_pruned_study_that_comes_again_brings_no_corrections(echo: Echo) -> None:
    """Images and report come together once more: the report is no word on the result of before."""
    echo.receive("1.5.1")
    echo.receive("1.5.2", COMPREHENSIVE_SR)
    echo.score()
    pruner = echo.pruner()
    assert pruner.prune(pruner.plan()) == 1
    echo.receive("1.5.1")
    echo.receive("1.5.2", COMPREHENSIVE_SR)
    assert echo.came() == []
    echo.score()
    assert echo.came() == []
    echo.receive("1.5.3", COMPREHENSIVE_SR)
    assert echo.came() == ["1.5.3"]


def test_an_export_releases_a_study_whose_report_says_nothing(echo: Echo, tmp_path: Path) -> None:
    """A report on no finding makes no case; once it was looked at, retention waits no longer."""
    echo.receive("1.5.1")
    echo.score()
    echo.receive("1.5.2", COMPREHENSIVE_SR)
    echo.settle()
    assert (planned(echo), echo.corrections.waiting()) == ([], 1)
    assert echo.export(tmp_path / "cases").studies == 0
    assert (planned(echo), echo.corrections.waiting()) == (["1.5"], 0)


def test_contours_that_came_with_the_images_are_not_exported(echo: Echo, tmp_path: Path) -> None:
    """Training would take a planning RTSTRUCT for a person's outline of lesions."""
    echo.receive("1.5.1")
    echo.receive("1.5.2", RTSTRUCT)
    echo.score()
    echo.receive("1.5.3", RTSTRUCT)
    echo.settle()
    assert echo.export(tmp_path / "cases").annotations == 1
    found = sorted(
        path.relative_to(tmp_path / "cases" / "1.5") for path in tmp_path.glob("cases/1.5/**/*.dcm")
    )
    assert found == [Path("came-1.5.3.dcm"), Path("images/1.5.1.dcm")]


def test_an_export_keeps_the_cases_of_pruned_studies(echo: Echo, tmp_path: Path) -> None:
    """What an earlier export wrote of them, labels included, is not replaced by nothing."""
    echo.receive("1.5.1")
    echo.score()
    echo.index.add_scores(
        [ScoreRecord("1.5", 1, "key", "000000000000", "1.2.3", "CT", "demo", False, 1, 0.9, 0.9, 1, NOW)]
    )
    echo.receive("1.5.2", RTSTRUCT)
    echo.settle()
    echo.reject()
    echo.export(tmp_path / "cases")
    (tmp_path / "cases" / "labels.csv").write_text("series,label\n1.2.3,normal\n1.2.4,normal\n")
    before = sorted((tmp_path / "cases" / "1.5").rglob("*.dcm"))
    assert len(before) == 2
    pruner = echo.pruner()
    assert pruner.prune(pruner.plan()) == 1
    echo.export(tmp_path / "cases")
    assert sorted((tmp_path / "cases" / "1.5").rglob("*.dcm")) == before
    assert (tmp_path / "cases" / "labels.csv").read_text().split() == ["series,label", "1.2.3,normal"]
