"""Behind Success: what the journal holds becomes files and rows of the index, many at a time."""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from daemon.errors import SpoolError
from daemon.files import sync_file_system
from daemon.index import Index
from daemon.log import event
from daemon.part import StoredInstance
from daemon.reception.journal import SEGMENT_BYTES, Journal, Segment
from daemon.reception.record import Page, Record, read_segment
from daemon.reception.replay import JOURNAL, Replay, store
from daemon.spool import Spool

# Instances on their way from the journal to files: each holds a page.
_PAGES = 32
# Instances that enter the index together, and how long one waits for others, unless somebody
# waits for it.
_BATCH = 128
_GATHER_S = 0.1
# Files are made this many at a time, or this long after the first came: whoever makes one at a time
# takes the interpreter from the associations each time.
_TOGETHER = 8
_FILE_S = 0.02
# After this long without an instance a segment's files are made durable though it has room.
_IDLE_S = 0.5
_RETRY_S = 1.0
# Beside a new segment, for files and rows.
_SPARE_BYTES = 4 * 1024 * 1024
_LOOK_S = 0.2
# How often a journal is looked for that a process left behind.
_AGAIN_S = 5.0


@dataclass(slots=True)
class Arrival:
    """One acknowledged instance; ``stored`` once it is a file."""

    record: Record
    page: Page | None
    segment: Segment
    stored: StoredInstance | None = None


class Settler:
    """Moves instances from the journal to their places.

    Parameters
    ----------
    spool, index
        Their places.
    """

    def __init__(self, spool: Spool, index: Index) -> None:
        self._spool = spool
        self._index = index
        self.journal = Journal(spool.root / JOURNAL)
        self._replay = Replay(spool, index)
        lock = threading.Lock()
        # Of instances that wait for their files, of pages that are free, of instances in the index.
        self._arrived, self._freed, self._done = (threading.Condition(lock) for _ in range(3))
        self._waiting: deque[Arrival] = deque()
        self._pages: list[Page] = []
        self._made = 0
        self._submitted = 0
        self._settled = 0
        self._wanted = 0
        self._failing = False
        self._closing = False
        self._work = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Take in what an earlier run left in its journal, then be ready; what fails is tried again later."""
        self._replay.look()
        self._grow()
        for target in (self._settle, self._keep):
            thread = threading.Thread(target=target, name=f"journal {target.__name__}", daemon=True)
            thread.start()
            self._threads.append(thread)

    # For associations

    def page(self) -> Page | None:
        """Return memory for an instance, or None when it had better be a file at once."""
        with self._freed:
            if self._failing or self._closing:
                return None
            if self._pages:
                return self._pages.pop()
            if self._made >= _PAGES:
                # A moment's wait is shorter than a file's way to the disk.
                self._freed.wait_for(lambda: bool(self._pages), 0.05)
                return self._pages.pop() if self._pages else None
            self._made += 1
            return Page()

    def give_back(self, page: Page) -> None:
        """Take memory back."""
        page.used = 0
        with self._freed:
            self._pages.append(page)
            self._freed.notify()

    def submit(self, record: Record, page: Page) -> int | None:
        """Make an instance durable; its page is taken.

        Returns
        -------
        int or None
            What :meth:`wait` takes; None when the journal has no room for it.

        Raises
        ------
        SpoolError
            The disk failed.
        """
        segment = self.journal.append(page, record)
        if segment is None:
            self._work.set()
            return None
        if self.journal.wants_more:
            self._work.set()
        with self._arrived:
            self._waiting.append(Arrival(record, page, segment))
            self._submitted += 1
            if len(self._waiting) in (1, _TOGETHER):
                self._arrived.notify()
            return self._submitted

    def wait(self, ticket: int, timeout_s: float) -> bool:
        """Wait until an instance and all before it are files in the index, unless that fails just now."""
        with self._done:
            self._wanted += 1
            self._arrived.notify()
            self._done.wait_for(lambda: self._settled >= ticket or self._failing, timeout_s)
            self._wanted -= 1
            return self._settled >= ticket

    # The thread that moves

    def _settle(self) -> None:
        batch: list[Arrival] = []
        until = 0.0
        while True:
            is_due = self._gather(batch, until)
            if not batch:
                return
            until = until or time.monotonic() + _GATHER_S
            while not self._attempt(batch, index=is_due):
                # Durable they are. What is missing are their files or rows: the disk is full, or the
                # database away. Meanwhile new instances are told so, as in the stock way.
                if self._closing:
                    return
                time.sleep(_RETRY_S)
            if is_due:
                batch, until = [], 0.0

    def _gather(self, batch: list[Arrival], until: float) -> bool:
        """Wait for more instances; True when the batch is to enter the index now."""
        with self._arrived:
            left_s = max(0.0, until - time.monotonic()) if batch else None
            self._arrived.wait_for(lambda: self._waiting or self._closing or (batch and self._wanted), left_s)
            if self._waiting:
                self._arrived.wait_for(
                    lambda: len(self._waiting) >= _TOGETHER or self._closing or self._wanted, _FILE_S
                )
            while self._waiting and len(batch) < _BATCH:
                batch.append(self._waiting.popleft())
            # Many rows in one transaction cost little more than one.
            is_late = until > 0.0 and time.monotonic() >= until
            return is_late or len(batch) == _BATCH or self._wanted > 0 or self._closing

    def _attempt(self, batch: list[Arrival], *, index: bool) -> bool:
        """Place a batch's instances, and index all of it or nothing; False when something failed."""
        try:
            for arrival in batch:
                if arrival.stored is None:
                    arrival.stored = self._place(arrival)
            if index and not self._index_batch(batch):
                return False
        # The edge of this thread: it must not end while anything was acknowledged.
        except Exception as error:
            if not self._failing:
                event("journal", level=logging.ERROR, error=type(error).__name__, instances=len(batch))
            with self._done:
                self._failing = True
                self._done.notify_all()
            return False
        with self._done:
            self._failing = False
            if index:
                self._settled += len(batch)
                self._done.notify_all()
        return True

    def _index_batch(self, batch: list[Arrival]) -> bool:
        stored = [arrival.stored for arrival in batch if arrival.stored is not None]
        gone = {instance.path for instance in self._index.add_instances(stored, self._spool)}
        for arrival in batch:
            if arrival.stored is not None and arrival.stored.path in gone:
                # It was there already, and was pruned as it came again.
                arrival.stored = None
        if not gone:
            for arrival in batch:
                self.journal.release(arrival.segment)
        return not gone

    def _place(self, arrival: Arrival) -> StoredInstance:
        if arrival.page is None:
            # Its memory is given back; the journal still has it.
            for record, data in read_segment(arrival.segment.path):
                if record == arrival.record:
                    return store(self._spool, record, memoryview(data))
            raise SpoolError("the journal cannot be read: look at the disk")
        stored = store(self._spool, arrival.record, arrival.page.data)
        self.give_back(arrival.page)
        arrival.page = None
        return stored

    # The thread that keeps the journal short

    def _keep(self) -> None:
        quiet_since = tried_at = time.monotonic()
        seen = 0
        while not self._closing:
            self._work.wait(_LOOK_S)
            self._work.clear()
            if self.journal.wants_more:
                self._grow()
            if self._settled != seen or self._settled != self._submitted:
                seen, quiet_since = self._settled, time.monotonic()
            with self._reported("journal"):
                self._checkpoint(idle=time.monotonic() - quiet_since > _IDLE_S)
            if time.monotonic() - tried_at > _AGAIN_S:
                self._replay.look()
                tried_at = time.monotonic()

    def _grow(self) -> None:
        """Make a segment if there is room: an attempt without it would fill the disk for everybody else."""
        if self._spool.has_room(SEGMENT_BYTES + _SPARE_BYTES):
            with self._reported("journal"):
                self.journal.grow()

    def _checkpoint(self, *, idle: bool) -> None:
        finished = self.journal.finished(idle=idle)
        if finished:
            try:
                sync_file_system(self._spool.root)
            except OSError as error:
                raise SpoolError("the spool's file system cannot be synchronised") from error
        for segment in finished:
            self.journal.reuse(segment)

    @contextlib.contextmanager
    def _reported(self, name: str) -> Iterator[None]:
        try:
            yield
        except SpoolError as error:
            event(name, level=logging.ERROR, reason=str(error))

    # Start and stop

    def close(self, timeout_s: float = 10.0) -> None:
        """Settle what was submitted, if that is possible in time, and end."""
        self.wait(self._submitted, timeout_s)
        with self._arrived:
            self._closing = True
            self._arrived.notify()
        self._work.set()
        for thread in self._threads:
            thread.join(timeout_s)
        if self._settled == self._submitted:
            with self._reported("journal"):
                self._checkpoint(idle=True)
        self.journal.close()
