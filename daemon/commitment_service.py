"""Storage Commitment on the receiver's associations, in both roles (PS3.4 Annex J)."""

import logging
from collections.abc import Callable
from typing import Any

from pynetdicom import evt
from pynetdicom.association import Association

from daemon import dimse
from daemon.keeper import take_report
from daemon.log import event
from daemon.pledges import Pledges
from daemon.reporter import Reporter
from daemon.requestor import Destination
from daemon.spool import Spool


class CommitmentService:
    """Takes requests of peers (as SCP), and destinations' answers to ours (as SCU).

    Parameters
    ----------
    pledges, spool
        What was received and what was asked, and where the instances are.
    peer_node
        As of :class:`daemon.reporter.Reporter`.
    may_commit
        Whether an association's peer may ask, and report on what we asked.
    """

    def __init__(
        self,
        pledges: Pledges,
        spool: Spool,
        peer_node: Callable[[str, str], Destination | None],
        may_commit: Callable[[Association], bool],
    ) -> None:
        self.reporter = Reporter(pledges, spool, peer_node)
        self._pledges, self._may_commit = pledges, may_commit

    def handlers(self) -> list[Any]:
        """Return what pynetdicom is to call for which event."""
        return [
            (evt.EVT_N_ACTION, self._requested),
            (evt.EVT_N_EVENT_REPORT, self._reported),
            (evt.EVT_DIMSE_SENT, self._sent),
        ]

    def stop(self) -> None:
        """End; a peer whose report is not out asks again."""
        self.reporter.stop()

    def _requested(self, request: evt.Event) -> tuple[int, None]:
        """Answer one N-ACTION request (PS3.4 J.3.2); its report follows."""
        if not self._may_commit(request.assoc):
            return dimse.NOT_AUTHORISED, None
        try:
            return self.reporter.take(request), None
        # An edge: a peer's data set is parsed, and the database asked.
        except Exception as error:
            event("commitment", level=logging.ERROR, error=type(error).__name__)
            return dimse.PROCESSING_FAILURE, None

    def _sent(self, sent: evt.Event) -> None:
        if type(sent.message).__name__ == "N_ACTION_RSP":
            self.reporter.answered(sent.assoc)

    def _reported(self, report: evt.Event) -> tuple[int, None]:
        """Take a destination's answer to a request of ours (PS3.4 J.3.3)."""
        if not self._may_commit(report.assoc):
            # Without this line nobody would learn why its results are never committed.
            requestor: Any = report.assoc.requestor
            calling_ae = requestor.primitive.calling_ae_title
            reason = 'a report by a peer whose "may" in [[peers]] lacks "commit"'
            event("commitment", level=logging.WARNING, calling_ae=calling_ae, reason=reason)
            return dimse.NOT_AUTHORISED, None
        return take_report(report, self._pledges), None
