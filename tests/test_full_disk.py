"""A disk that is full, on a small one of its own: refused with 0xA700, and nothing answered is lost."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from factories import scanned
from test_receiver import Node, association, running, store_raw, wait_for
from test_reception import _append, data_set

from benchmarks.small_disk import SmallDisk, small_disk
from daemon.check import run_checks
from daemon.reception.journal import Journal
from daemon.reception.record import SMALL_BYTES
from daemon.reception.replay import left_behind
from daemon.sections import ServiceSettings
from daemon.settings import Settings

SIZES = {"small": 5_000, "large": SMALL_BYTES + 100_000}


@pytest.fixture
def disk() -> Iterator[SmallDisk]:
    """A disk of 16 MB."""
    with small_disk("16m") as found:
        if found is None:
            pytest.skip("no tmpfs can be mounted here: that needs root")
        yield found


@contextmanager
def split(disk: SmallDisk, folder: Path, *, small: str, reception: str = "fast") -> Iterator[Node]:
    """Run a receiver whose ``spool`` or ``index`` lies on the small disk, the other beside it."""
    own, other = disk.folder / "node", folder / "spool"
    own.mkdir()
    if small == "index":
        other.mkdir()
        (own / "spool").symlink_to(other)
    else:
        (own / "index.db").symlink_to(folder / "index.db")
    with running(own, reception=reception) as node:
        yield node


def send_until(node: Node, first: int, size: int, wanted: int, at_most: int = 400) -> dict[str, int]:
    """Store instances over one association until an answer is the wanted one; return all answers."""
    answers: dict[str, int] = {}
    with association(node) as assoc:
        for number in range(first, first + at_most):
            sop = f"1.2.9.{number}"
            answers[sop] = store_raw(assoc, data_set(sop, size), sop)
            if answers[sop] == wanted:
                break
    return answers


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("reception", ["fast", "stock"])
def test_an_index_without_room_is_out_of_resources(
    tmp_path: Path, disk: SmallDisk, reception: str, size: str
) -> None:
    """While the index's disk is full the answer is 0xA700; every Success is in the index afterwards."""
    with split(disk, tmp_path, small="index", reception=reception) as node:
        answers = send_until(node, 0, SIZES[size], 0)
        disk.fill()
        answers |= send_until(node, 1, SIZES[size], 0xA700)
        assert set(answers.values()) == {0, 0xA700}
        refused = next(sop for sop, status in answers.items() if status)
        disk.empty()
        wait_for(lambda: _answer(node, refused, SIZES[size]) == 0)
        expected = set(answers)
        wait_for(lambda: set(node.instances()) == expected)
        assert {i.sop_instance_uid for i in scanned(node.spool)} == expected


def _answer(node: Node, sop: str, size: int) -> int:
    with association(node) as assoc:
        return store_raw(assoc, data_set(sop, size), sop)


@pytest.mark.parametrize("reception", ["fast", "stock"])
def test_a_spool_without_room_is_out_of_resources(tmp_path: Path, disk: SmallDisk, reception: str) -> None:
    """An instance that is buffered when the disk is full is no instance that cannot be parsed."""
    with split(disk, tmp_path, small="spool", reception=reception) as node:
        disk.fill()
        for size in SIZES.values():
            answers = send_until(node, size, size, 0xA700, at_most=1)
            assert set(answers.values()) == {0xA700}
        disk.empty()
        assert set(send_until(node, 1, SIZES["large"], 0).values()) == {0}
        assert node.parts() == []


def test_a_journal_that_met_a_full_disk_is_taken_in_later(tmp_path: Path, disk: SmallDisk) -> None:
    """What an earlier run has answered enters the index when there is room, without another start.

    Meanwhile ``daemon check`` warns of it.
    """
    with split(disk, tmp_path, small="index") as node:
        spool = node.spool
    book = Journal(spool.root / "journal")
    book.grow()
    for number in range(400):
        _append(book, f"1.2.8.{number}", 5_000)
    book.close()
    node = Node(disk.folder / "node")
    disk.fill()
    node.receiver.start()
    try:
        assert len(left_behind(spool.root / "journal")) == 1
        assert len(node.instances()) < 400
        assert _warnings(spool.root) != []
        disk.empty()
        wait_for(lambda: left_behind(spool.root / "journal") == [], 30.0)
        assert _warnings(spool.root) == []
        assert set(node.instances()) == {f"1.2.8.{number}" for number in range(400)}
    finally:
        node.receiver.stop(5.0)
        node.index.close()


def _warnings(spool: Path) -> list[str]:
    settings = Settings(service=ServiceSettings(spool_dir=str(spool)))
    before_the_model = itertools.takewhile(lambda item: item.what != "model", run_checks(settings, None))
    return [item.result for item in before_the_model if item.what == "journal"]
