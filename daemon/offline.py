"""``daemon score``: the whole pipeline on files, without network, queue or index."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adapters.bundle import AdapterBundle
from adapters.score import SliceScore
from adapters.slices import Slice
from daemon.analyst import make_job
from daemon.jobs import JobRecord
from daemon.pipeline import StudyResult, analyse, read_slice
from daemon.preview import contact_sheet
from daemon.results import Analysis, is_own
from daemon.serving import Choice, Models, Scorer, Serving
from daemon.settings import Settings
from daemon.sheet import sheet_slices
from daemon.study import FrameGroup, assemble

# Told what is in work, how many of its frames are read, and how many there are.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class ScoredStudy:
    """What ``daemon score`` wrote for one study."""

    study_instance_uid: str
    result: StudyResult
    files: tuple[Path, ...]


def score_files(
    studies: dict[str, list[Path]],
    models: Models,
    settings: Settings,
    out: Path,
    progress: Progress = lambda _what, _done, _total: None,
) -> list[ScoredStudy]:
    """Score studies from files and write SEG, SR and a contact sheet for each.

    Parameters
    ----------
    studies
        From :func:`daemon.given.find_studies`.
    models, settings
        As the daemon has them.
    out
        Folder for ``study-N/``; made if it does not exist.
    progress
        Told after each frame.

    Returns
    -------
    list of ScoredStudy
    """
    versions = models.versions()
    serving = models.serving(versions)
    return [
        _score_one(uid, files, serving, versions, settings, out / f"study-{number}", progress)
        for number, (uid, files) in enumerate(sorted(studies.items()), 1)
    ]


def _score_one(
    uid: str,
    files: Sequence[Path],
    serving: Serving,
    versions: dict[str, str],
    settings: Settings,
    out: Path,
    progress: Progress,
) -> ScoredStudy:
    out.mkdir(parents=True, exist_ok=True)
    study = assemble(
        uid,
        files,
        max_frame_pixels=settings.study.maximum_frame_pixels,
        max_study_frames=settings.study.maximum_study_frames,
        is_own=is_own,
    )
    watched = _Watched(serving, out.name, sum(len(group.frames) for group in study.groups), progress)
    record = JobRecord(uid, 1, datetime.now(UTC).replace(microsecond=0).isoformat(), versions)
    sheets: list[Path] = []

    def observe(analysis: Analysis, maps: Sequence[NDArray[np.float32]], scorer: Scorer) -> None:
        path = out / f"preview-{len(sheets) + 1}.png"
        read = partial(read_slice, bundle=scorer.bundle, settings=settings)
        contact_sheet(sheet_slices(analysis, maps, read), path, threshold=analysis.threshold)
        sheets.append(path)

    result = analyse(study, watched, make_job(record, settings), settings, observe)
    written = []
    for number, item in enumerate(result.objects, 1):
        path = out / f"{item.kind.lower()}-{number}.dcm"
        path.write_bytes(item.content)
        written.append(path)
    return ScoredStudy(uid, result, (*written, *sheets))


class _Watched:
    """Serving that tells how many slices were looked at."""

    def __init__(self, serving: Serving, what: str, total: int, progress: Progress) -> None:
        self._serving, self._what, self._total, self._progress = serving, what, total, progress
        self._done = 0

    def choose(self, group: FrameGroup) -> Choice:
        choice = self._serving.choose(group)
        return (
            choice if choice.scorer is None else replace(choice, scorer=_Counting(choice.scorer, self._tell))
        )

    def _tell(self) -> None:
        self._done += 1
        self._progress(self._what, self._done, self._total)


@dataclass(frozen=True, slots=True)
class _Counting:
    """A scorer that tells of each slice."""

    scorer: Scorer
    tell: Callable[[], None]

    @property
    def bundle(self) -> AdapterBundle:
        return self.scorer.bundle

    def score(self, slices: Iterator[Slice]) -> Iterator[SliceScore]:
        def told() -> Iterator[Slice]:
            for item in slices:
                self.tell()
                yield item

        return self.scorer.score(told())
