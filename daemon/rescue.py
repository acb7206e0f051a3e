"""Work that its executor cannot finish: of the dead, of an earlier version, and long completed.

Each process that works on a queue has one :class:`Rescuer` in a thread. It says that it is alive, on
the database's clock, and takes over from executors that are not. Work that is taken over while its
owner lives after all (a host that was cut off) is done twice with the same outcome: every step may be
repeated.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from dbos import DBOS, WorkflowStatus
from dbos._dbos import _get_dbos_instance

from daemon.database import bound_cache, wait_out_full_disk
from daemon.index import Index
from daemon.log import event

_DELETE_AT_ONCE = 500
_DAY_S = 86_400.0


class Rescuer:
    """Heartbeat, reaper and housekeeper of one executor.

    Parameters
    ----------
    index
        Has the heartbeats.
    executor_id, queue, version
        Ours; only work of this queue is taken over, and brought to this version.
    dead_after_s
        Silence after which an executor is dead.
    keep_completed_s
        Age at which completed workflows are deleted.
    """

    def __init__(
        self,
        index: Index,
        executor_id: str,
        queue: str,
        version: str,
        dead_after_s: float,
        keep_completed_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._index, self._id, self._queue, self._version = index, executor_id, queue, version
        self._dead_after_s, self._keep_completed_s = dead_after_s, keep_completed_s
        self._clock = clock
        self._beating_since: float | None = None
        self._cleaned_at = float("-inf")
        self._missing: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rescuer", daemon=True)

    def start(self) -> None:
        """Adopt our own work of an earlier version, then keep watch in a thread."""
        engine = _get_dbos_instance()._sys_db.engine
        if engine.dialect.name == "sqlite":
            wait_out_full_disk(engine)
            bound_cache(engine)
        self._index.heartbeat(self._id)
        self._adopt(self._strangers(self._index.alive_executors(self._dead_after_s)))
        self._thread.start()

    def stop(self) -> None:
        """Leave in order: what we did not finish is free for others at once."""
        self._stop.set()
        self._thread.join(10.0)
        if not self._thread.is_alive():
            self._index.forget_executor(self._id)

    def beat(self) -> None:
        """Say that we are alive; take over what the dead left; delete what is long completed."""
        self._index.heartbeat(self._id)
        self._resume_dropped()
        now = self._clock()
        if self._beating_since is None:
            self._beating_since = now
        alive = self._index.alive_executors(self._dead_after_s) | {self._id}
        # After an outage of the database everybody looks dead until each had time to say otherwise.
        if now - self._beating_since >= self._dead_after_s:
            self._reap(alive)
            self._adopt(self._strangers(alive))
        if now - self._cleaned_at >= _DAY_S:
            self._cleaned_at = now
            self._delete_completed()

    def _run(self) -> None:
        interval_s = self._dead_after_s / 6
        while True:
            started = self._clock()
            try:
                self.beat()
            except Exception as error:
                # The named edge of the rescuer: without the database nothing can be rescued.
                event("rescuer", level=logging.ERROR, error=type(error).__name__)
                self._beating_since = None
            if self._clock() - started > self._dead_after_s / 2:
                self._beating_since = None
            if self._stop.wait(interval_s):
                return

    def _reap(self, alive: set[str]) -> None:
        running = DBOS.list_workflows(
            status="PENDING", queue_name=self._queue, load_input=False, load_output=False
        )
        dead = {workflow.executor_id for workflow in running if workflow.executor_id not in alive}
        for executor in sorted(filter(None, dead)):
            taken = DBOS._recover_pending_workflows([executor])
            self._index.forget_executor(executor)
            event("work of a dead executor taken over", level=logging.WARNING, role=executor, sent=len(taken))

    def _resume_dropped(self) -> None:
        """Begin again what is ours by the queue, but which no thread of ours works on.

        A full disk or a database that goes away ends a thread between the queue's own two steps: the
        work is taken, and nobody does it. Twice missed is missing: the first time it may be starting.
        """
        running = set(_get_dbos_instance()._active_workflows_set.activeList())
        taken = DBOS.list_workflows(
            status="PENDING",
            queue_name=self._queue,
            executor_id=self._id,
            load_input=False,
            load_output=False,
        )
        missing = {workflow.workflow_id for workflow in taken} - running
        for workflow_id in sorted(missing & self._missing):
            DBOS.resume_workflow(workflow_id, queue_name=self._queue)
            event("dropped work resumed", level=logging.WARNING, role=self._id)
        self._missing = missing - self._missing

    def _strangers(self, alive: set[str]) -> list[WorkflowStatus]:
        """Unfinished work of another version that no living executor has in hand."""
        found = DBOS.list_workflows(
            status=["PENDING", "ENQUEUED"], queue_name=self._queue, load_input=False, load_output=False
        )
        others = [workflow for workflow in found if workflow.app_version != self._version]
        in_hand = alive - {self._id}
        return [w for w in others if w.status == "ENQUEUED" or w.executor_id not in in_hand]

    def _adopt(self, workflows: list[WorkflowStatus]) -> None:
        """Bring work to our version: it goes on after its last completed step."""
        for workflow in workflows:
            steps = DBOS.list_workflow_steps(workflow.workflow_id)
            done = [step for step in steps if step["error"] is None]
            DBOS.cancel_workflow(workflow.workflow_id)
            DBOS.rewind_workflow(
                workflow.workflow_id,
                start_step=len(done) + 1,
                application_version=self._version,
                queue_name=self._queue,
                queue_partition_key=workflow.queue_partition_key,
            )
        if workflows:
            event("work of another version taken over", level=logging.WARNING, sent=len(workflows))
        left = self._strangers(alive=self._index.alive_executors(self._dead_after_s))
        if left:
            event("work of another version waits", level=logging.ERROR, failed=len(left))

    def _delete_completed(self) -> None:
        before = datetime.now(UTC) - timedelta(seconds=self._keep_completed_s)
        deleted = 0
        while not self._stop.is_set():
            old = DBOS.list_workflows(
                status=["SUCCESS", "ERROR", "CANCELLED"],
                completed_before=before.isoformat(),
                limit=_DELETE_AT_ONCE,
                load_input=False,
                load_output=False,
            )
            if not old:
                break
            DBOS.delete_workflows([workflow.workflow_id for workflow in old])
            deleted += len(old)
        if deleted:
            event("completed work deleted", sent=deleted)
