"""Early scoring: slices are scored while their study still arrives, so that little is left at its end.

Every normalisation of a bundle needs one frame alone, so a frame can be scored as soon as it is on
disk. Only the maps are kept (:class:`daemon.patch_maps.PatchMaps`); what the study is made of, and
whether a slice belongs to it, is decided when it is stable. A study that is due comes first: this
thread takes the model for short turns, and only when no revision is in work.
"""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from adapters.errors import AdapterError
from daemon.index import Index
from daemon.log import event
from daemon.patch_maps import PatchMaps
from daemon.pipeline import score_group
from daemon.results import is_own
from daemon.serving import Models, Scorer
from daemon.settings import Settings
from daemon.spool import Spool
from daemon.study import FrameGroup, assemble

# One turn should hold the model no longer than this: a study that is due waits for it.
_TURN_S = 0.5
_PAUSE_S = 0.002
_PATIENCE_S = 5.0
_OUT_OF_ORDER_S = 2.0


@dataclass(slots=True)
class _Arriving:
    """One study that arrives: what of it waits for a turn."""

    seen_until: float = 0.0
    looked_at: float = 0.0
    seen: set[str] = field(default_factory=set)
    waiting: deque[str] = field(default_factory=deque)


@dataclass(frozen=True, slots=True)
class _Part:
    """Frames for one turn, and who scores them."""

    study: str
    group: FrameGroup
    scorer: Scorer


class EarlyScoring:
    """Scores what arrives, in a thread of the process that has the model.

    Parameters
    ----------
    settings, index, spool, models
        Limits, what arrived, where it is, and the model.
    busy
        Held by whoever scores a revision.
    executor_id
        Ours among the hosts that share the work; each arriving study is looked at by one of them.
    """

    def __init__(
        self,
        settings: Settings,
        index: Index,
        spool: Spool,
        models: Models,
        busy: threading.Lock,
        executor_id: str,
    ) -> None:
        self._settings, self._index, self._spool, self._models = settings, index, spool, models
        self._busy, self._id = busy, executor_id
        self._studies: dict[str, _Arriving] = {}
        self._parts: deque[_Part] = deque()
        self._frames_a_turn = 1

    def run(self, stop: threading.Event) -> None:
        """Score what arrives until ``stop``."""
        while not stop.is_set():
            try:
                self.look()
                worked = self.turn()
            except Exception as error:
                # The named edge of early scoring: the study is scored in any case when it is stable.
                event("early scoring", level=logging.WARNING, error=type(error).__name__)
                stop.wait(_PATIENCE_S)
                continue
            # Without a pause the lock would never be free for a study that is due.
            if not worked:
                stop.wait(self._settings.engine.poll_s)
            else:
                time.sleep(_PAUSE_S)

    def look(self) -> None:
        """Note what arrived since the last look, in our share of the studies."""
        arriving = dict(self._index.arriving())
        self._studies = {uid: known for uid, known in self._studies.items() if uid in arriving}
        self._parts = deque(part for part in self._parts if part.study in arriving)
        for uid, last_received in arriving.items():
            known = self._studies.get(uid)
            if known is None and not self._is_ours(uid):
                continue
            known = self._studies.setdefault(uid, _Arriving())
            if last_received == known.looked_at:
                continue
            known.looked_at = last_received
            # Associations are entered in the index in another order than they received.
            for path, received_at in self._index.arrived(uid, known.seen_until - _OUT_OF_ORDER_S):
                if path not in known.seen:
                    known.seen.add(path)
                    known.waiting.append(path)
                known.seen_until = max(known.seen_until, received_at)

    def turn(self) -> bool:
        """Score a few frames of what waits, unless a revision is in work.

        Returns
        -------
        bool
            Whether there was anything to do and leave to do it.
        """
        if not self._busy.acquire(blocking=False):
            return False
        started = time.monotonic()
        try:
            if not self._parts:
                self._prepare()
            if not self._parts:
                return False
            part = self._parts.popleft()
            score_group(part.group, part.scorer, self._settings, PatchMaps(self._spool, part.study))
        finally:
            self._busy.release()
        self._pace(len(part.group.frames), time.monotonic() - started)
        return True

    def _pace(self, frames: int, took_s: float) -> None:
        """Keep turns short, however fast the model is."""
        if took_s > _TURN_S:
            self._frames_a_turn = max(1, self._frames_a_turn // 2)
        elif took_s < _TURN_S / 4 and frames == self._frames_a_turn:
            self._frames_a_turn = min(2 * self._frames_a_turn, 4 * (self._settings.model.batch_size or 8))

    def _prepare(self) -> None:
        """Read the headers of a few instances of one study and choose who scores them."""
        uid = next((uid for uid, known in self._studies.items() if known.waiting), None)
        if uid is None:
            return
        waiting = self._studies[uid].waiting
        paths = [waiting.popleft() for _ in range(min(self._frames_a_turn, len(waiting)))]
        try:
            versions = self._models.versions()
            serving = self._models.serving(versions) if versions else None
        except AdapterError:
            serving = None  # its revision will say what is wrong with the bundle
        if serving is None:
            return
        limits = self._settings.study
        study = assemble(
            uid,
            [self._spool.path(path) for path in paths],
            max_frame_pixels=limits.maximum_frame_pixels,
            max_study_frames=limits.maximum_study_frames,
            is_own=is_own,
        )
        for group in study.groups:
            scorer = serving.choose(group).scorer
            if scorer is not None:
                self._parts.extend(_Part(uid, part, scorer) for part in _split(group, self._frames_a_turn))

    def _is_ours(self, uid: str) -> bool:
        alive = self._index.alive_executors(self._settings.engine.dead_after_s) | {self._id}
        hosts = sorted(name for name in alive if name.startswith("score@"))
        return hosts[zlib.crc32(uid.encode()) % len(hosts)] == self._id


def _split(group: FrameGroup, count: int) -> Iterator[FrameGroup]:
    for first in range(0, len(group.frames), count):
        yield replace(group, frames=group.frames[first : first + count])
