"""The durable steps around the pipeline, on DBOS; the only home of the engine.

Two queues, each served by a process of its own: ``score`` (one study at a time: the model is
there once) and ``send`` (partitioned by destination: a dead PACS stalls nobody else). The
workflow id names the work (``score:STUDY:REVISION``), so asking twice does it once; arguments
and step results are references in JSON, never pixels or patient data.

The dispatcher is the only one who asks. It looks at the index, not at the engine: the queue can
be made again from the index, and the index from the spool.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeVar

from dbos import (
    DBOS,
    DBOSClient,
    DBOSConfig,
    DBOSPortableJSONSerializer,
    EnqueueOptions,
    run_dbos_database_migrations,
)

from daemon.deliveries import Courier
from daemon.errors import DatabaseError, DiskReserveError
from daemon.index import Index
from daemon.jobs import JobRecord, ResultRef
from daemon.log import event
from daemon.records import DueDelivery
from daemon.rescue import Rescuer
from daemon.settings import Settings

if TYPE_CHECKING:  # the analyst brings the model along; other roles must not load it
    from daemon.analyst import Analyst

T = TypeVar("T")

SCORE_QUEUE = "score"
SEND_QUEUE = "send"
# Stated, not derived from the source: work in flight goes on after an upgrade. Raise it only when
# the steps of a workflow change, and then give the old ones a way to finish.
WORKFLOW_VERSION = "1"

# How long the dispatcher remembers what it asked for, and when it looks whether that came to an end.
_FORGET_S = 3_600.0
_LOOK_AGAIN_S = 30.0
_CLOCK_SLACK_S = 60.0
_FAILED = ("ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED", "CANCELLED")


def prepare_database(settings: Settings) -> None:
    """Make or upgrade the engine's own tables; to be called before any process uses them."""
    _quiet_logger()
    run_dbos_database_migrations(settings.engine_url)


def serve_scoring(settings: Settings, index: Index, analyst: Analyst) -> Rescuer:
    """Work on the ``score`` queue in this process until :func:`stop`."""
    executor_id = _configure(settings, SCORE_QUEUE)

    @DBOS.step(name="open_job")
    def open_job(study: str, revision: int) -> dict[str, object]:
        return asdict(_patiently(lambda: analyst.open_job(study, revision)))

    @DBOS.step(name="run_job")
    def run_job(job: dict[str, object]) -> dict[str, object]:
        return asdict(_patiently(lambda: analyst.run_job(JobRecord.from_dict(job))))

    @DBOS.step(name="close_job")
    def close_job(job: dict[str, object], result: dict[str, object]) -> None:
        _patiently(lambda: analyst.close_job(JobRecord.from_dict(job), ResultRef.from_dict(result)))

    @DBOS.workflow(name="score_study", max_recovery_attempts=settings.engine.maximum_recovery_attempts)
    def score_study(study: str, revision: int) -> None:
        job = open_job(study, revision)
        close_job(job, run_job(job))

    rescuer = _launch(settings, index, executor_id, SCORE_QUEUE)
    DBOS.register_queue(SCORE_QUEUE, worker_concurrency=1, polling_interval_sec=settings.engine.poll_s)
    return rescuer


def serve_sending(settings: Settings, index: Index, courier: Courier) -> Rescuer:
    """Work on the ``send`` queue in this process until :func:`stop`."""
    executor_id = _configure(settings, SEND_QUEUE)

    @DBOS.step(name="deliver")
    def deliver(study: str, revision: int, destination: str) -> int:
        return _patiently(lambda: courier.deliver(study, revision, destination))

    @DBOS.workflow(name="deliver_results", max_recovery_attempts=1_000)
    def deliver_results(study: str, revision: int, destination: str) -> int:
        return deliver(study, revision, destination)

    rescuer = _launch(settings, index, executor_id, SEND_QUEUE)
    DBOS.register_queue(
        SEND_QUEUE,
        worker_concurrency=max(4, len(settings.destinations)),
        partition_worker_concurrency=1,
        polling_interval_sec=settings.engine.poll_s,
    )
    return rescuer


def stop(rescuer: Rescuer, timeout_s: float) -> None:
    """Let the running workflow finish for at most ``timeout_s``; what remains is recovered later."""
    DBOS.destroy(workflow_completion_timeout_sec=int(timeout_s))
    rescuer.stop()


class Dispatcher:
    """Ask for whatever the index says is due and has no workflow yet.

    Parameters
    ----------
    settings, index
        What is due, and when.
    clock
        Seconds since the epoch.
    """

    def __init__(self, settings: Settings, index: Index, clock: Callable[[], float] = time.time) -> None:
        self._settings, self._index, self._clock = settings, index, clock
        self._asked: dict[str, float] = {}
        self._client = DBOSClient(
            system_database_url=settings.engine_url,
            serializer=DBOSPortableJSONSerializer(),
            application_name="pacs-anomaly-daemon",
        )

    def close(self) -> None:
        """Close the connection to the queue."""
        self._client.destroy()

    def tick(self) -> None:
        """Look once: open revisions of stable studies, ask for scoring and deliveries, note failures."""
        for study in self._index.due_studies(self._clock(), self._settings.study.quiet_s):
            # One revision after the other: the next one's SR names this one's, and what comes while
            # it waits for its turn needs no revision each.
            if study.state not in ("stable", "scoring"):
                self._index.open_revision(study.study_instance_uid, study.revision + 1)
        for study in self._index.list_studies(["stable"]):
            self._ask_scoring(study.study_instance_uid, study.revision)
        for study in self._index.list_studies(["scoring"]):
            self._note_failure(study.study_instance_uid, study.revision)
        now = self._clock()
        far = now + self._settings.delivery.maximum_delay_s + _CLOCK_SLACK_S
        paused = self._index.paused()
        for due in self._index.due_deliveries(now, far):
            if due.destination not in paused:
                self._ask_delivery(due)
        # What is no longer due needs no memory; the engine knows its names in any case.
        limit = time.monotonic() - _FORGET_S
        self._asked = {name: at for name, at in self._asked.items() if at > limit}

    def _ask_scoring(self, study: str, revision: int) -> None:
        workflow_id = f"score:{study}:{revision}"
        if workflow_id in self._asked:
            self._note_failure(study, revision)
            return
        self._enqueue(SCORE_QUEUE, "score_study", workflow_id, None, study, revision)

    def _ask_delivery(self, due: DueDelivery) -> None:
        workflow_id = f"send:{due.study}:{due.revision}:{due.destination}:{due.attempts}"
        asked = self._asked.get(workflow_id)
        if asked is None:
            what = (due.study, due.revision, due.destination)
            self._enqueue(SEND_QUEUE, "deliver_results", workflow_id, due.destination, *what)
        elif time.monotonic() - asked > _LOOK_AGAIN_S:
            self._asked[workflow_id] = time.monotonic()
            found = self._client.list_workflows(
                workflow_ids=[workflow_id], load_input=False, load_output=False
            )
            if found and found[0].status in ("SUCCESS", *_FAILED):
                # It ended without an outcome (the destination was paused meanwhile): its name is used up.
                self._index.skip_attempt(due)

    def _enqueue(
        self, queue: str, workflow: str, workflow_id: str, partition: str | None, *arguments: str | int
    ) -> None:
        options: EnqueueOptions = {
            "queue_name": queue,
            "workflow_name": workflow,
            "workflow_id": workflow_id,
            "app_version": WORKFLOW_VERSION,
        }
        if partition is not None:
            options["queue_partition_key"] = partition
        self._client.enqueue(options, *arguments)
        self._asked[workflow_id] = time.monotonic()

    def _note_failure(self, study: str, revision: int) -> None:
        """A workflow that the engine gave up leaves its study failed, visibly, not for ever in work."""
        workflow_id = f"score:{study}:{revision}"
        found = self._client.list_workflows(workflow_ids=[workflow_id], load_input=False, load_output=False)
        if found and found[0].status in _FAILED:
            reason = "scoring failed repeatedly and was set aside; see the log, then `daemon retry`"
            self._index.set_state(study, "failed", reason)
            event("study set aside", level=logging.ERROR, status=found[0].status)


def _patiently(step: Callable[[], T]) -> T:
    """Repeat a step while the database is away or the disk full: that is no reason to give a study up."""
    delay_s = 1.0
    while True:
        try:
            return step()
        except (DatabaseError, DiskReserveError) as error:
            event("the step waits", level=logging.WARNING, error=type(error).__name__, duration_s=delay_s)
            time.sleep(delay_s)
            delay_s = min(2 * delay_s, 10.0)


def executor_name(settings: Settings, role: str) -> str:
    """Our name among the executors: stable, so that a restarted process recovers its own work alone."""
    return f"{role}@{settings.engine.node or socket.gethostname()}"


def _configure(settings: Settings, role: str) -> str:
    executor_id = executor_name(settings, role)
    config: DBOSConfig = {
        "name": "pacs-anomaly-daemon",
        "system_database_url": settings.engine_url,
        "application_version": WORKFLOW_VERSION,
        "executor_id": executor_id,
        "enable_otlp": False,
        "serializer": DBOSPortableJSONSerializer(),
        "use_listen_notify": False,
        "log_level": "ERROR",
    }
    _quiet_logger()
    DBOS(config=config)
    return executor_id


def _launch(settings: Settings, index: Index, executor_id: str, queue: str) -> Rescuer:
    rescuer = Rescuer(
        index,
        executor_id,
        queue,
        WORKFLOW_VERSION,
        dead_after_s=settings.engine.dead_after_s,
        keep_completed_s=settings.engine.keep_completed_days * 86_400.0,
    )
    index.heartbeat(executor_id)
    DBOS.listen_queues([queue])
    DBOS.launch()
    _quiet_logger()
    rescuer.start()
    return rescuer


def _quiet_logger() -> None:
    # The engine logs tracebacks of retried steps and its console's address; what matters is in the index.
    logger = logging.getLogger("dbos")
    logger.setLevel(logging.CRITICAL)
    logger.propagate = False
