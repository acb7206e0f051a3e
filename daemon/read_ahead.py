"""Reading ahead: the next few slices are read in threads while the model has the earlier ones."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")

# Of what was read and is not taken yet; 256 slices of 512 × 512, or four of a mammogram.
_AHEAD_BYTES = 256 * 2**20
# One read that hangs on a damaged frame must not hold whoever gives up.
_PATIENCE_S = 5.0


def slices_ahead(rows: int, columns: int) -> int:
    """Return how many float32 slices of this size may wait for the model, at least one."""
    return max(1, _AHEAD_BYTES // (4 * rows * columns))


@contextmanager
def read_ahead(
    items: Sequence[T], work: Callable[[T], U], *, threads: int, ahead: int
) -> Iterator[Iterator[tuple[T, Callable[[], U]]]]:
    """Do ``work`` for each item in threads, a bounded number of items ahead of whoever takes the results.

    On leaving, what is not begun is left out and the threads end.

    Parameters
    ----------
    items
        In the order in which they are wanted.
    work
        Called from several threads; once for each item.
    threads
        How many items are worked on at once; with 1 the caller's own thread does each when it is asked for.
    ahead
        So many items are at most begun and not taken.

    Yields
    ------
    Iterator
        Each item in order, and a call that waits for its result or raises what its work raised.
    """
    threads = min(threads, ahead, len(items))
    if threads < 2:
        yield ((item, partial(work, item)) for item in items)
        return
    todo: SimpleQueue[tuple[T, Future[U]] | None] = SimpleQueue()
    left = threading.Event()
    # Not an executor of concurrent.futures: at the interpreter's exit those refuse work while a study
    # that is still scored needs it, and the study would be called failed.
    readers = [
        threading.Thread(target=_serve, args=(todo, work, left), name=f"reader {n}", daemon=True)
        for n in range(threads)
    ]
    for reader in readers:
        reader.start()
    try:
        yield _in_order(items, todo, ahead)
    finally:
        left.set()
        for _ in readers:
            todo.put(None)
        deadline = time.monotonic() + _PATIENCE_S
        for reader in readers:
            reader.join(max(0.0, deadline - time.monotonic()))


def _in_order(
    items: Sequence[T], todo: SimpleQueue[tuple[T, Future[U]] | None], ahead: int
) -> Iterator[tuple[T, Callable[[], U]]]:
    begun: deque[tuple[T, Future[U]]] = deque()
    for item in items:
        given = (item, Future[U]())
        begun.append(given)
        todo.put(given)
        if len(begun) >= ahead:
            yield _taken(begun)
    while begun:
        yield _taken(begun)


def _taken(begun: deque[tuple[T, Future[U]]]) -> tuple[T, Callable[[], U]]:
    item, future = begun.popleft()
    return item, future.result


def _serve(
    todo: SimpleQueue[tuple[T, Future[U]] | None], work: Callable[[T], U], left: threading.Event
) -> None:
    while _serve_one(todo, work, left):
        pass


def _serve_one(
    todo: SimpleQueue[tuple[T, Future[U]] | None], work: Callable[[T], U], left: threading.Event
) -> bool:
    """Do one item; a function of its own, so that a reader that waits holds no slice."""
    given = todo.get()
    if given is None or left.is_set():
        return False
    item, future = given
    try:
        result = work(item)
    # Whatever it is belongs to this item, and is raised where its result is asked for.
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
    return True
