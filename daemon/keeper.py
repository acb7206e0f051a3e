"""Asks destinations to commit themselves to what they got, again until they do (PS3.4 Annex J, as SCU)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pydicom.dataset import Dataset
from pynetdicom import evt

from daemon import commitment, dimse
from daemon.commitment import BadRequestError, Reference
from daemon.errors import SendError
from daemon.log import event, pseudonym
from daemon.pledges import Asked, Delivered, Pledges
from daemon.requestor import Destination, associate
from daemon.sections import CommitmentSettings


class _Outcome(NamedTuple):
    """What became of a request, in words, and how far it came."""

    words: str
    reached: bool = True
    accepted: bool = False


class Keeper:
    """Requests commitment of every delivered result of these destinations.

    Only requests that the destination accepted count towards giving up: one that is away, or takes
    none for now, is asked for ever, with a growing delay.

    Parameters
    ----------
    pledges
        What is delivered and not committed, and what was asked.
    destinations
        Those that offer storage commitment.
    settings
        How long an answer may take, and how often it is asked for.
    pseudonym_key
        For the log.
    clock
        Seconds since the epoch.
    """

    def __init__(
        self,
        pledges: Pledges,
        destinations: Sequence[Destination],
        settings: CommitmentSettings,
        pseudonym_key: bytes,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._pledges, self._settings, self._key, self._clock = pledges, settings, pseudonym_key, clock
        self._destinations = {destination.name: destination for destination in destinations}
        self._given_up: set[tuple[str, int, str]] = set()

    def run(self, stop: threading.Event, poll_s: float) -> None:
        """Look again and again until ``stop`` is set."""
        while self._destinations and not stop.wait(poll_s):
            try:
                self.tick()
            except Exception as error:  # the edge of this thread: a database that is away comes back
                event("commitment", level=logging.ERROR, error=type(error).__name__)

    def tick(self) -> int:
        """Ask once for everything that is due.

        Returns
        -------
        int
            How many requests were made.
        """
        made = 0
        away: set[str] = set()
        for key, items in self._pledges.uncommitted(list(self._destinations)).items():
            if key[2] in away:
                continue
            asked = self._pledges.asked(*key)
            if asked.accepted >= self._settings.maximum_requests:
                self._give_up(key, asked.accepted)
            elif self._clock() - asked.last >= self._delay_s(asked):
                made += 1
                # One that does not answer would hold the others up once for each of its studies.
                if not self._ask(key, items).reached:
                    away.add(key[2])
        return made

    def _delay_s(self, asked: Asked) -> float:
        """Seconds from one request to the next: longer and longer while none is accepted."""
        growth = 2.0 ** min(max(asked.failed - 1, 0), 30)
        longest = max(self._settings.maximum_delay_s, self._settings.timeout_s)
        return min(self._settings.timeout_s * growth, longest)

    def _ask(self, key: tuple[str, int, str], items: Sequence[Delivered]) -> _Outcome:
        study, revision, name = key
        self._given_up.discard(key)
        transaction = commitment.new_transaction()
        self._pledges.ask(transaction, *key, self._clock())
        references = [Reference(item.sop_class_uid, item.sop_instance_uid) for item in items]
        outcome = self._request(self._destinations[name], transaction, references)
        if outcome.accepted:
            self._pledges.accepted(transaction)
        event(
            "commitment requested",
            study=pseudonym(study, self._key),
            revision=revision,
            destination=name,
            instances=len(items),
            outcome=outcome.words,
        )
        return outcome

    def _request(self, target: Destination, transaction: str, references: Sequence[Reference]) -> _Outcome:
        """Send the N-ACTION, and take an N-EVENT-REPORT that comes on the same association at once."""
        reported = threading.Event()

        def report(received: evt.Event) -> tuple[int, Dataset | None]:
            status = take_report(received, self._pledges, self._clock)
            reported.set()
            return status, None

        contexts = [(commitment.SOP_CLASS, dimse.NATIVE)]
        handlers = [(evt.EVT_N_EVENT_REPORT, report)]
        try:
            with associate(target, contexts, handlers) as assoc:
                if not assoc.accepted_contexts:
                    return _Outcome("does not accept Storage Commitment")
                ds = commitment.request(transaction, references)
                status, _ = assoc.send_n_action(
                    ds, commitment.REQUEST, commitment.SOP_CLASS, commitment.SOP_INSTANCE
                )
                answer = status.get("Status")
                if answer is None:
                    return _Outcome(f"no answer within {target.dimse_timeout_s:g} s", reached=False)
                if answer != dimse.SUCCESS:
                    return _Outcome(f"refused with {dimse.status_name(answer)}")
                words = "answered" if reported.wait(self._settings.wait_s) else "accepted"
                return _Outcome(words, accepted=True)
        except SendError as error:
            return _Outcome(str(error), reached=False)

    def _give_up(self, key: tuple[str, int, str], times: int) -> None:
        if key not in self._given_up:
            self._given_up.add(key)
            study, revision, name = key
            event(
                "commitment given up",
                level=logging.ERROR,
                study=pseudonym(study, self._key),
                revision=revision,
                destination=name,
                attempts=times,
            )


def take_report(received: Any, pledges: Pledges, clock: Callable[[], float] = time.time) -> int:
    """Record an N-EVENT-REPORT that answers a request of ours.

    Returns
    -------
    int
        The status to answer with (PS3.4 J.3.3.1.3, PS3.7 Annex C).
    """
    try:
        report = commitment.decode(received.event_information)
        settled = commitment.settle(report, pledges, clock)
    except BadRequestError:
        return dimse.INVALID_ARGUMENT
    # A peer's data set is parsed here, and the database may be away: it reports again.
    except Exception as error:
        event("commitment", level=logging.ERROR, error=type(error).__name__)
        return dimse.PROCESSING_FAILURE
    if settled is None:
        event("commitment", level=logging.WARNING, reason="an answer to a request that was never made")
        return dimse.NO_SUCH_INSTANCE
    destination, committed, failed = settled
    event("commitment", destination=destination, instances=committed, failed=failed)
    return dimse.SUCCESS
