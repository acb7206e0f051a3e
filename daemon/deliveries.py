"""Deliveries: one revision's results to one destination, with per-instance outcome."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from daemon.audit import Trail, Transfer, no_trail
from daemon.index import DeliveryRecord, Index
from daemon.log import event, pseudonym
from daemon.manifest import keep_sent
from daemon.sections import DeliverySettings
from daemon.sender import Destination, SendOutcome, send
from daemon.spool import Spool

Send = Callable[[Sequence[Path], Destination], list[SendOutcome]]


class Courier:
    """Brings results to their destinations and records what became of each instance.

    Parameters
    ----------
    index
        Knows the pending deliveries.
    spool
        Has the results, and keeps where they are.
    destinations
        By name.
    settings
        Attempts and delays.
    pseudonym_key
        For the log.
    trail
        Where transfers are audited.
    """

    def __init__(
        self,
        index: Index,
        spool: Spool,
        destinations: Sequence[Destination],
        settings: DeliverySettings,
        pseudonym_key: bytes,
        clock: Callable[[], float] = time.time,
        trail: Trail | None = None,
    ) -> None:
        self._index, self._spool, self._settings = index, spool, settings
        self._trail = trail or no_trail()
        self._destinations = {destination.name: destination for destination in destinations}
        self._key, self._clock = pseudonym_key, clock

    def deliver(self, study: str, revision: int, destination: str) -> int:
        """Send what is pending of this revision for this destination.

        A few attempts follow at once; after that the delivery is due again later, with a growing
        delay, and becomes a dead letter when its time is over.

        Returns
        -------
        int
            How many instances are still not delivered.
        """
        waiting = self._waiting(study, revision, destination)
        if destination in self._index.paused():
            return len(waiting)
        target = self._destinations.get(destination)
        if target is None:
            self._settle(waiting, {}, f"destination {destination!r} is no longer in settings.toml")
            return len(waiting)
        paths = {
            result.sop_instance_uid: self._spool.path(result.path)
            for result in self._index.results_of(study, revision)
        }
        outcomes: dict[str, SendOutcome] = {}
        for attempt in range(self._settings.quick_attempts):
            remaining = [d for d in waiting if not _is_ok(outcomes.get(d.sop_instance_uid))]
            if not remaining:
                break
            if attempt:
                time.sleep(min(2.0**attempt, 5.0))
            # In order, not by the outcome's UID: a file that cannot be read has none.
            found = send([paths[d.sop_instance_uid] for d in remaining], target)
            outcomes |= {d.sop_instance_uid: outcome for d, outcome in zip(remaining, found, strict=True)}
        missing = self._settle(waiting, outcomes, "no answer from the destination")
        planned = [d.sop_instance_uid for d in self._index.deliveries(study, revision, destination)]
        if not missing and planned:
            keep_sent(self._spool, study, revision, destination, planned)
        event(
            "delivery",
            study=pseudonym(study, self._key),
            revision=revision,
            destination=destination,
            sent=len(waiting) - missing,
            failed=missing,
        )
        self._audit(study, revision, target, outcomes)
        return missing

    def _audit(
        self, study: str, revision: int, target: Destination, outcomes: Mapping[str, SendOutcome]
    ) -> None:
        """One message for what went, and one for what did not (PS3.15 table A.5.2-1)."""
        if not self._trail.active:
            return
        results = {r.sop_instance_uid: r for r in self._index.results_of(study, revision)}
        for ok in (True, False):
            chosen = {uid: outcome for uid, outcome in outcomes.items() if outcome.ok == ok}
            found = [results[uid] for uid in chosen if uid in results]
            if found:
                classes = Counter(result.sop_class_uid for result in found)
                transfer = Transfer(study, classes, self._spool.path(found[0].path))
                reason = "" if ok else next(iter(chosen.values())).reason or "not stored"
                self._trail.sent(target.name, target.ae_title, target.host, [transfer], reason)

    def _waiting(self, study: str, revision: int, destination: str) -> list[DeliveryRecord]:
        return self._index.deliveries(study, revision, destination, states=["pending", "failed"])

    def _settle(
        self, waiting: Sequence[DeliveryRecord], outcomes: dict[str, SendOutcome], default_reason: str
    ) -> int:
        missing = 0
        for delivery in waiting:
            outcome = outcomes.get(delivery.sop_instance_uid)
            if outcome is not None and outcome.ok:
                self._index.update_delivery(delivery, "sent", outcome.reason, next_at=self._clock())
                continue
            missing += 1
            reason = outcome.reason if outcome is not None else default_reason
            now = self._clock()
            delay = min(
                self._settings.retry_delay_s * 2.0 ** min(delivery.attempts, 30),
                self._settings.maximum_delay_s,
            )
            if now + delay > delivery.expires_at:
                self._index.update_delivery(delivery, "dead", reason)
            else:
                self._index.update_delivery(delivery, "failed", reason, next_at=now + delay)
        return missing


def _is_ok(outcome: SendOutcome | None) -> bool:
    return outcome is not None and outcome.ok
