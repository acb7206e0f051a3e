"""What the processes of the receiving role know of each other, in a table that they share.

Each writes its own row and reads all of them. What needs a view of the whole is done under a lock that
the kernel takes back from a process that dies.
"""

import contextlib
import fcntl
import mmap
import os
import threading
from collections import Counter
from collections.abc import Collection, Iterator
from hashlib import blake2b

# Of a row, in words of eight bytes: connections taken for the process and ended by it, associations that
# have a place, studies that are being sent, and those.
_TAKEN, _ENDED, _PLACES, _COUNT, _FIRST = range(5)
_STUDIES = 251
_ROW = _FIRST + _STUDIES
# More studies than fit are being sent: it may be any.
_ANY = -1


class Fellows:
    """The table, made before the processes part.

    Parameters
    ----------
    processes
        How many share it; the first one listens.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._file = os.memfd_create("fellows", os.MFD_CLOEXEC)
        size_bytes = processes * _ROW * 8
        os.ftruncate(self._file, size_bytes)
        self.table = memoryview(mmap.mmap(self._file, size_bytes)).cast("q")
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other thread and process out."""
        with self._lock:
            fcntl.lockf(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)

    def column(self, word: int) -> list[int]:
        """Return one word of every process."""
        return self.table[word::_ROW].tolist()

    def connections(self) -> list[int]:
        """Return how many connections each process has."""
        return [taken - ended for taken, ended in zip(self.column(_TAKEN), self.column(_ENDED), strict=True)]

    def forget(self, number: int) -> None:
        """Clear the row of a process that has died: its associations have ended."""
        with self.locked():
            self.table[number * _ROW : (number + 1) * _ROW] = memoryview(bytes(_ROW * 8)).cast("q")

    def took(self, number: int) -> None:
        """Note that a connection was taken for a process; only the one that listens says so."""
        self.table[number * _ROW + _TAKEN] += 1


class Fellow:
    """One of the processes.

    Parameters
    ----------
    fellows
        All of them.
    number
        Which one it is.
    """

    def __init__(self, fellows: Fellows, number: int = 0) -> None:
        self.number = number
        self._fellows = fellows
        self._row = fellows.table[number * _ROW : (number + 1) * _ROW]
        self._sending: Counter[int] = Counter()

    @property
    def places(self) -> int:
        """How many associations of this process have a place."""
        return self._row[_PLACES]

    def enter(self, maximum: int) -> bool:
        """Give an association of this process a place, unless ``maximum`` have one in all processes."""
        with self._fellows.locked():
            if sum(self._fellows.column(_PLACES)) >= maximum:
                return False
            self._row[_PLACES] += 1
            return True

    def leave(self) -> None:
        """Take a place back."""
        with self._fellows.locked():
            self._row[_PLACES] -= 1

    def ended(self) -> None:
        """Note that a connection that was taken for this process has ended."""
        with self._fellows.locked():
            self._row[_ENDED] += 1

    def begins(self, study: str) -> None:
        """Note that an association of this process sends a study."""
        with self._fellows.locked():
            self._sending[_word(study)] += 1
            self._show()

    def ends(self, studies: Collection[str]) -> set[str]:
        """Note that an association that sent these studies has ended.

        Returns
        -------
        set of str
            Those that another association, of any process, is still sending.
        """
        with self._fellows.locked():
            for study in studies:
                self._sending[_word(study)] -= 1
            self._sending = +self._sending
            self._show()
            return {study for study in studies if self._is_sent(_word(study))}

    def _show(self) -> None:
        words = list(self._sending)
        self._row[_COUNT] = len(words) if len(words) <= _STUDIES else _ANY
        for at, word in enumerate(words[:_STUDIES], _FIRST):
            self._row[at] = word

    def _is_sent(self, word: int) -> bool:
        for first in range(0, len(self._fellows.table), _ROW):
            count = self._fellows.table[first + _COUNT]
            shown = self._fellows.table[first + _FIRST : first + _FIRST + max(count, 0)]
            if count == _ANY or word in shown.tolist():
                return True
        return False


def _word(study: str) -> int:
    return int.from_bytes(blake2b(study.encode(), digest_size=8).digest(), "little", signed=True)
