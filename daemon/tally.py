"""What one association did: its counts, the answers to its C-STORE requests, and its line of the log."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pynetdicom.association import Association

from daemon import dimse
from daemon.audit import Transfer
from daemon.errors import DatabaseFullError
from daemon.limits import LimitError
from daemon.log import event, pseudonym
from daemon.spool import Spool, StoredInstance
from daemon.storing import Failure


@dataclass(slots=True)
class Tally:
    """What one association did; it becomes one line of the log."""

    may: frozenset[str] = frozenset()
    started: float = field(default_factory=time.monotonic)
    outcome: str = "aborted"
    statuses: Counter[int] = field(default_factory=Counter)
    size_bytes: int = 0
    studies: set[str] = field(default_factory=set)
    # Called with each study when its first instance came.
    begins: Callable[[str], None] = lambda _study: None
    # By study: instances by SOP class, and one of the files; for the audit trail.
    taken: dict[str, tuple[Counter[str], str]] = field(default_factory=dict)

    def take(self, finish: Callable[[], StoredInstance]) -> tuple[int, str]:
        """Finish and count one instance; no exception leaves here as C210 or C211.

        Parameters
        ----------
        finish
            Makes it durable.

        Returns
        -------
        tuple of int and str
            Status and comment to answer with (PS3.4 B.2.3).
        """
        status, comment = dimse.SUCCESS, ""
        try:
            self._count(finish())
        except Failure as failure:
            status, comment = failure.status, failure.comment[:64]
        except DatabaseFullError as error:
            # Its file stays: the instance is known there when it comes again.
            event("store failed", level=logging.ERROR, reason=str(error))
            status, comment = dimse.OUT_OF_RESOURCES, "the index has no room"
        # The edge of the daemon: whatever went wrong, the peer must learn that it is not stored.
        except Exception as error:
            event("store failed", level=logging.ERROR, error=type(error).__name__)
            status, comment = dimse.PROCESSING_FAILURE, "internal error, see the log"
        self.statuses[status] += 1
        return status, comment

    def _count(self, stored: StoredInstance) -> None:
        if stored.study_instance_uid not in self.studies:
            self.studies.add(stored.study_instance_uid)
            self.begins(stored.study_instance_uid)
        self.size_bytes += stored.size_bytes
        classes, _ = self.taken.setdefault(stored.study_instance_uid, (Counter(), stored.path))
        classes[stored.sop_class_uid] += 1

    def transfers(self, spool: Spool) -> list[Transfer]:
        """Return what came, study by study, as the audit trail takes it."""
        return [Transfer(uid, classes, spool.path(path)) for uid, (classes, path) in self.taken.items()]

    def over(self, error: LimitError) -> None:
        """Note that a limit ended it."""
        self.outcome = f"aborted: {error.reason} ({error.key or 'never allowed'})"

    def write(self, assoc: Association, key: bytes) -> None:
        """Write the association's line of the log.

        Parameters
        ----------
        assoc
            It has ended.
        key
            For the studies' pseudonyms.
        """
        requestor: Any = assoc.requestor
        request = requestor.primitive
        event(
            "association",
            calling_ae=request.calling_ae_title if request else "",
            called_ae=request.called_ae_title if request else "",
            address=requestor.address_info.address,
            outcome=self.outcome,
            studies=",".join(sorted(pseudonym(uid, key) for uid in self.studies)),
            instances=self.statuses[dimse.SUCCESS],
            failed=self.statuses.total() - self.statuses[dimse.SUCCESS],
            statuses=",".join(f"{status:04X}:{count}" for status, count in sorted(self.statuses.items())),
            bytes=self.size_bytes,
            duration_s=time.monotonic() - self.started,
        )
