"""Retention: the files of studies that nobody waits for any more go, by age and before the disk is full.

A study goes only when each of its results arrived at each of its destinations, and is committed to
storage where the destination offers that. Its row, results' UIDs and deliveries stay in the index, so
that a study that comes again gets a new revision and new UIDs.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from daemon.index import Index
from daemon.log import event
from daemon.part import study_prefix, uid_name
from daemon.patch_maps import PatchMaps
from daemon.settings import Settings
from daemon.spool import Spool
from daemon.upkeep import Prunable

_DAY_S = 86_400.0
_LOOK_S = 30.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be removed: studies by age, and the oldest others that make room."""

    by_age: tuple[Prunable, ...]
    by_space: tuple[Prunable, ...]

    @property
    def size_bytes(self) -> int:
        """What their instances take."""
        return sum(item.size_bytes for item in (*self.by_age, *self.by_space))


class Pruner:
    """Removes the files of studies as ``[retention]`` says.

    Parameters
    ----------
    settings, index, spool
        What may go, and where it is.
    clock
        Seconds since the epoch.
    """

    def __init__(
        self, settings: Settings, index: Index, spool: Spool, clock: Callable[[], float] = time.time
    ) -> None:
        self._settings, self._index, self._spool, self._clock = settings, index, spool, clock

    def plan(self, *, by_age: bool = True) -> Plan:
        """Decide what goes; nothing is removed."""
        options = self._settings.retention
        candidates = self._index.prunable(self._settings.committing)
        old: list[Prunable] = []
        if by_age and options.maximum_age_days:
            limit = self._clock() - options.maximum_age_days * _DAY_S
            old = [item for item in candidates if item.last_received < limit]
        wanted = options.prune_below_bytes - self._spool.free_bytes() - sum(i.size_bytes for i in old)
        gone = {item.study_instance_uid for item in old}
        room: list[Prunable] = []
        for item in candidates:
            if wanted <= 0:
                break
            if item.study_instance_uid not in gone:
                room.append(item)
                wanted -= item.size_bytes
        return Plan(tuple(old), tuple(room))

    def prune(self, plan: Plan) -> int:
        """Remove what was planned, unless something changed meanwhile.

        Returns
        -------
        int
            How many studies went.
        """
        gone = sum(self._remove(item) for item in (*plan.by_age, *plan.by_space))
        if gone:
            event("pruned", studies=gone, bytes=plan.size_bytes)
        return gone

    def run(self, stop: threading.Event) -> None:
        """Prune until ``stop``: by age once a day at the set hour, for space whenever it is short."""
        done_on = ""
        while not stop.wait(_LOOK_S):
            now = time.localtime(self._clock())
            today = time.strftime("%Y-%m-%d", now)
            nightly = now.tm_hour == self._settings.retention.hour and done_on != today
            try:
                if nightly or self._spool.free_bytes() < self._settings.retention.prune_below_bytes:
                    self.prune(self.plan(by_age=nightly))
                done_on = today if nightly else done_on
            except Exception as error:
                # The named edge of pruning: what could not go now goes at the next look.
                event("pruning failed", level=logging.ERROR, error=type(error).__name__)

    def _remove(self, item: Prunable) -> bool:
        uid = item.study_instance_uid
        if not self._index.prune(item, self._spool, self._clock()):
            return False
        shutil.rmtree(self._settings.views_dir / study_prefix(uid) / uid_name(uid), ignore_errors=True)
        PatchMaps(self._spool, uid).forget()
        return True


def describe(plans: Sequence[Prunable]) -> str:
    """Number and size in words."""
    return f"{len(plans)} studies, {sum(item.size_bytes for item in plans) / 1e6:.1f} MB"
