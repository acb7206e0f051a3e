"""Answers requests for storage commitment (PS3.4 Annex J, as SCP), on the same association or a new one."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pynetdicom import build_role

from daemon import commitment, dimse
from daemon.commitment import BadRequestError, Report
from daemon.errors import SendError
from daemon.log import event
from daemon.pledges import Pledges
from daemon.requestor import Destination, associate
from daemon.spool import Spool

_RETRY_DELAYS_S = (2.0, 15.0, 60.0, 300.0)
_MAXIMUM_WAITING = 1_000
_MAXIMUM_INSTANCES = 50_000


@dataclass(slots=True)
class _Job:
    report: Report
    assoc: Any
    peer: Destination | None
    attempts: int = 0


class Reporter:
    """Judges requests at once and reports from a thread of its own.

    Parameters
    ----------
    pledges, spool
        What was received, and where it is.
    peer_node
        Gives the node of a peer by calling AE title and address; None when it is not known where
        that peer listens.
    """

    def __init__(
        self, pledges: Pledges, spool: Spool, peer_node: Callable[[str, str], Destination | None]
    ) -> None:
        self._pledges, self._spool, self._peer_node = pledges, spool, peer_node
        self._answered: dict[int, _Job] = {}
        self._waiting: list[tuple[float, int, _Job]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def take(self, request: Any) -> int:
        """Judge a request (N-ACTION); the report goes out once :meth:`answered` is called.

        Returns
        -------
        int
            The N-ACTION's status.
        """
        if request.action_type != commitment.REQUEST:
            return dimse.NO_SUCH_ACTION
        try:
            transaction, references = commitment.read_request(request.action_information)
        except BadRequestError:
            return dimse.INVALID_ARGUMENT
        if len(self._waiting) >= _MAXIMUM_WAITING:
            return dimse.RESOURCE_LIMITATION
        report = commitment.judge(transaction, references, self._pledges, self._spool, _MAXIMUM_INSTANCES)
        requestor = request.assoc.requestor
        peer = self._peer_node(requestor.primitive.calling_ae_title, requestor.address_info.address)
        self._answered[id(request.assoc)] = _Job(report, request.assoc, peer)
        event("commitment judged", instances=len(report.committed), failed=len(report.failed))
        return dimse.SUCCESS

    def answered(self, assoc: Any) -> None:
        """The N-ACTION's answer is on its way: the report may follow."""
        job = self._answered.pop(id(assoc), None)
        if job is not None:
            self._add(job, 0.0)

    def stop(self) -> None:
        """End the thread; a peer whose report is not out asks again."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(5.0)

    def _add(self, job: _Job, delay_s: float) -> None:
        with self._changed:
            heapq.heappush(self._waiting, (time.monotonic() + delay_s, next(self._numbers), job))
            if self._thread is None and not self._stopped:
                self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._stopped and (not self._waiting or self._waiting[0][0] > time.monotonic()):
                    due = self._waiting[0][0] - time.monotonic() if self._waiting else None
                    self._changed.wait(due)
                if self._stopped:
                    return
                job = heapq.heappop(self._waiting)[2]
            self._work(job)

    def _work(self, job: _Job) -> None:
        outcome = self._report(job)
        job.attempts += 1
        job.assoc = None
        name = job.peer.name if job.peer else ""
        if not outcome:
            event("commitment reported", peer=name, attempts=job.attempts)
        elif job.peer is None or job.attempts > len(_RETRY_DELAYS_S):
            level = logging.ERROR
            event("commitment not reported", level=level, peer=name, attempts=job.attempts, reason=outcome)
        else:
            self._add(job, _RETRY_DELAYS_S[job.attempts - 1])

    def _report(self, job: _Job) -> str:
        """Report on the association of the request if it is still there, else on one of ours; "" if done."""
        reason = "the association is gone and [[peers]] does not say where this peer listens"
        # An exception of the network's library must end neither this thread nor the report.
        try:
            if job.assoc is not None and job.assoc.is_established:
                reason = self._send(job.assoc, job.report)
                if not reason:
                    return ""
        except Exception as error:
            reason = type(error).__name__
        if job.peer is None:
            return reason
        role = build_role(commitment.SOP_CLASS, scp_role=True)
        contexts = [(commitment.SOP_CLASS, dimse.NATIVE)]
        try:
            with associate(job.peer, contexts, extended=[role]) as assoc:
                if not assoc.accepted_contexts:
                    return "the peer does not accept Storage Commitment reports"
                return self._send(assoc, job.report)
        except SendError as error:
            return str(error)
        except Exception as error:
            return type(error).__name__

    @staticmethod
    def _send(assoc: Any, report: Report) -> str:
        status, _ = assoc.send_n_event_report(
            commitment.encode(report), report.event_type, commitment.SOP_CLASS, commitment.SOP_INSTANCE
        )
        found = status.get("Status")
        if found is None:
            return "no answer to the report"
        return "" if found == dimse.SUCCESS else f"refused with {dimse.status_name(found)}"
