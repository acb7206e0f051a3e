"""Orders: what a person may ask of a study, and what is refused because its files are gone."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_upkeep import NOW, Desk

from daemon.errors import SpoolError
from daemon.index import Index


@pytest.fixture
def pruned(tmp_path: Path) -> Iterator[Desk]:
    """A delivered study whose files are gone."""
    desk = Desk(tmp_path)
    desk.scored("1.5", age_days=31.0)
    pruner = desk.pruner()
    assert pruner.prune(pruner.plan()) == 1
    yield desk
    desk.index.close()


@pytest.mark.parametrize("order", [lambda i: i.retry("1.5", NOW), lambda i: i.rescore("1.5")])
@pytest.mark.parametrize("state", ["scored", "refused"])
def test_a_pruned_study_is_not_scored_again(pruned: Desk, order: Callable[[Index], None], state: str) -> None:
    """It says to send the study again, instead of a new revision without images."""
    pruned.index.set_state("1.5", state)  # type: ignore[arg-type]
    with pytest.raises(SpoolError, match="its files were pruned; send the study again"):
        order(pruned.index)
    study = pruned.index.get_study("1.5")
    assert (study.state, study.revision, study.dirty) == (state, 1, False)


def test_the_command_says_why_a_pruned_study_is_not_tried_again(pruned: Desk) -> None:
    """``daemon retry`` ends with an error in one line."""
    with pytest.raises(subprocess.CalledProcessError) as raised:
        pruned.daemon("retry", "1.5")
    assert "its files were pruned" in raised.value.stderr


def test_results_that_were_pruned_are_not_forwarded(pruned: Desk) -> None:
    """What arrived stays as it is: it would fail, and become a dead letter."""
    with pytest.raises(SpoolError, match="its files were pruned; send the study again"):
        pruned.index.forward("1.5", "pacs", NOW, pruned.spool)
    assert [delivery.state for delivery in pruned.index.deliveries("1.5")] == ["sent"]


def test_what_is_forwarded_gets_its_full_time(tmp_path: Path) -> None:
    """Old results that are sent again do not become dead letters at the first failed attempt."""
    desk = Desk(tmp_path)
    desk.scored("1.5")
    (before,) = desk.index.deliveries("1.5")
    desk.index.forward("1.5", "pacs", NOW + 500.0, desk.spool)
    desk.index.forward("1.5", "archive", NOW + 500.0, desk.spool)
    found = {d.destination: (d.state, d.expires_at) for d in desk.index.deliveries("1.5")}
    assert found == {"pacs": ("pending", NOW + 500.0), "archive": ("pending", NOW + 500.0)}
    # Its number of attempts is its name in the queue: the old one is used up.
    assert desk.index.deliveries("1.5", 1, "pacs")[0].attempts == before.attempts + 1
    desk.index.close()


def test_that_a_person_asked_is_known_without_a_bundle_too(tmp_path: Path) -> None:
    """Scoring again with what is in use leaves its mark until the next revision begins."""
    desk = Desk(tmp_path)
    desk.scored("1.5")
    desk.index.rescore("1.5")
    assert desk.index.wanted_bundle("1.5")
    desk.index.rescore("1.5", "demo 000000000000")
    assert desk.index.wanted_bundle("1.5") == "demo 000000000000"
    desk.index.close()
