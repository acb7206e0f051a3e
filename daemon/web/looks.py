"""Who looked at which study a moment ago: a series has hundreds of pictures, and is looked at once."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

_SPAN_S = 600.0
_KEPT = 1024


class Looks:
    """Remembers for some minutes.

    Parameters
    ----------
    clock
        Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._at: OrderedDict[tuple[str, str], float] = OrderedDict()

    def note(self, name: str, uid: str) -> bool:
        """Remember that somebody looks at a study; whether that is new."""
        now = self._clock()
        with self._lock:
            before = self._at.pop((name, uid), None)
            self._at[(name, uid)] = now
            while len(self._at) > _KEPT:
                self._at.popitem(last=False)
        return before is None or now - before > _SPAN_S
