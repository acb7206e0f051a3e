"""Reading ahead: order, bound, errors and the end, with one thread and with several."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from daemon.read_ahead import read_ahead, slices_ahead


def _readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("reader ")]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(threads: int) -> None:
    """The first items take longest, and still come first."""

    def work(item: int) -> int:
        time.sleep(0.002 * (8 - item))
        return item * 10

    with read_ahead(range(8), work, threads=threads, ahead=4) as results:
        assert [(item, result()) for item, result in results] == [(i, i * 10) for i in range(8)]
    assert _readers() == []


def test_several_items_are_in_work_at_once() -> None:
    """Three threads meet in three items: no fewer could."""
    meeting = threading.Barrier(3, timeout=30)

    def work(_item: int) -> int:
        return meeting.wait()

    with read_ahead(range(6), work, threads=3, ahead=6) as results:
        assert sorted(result() for _, result in results) == [0, 0, 1, 1, 2, 2]


def test_one_thread_is_the_callers_and_works_when_asked() -> None:
    """With one decoder nothing is read before it is wanted, and nothing elsewhere."""
    done: list[tuple[int, threading.Thread]] = []

    def work(item: int) -> None:
        done.append((item, threading.current_thread()))

    with read_ahead(range(3), work, threads=1, ahead=100) as results:
        for item, result in results:
            result()
            assert done == [(i, threading.current_thread()) for i in range(item + 1)]


def test_no_more_than_the_bound_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slowly results are taken, only ``ahead`` items are begun beyond them."""
    begun: list[int] = []
    with read_ahead(range(40), begun.append, threads=4, ahead=5) as results:
        for taken, (_, result) in enumerate(results):
            result()
            time.sleep(0.002)
            assert len(begun) <= taken + 5
    assert sorted(begun) == list(range(40))


def test_an_error_belongs_to_its_item() -> None:
    """One item fails where its result is asked for; the others have theirs."""

    def work(item: int) -> int:
        if item == 2:
            raise ValueError("item 2")
        return item

    outcomes: list[object] = []
    with read_ahead(range(5), work, threads=3, ahead=3) as results:
        for _, result in results:
            try:
                outcomes.append(result())
            except ValueError as error:
                outcomes.append(str(error))
    assert outcomes == [0, 1, "item 2", 3, 4]


def test_whoever_gives_up_leaves_nothing_behind() -> None:
    """After an error of the caller no further item is begun and no thread is left."""
    begun: list[int] = []
    held = threading.Event()

    def work(item: int) -> None:
        begun.append(item)
        held.wait(0.02)

    def give_up(result: Callable[[], None]) -> None:
        result()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), read_ahead(range(100), work, threads=2, ahead=50) as results:
        give_up(next(results)[1])
    assert _readers() == []
    assert len(begun) < 10


def test_what_is_read_ahead_fits_the_memory() -> None:
    """256 CT slices, four mammograms, and one of any size."""
    assert [slices_ahead(*shape) for shape in ((512, 512), (4096, 3328), (20_000, 20_000))] == [256, 4, 1]
