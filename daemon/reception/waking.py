"""A queue that wakes whoever waits for something else, too: nobody has to poll."""

import queue
from collections.abc import Callable
from typing import Any


class Waking(queue.Queue[Any]):
    """A queue that tells somebody that it has something.

    Parameters
    ----------
    wake
        Called after each item, in the thread that puts it.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        super().__init__()
        self._wake = wake

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an item, then tell."""
        super().put(item, block, timeout)
        self._wake()
