"""The sentence in code: study → slices → scores → findings → SEG and SR. No I/O but reading pixels."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from adapters.bundle import AdapterBundle
from adapters.device import automatic_decoders, resolve_device
from adapters.errors import DecodeError
from adapters.score import SliceScore
from adapters.scorer import from_patches
from adapters.slices import Slice, load_slice
from daemon.findings import find
from daemon.patch_maps import PatchMaps
from daemon.read_ahead import read_ahead, slices_ahead
from daemon.results import Analysis, Job, ResultObject, tracking_uid
from daemon.serving import Scorer, Serving
from daemon.settings import Settings
from daemon.sheet import picture_of
from daemon.study import Frame, FrameGroup, Refusal, Study
from daemon.variants import encode_companions, encode_results


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """What one bundle said of one group, in figures: kept for comparison, never sent.

    Parameters
    ----------
    series_instance_uid, group_key, modality
        Of the group.
    bundle_name, bundle_version
        Who scored.
    shadow
        True if the bundle was only a candidate.
    slices
        Number of scored slices.
    maximum, mean
        Of the slice scores.
    findings
        Their number.
    """

    series_instance_uid: str
    group_key: str
    modality: str
    bundle_name: str
    bundle_version: str
    shadow: bool
    slices: int
    maximum: float
    mean: float
    findings: int


@dataclass(frozen=True, slots=True)
class StudyResult:
    """What was made of one study revision.

    Parameters
    ----------
    analyses
        One per scored group.
    objects
        SEGs, companions, then SRs, each with its destinations; empty if the study has no image that
        could be scored.
    refusals
        What was not scored and why, the decoder's refusals included.
    records
        What each bundle said of each group, shadows included.
    """

    analyses: tuple[Analysis, ...]
    objects: tuple[ResultObject, ...]
    refusals: tuple[Refusal, ...]
    records: tuple[GroupRecord, ...] = ()


# Called after each group with one map per frame of the group, and the scorer that made them.
Observer = Callable[[Analysis, Sequence[NDArray[np.float32]], Scorer], None]


def analyse(
    study: Study,
    serving: Serving,
    job: Job,
    settings: Settings,
    observe: Observer | None = None,
    known: PatchMaps | None = None,
) -> StudyResult:
    """Score a study and encode what was found.

    Parameters
    ----------
    study
        Assembled; its frames point to spooled files.
    serving
        Chooses the scorer of each group.
    job
        Fixes revision, dates and identity, so that a repeat makes the same objects.
    settings
        Limits, findings and result options.
    observe
        Called after each group, for previews and progress.
    known
        What was scored while the study arrived, or before an interruption; what is scored now joins it.

    Returns
    -------
    StudyResult
        Analyses, encoded objects and refusals.
    """
    analyses: list[Analysis] = []
    refusals = list(study.refusals)
    records: list[GroupRecord] = []
    companions: list[ResultObject] = []
    for group in study.groups:
        choice = serving.choose(group)
        if choice.scorer is None:
            refusals += [Refusal(uid, choice.reason) for uid in _instances(group)]
            continue
        scores, failed = score_group(group, choice.scorer, settings, known)
        refusals += failed
        if not scores:
            continue
        maps = _Maps(group, scores)
        analysis = _analysis(group, scores, maps, choice.scorer, job, settings)
        analyses.append(analysis)
        records.append(_record(analysis, shadow=False))
        read = partial(read_slice, bundle=choice.scorer.bundle, settings=settings)
        picture = partial(picture_of, analysis, maps, read)
        companions += encode_companions(analysis, maps, picture, job, settings.audience)
        if observe is not None:
            observe(analysis, maps, choice.scorer)
        if choice.shadow is not None:
            records.append(_shadow_record(group, choice.shadow, job, settings))
    if not analyses and not study.groups:
        return StudyResult((), (), tuple(refusals), tuple(records))
    # Images that could not be read at all still get a report: "undetermined", and why.
    template = study.groups[0].frames[0].path
    segs, reports = encode_results(
        analyses, job, settings.audience, refusals=tuple(refusals), template=template
    )
    objects = (*segs, *companions, *reports)
    return StudyResult(tuple(analyses), objects, tuple(refusals), tuple(records))


def read_slice(frame: Frame, bundle: AdapterBundle, settings: Settings) -> Slice:
    """Decode and normalise one frame as the bundle wants it."""
    return load_slice(
        frame.path,
        frame.frame_number,
        normalisation=bundle.normalisation,
        max_frame_pixels=settings.study.maximum_frame_pixels,
        sop_class_uid=frame.sop_class_uid,
        sop_instance_uid=frame.sop_instance_uid,
    )


def score_group(
    group: FrameGroup, scorer: Scorer, settings: Settings, known: PatchMaps | None = None
) -> tuple[dict[tuple[str, int], SliceScore], list[Refusal]]:
    """Score what is not known yet, frame by frame; ``model.decoders`` frames are read at once.

    Parameters
    ----------
    group
        Whose frames are scored.
    scorer
        Of the bundle that serves it.
    settings
        Limits for decoding, and where the model runs.
    known
        Patch maps made earlier; those made now are put there, too.

    Returns
    -------
    tuple
        (SOP Instance UID, frame number) → score, and a refusal for each frame that cannot be decoded.
    """
    failed: list[Refusal] = []
    scores: dict[tuple[str, int], SliceScore] = {}
    places = {(frame.sop_instance_uid, frame.frame_number): frame for frame in group.frames}
    device, shape = resolve_device(settings.model.device), (group.rows, group.columns)
    if known is not None:
        for key, frame in places.items():
            patches = known.get(scorer.bundle, frame)
            if patches is not None:
                scores[key] = from_patches(scorer.bundle, *key, shape, patches, device)
    todo = [frame for key, frame in places.items() if key not in scores]
    # The frames of one object share its header, which pydicom parses as it is looked at: one at a time.
    turns = {frame.path: threading.Lock() for frame in todo}

    def read(frame: Frame) -> Slice:
        with turns[frame.path]:
            return read_slice(frame, scorer.bundle, settings)

    def slices(reads: Iterator[tuple[Frame, Callable[[], Slice]]]) -> Iterator[Slice]:
        for frame, result in reads:
            try:
                yield result()
            except DecodeError as error:
                failed.append(Refusal(frame.sop_instance_uid, str(error)))

    decoders = settings.model.decoders or automatic_decoders(device)
    with read_ahead(todo, read, threads=decoders, ahead=slices_ahead(*shape)) as reads:
        for score in scorer.score(slices(reads)):
            key = (score.sop_instance_uid, score.frame_number)
            if known is not None and score.patches is not None:
                known.put(scorer.bundle, places[key], score.patches)
            scores[key] = score
    return scores, failed


@dataclass(frozen=True, slots=True)
class _Maps(Sequence[NDArray[np.float32]]):
    """One map per frame of the group, made when it is looked at; zero where the frame was not scored."""

    group: FrameGroup
    scores: dict[tuple[str, int], SliceScore]

    def __len__(self) -> int:
        return len(self.group.frames)

    def __getitem__(self, index: int) -> NDArray[np.float32]:  # type: ignore[override]
        frame = self.group.frames[index]
        score = self.scores.get((frame.sop_instance_uid, frame.frame_number))
        if score is None:
            return np.zeros((self.group.rows, self.group.columns), dtype=np.float32)
        return score.map


def _analysis(
    group: FrameGroup,
    scores: dict[tuple[str, int], SliceScore],
    maps: Sequence[NDArray[np.float32]],
    scorer: Scorer,
    job: Job,
    settings: Settings,
) -> Analysis:
    bundle = scorer.bundle
    slice_scores = tuple(
        scores[key].score if (key := (frame.sop_instance_uid, frame.frame_number)) in scores else None
        for frame in group.frames
    )
    analysis = Analysis(
        group=group,
        scored=len(scores),
        total=len(group.frames),
        findings=(),
        slice_scores=slice_scores,
        bundle_name=bundle.name,
        bundle_version=bundle.version,
        backbone_name=str(bundle.backbone["model"]),
        threshold=bundle.threshold,
        slice_threshold=bundle.slice_threshold,
    )
    found = find(
        maps,
        group,
        threshold=bundle.threshold,
        minimum_voxels=settings.findings.minimum_voxels,
        minimum_volume_mm3=settings.findings.minimum_volume_mm3,
        maximum_findings=settings.findings.maximum_findings,
        flagged=[score is not None and score >= bundle.slice_threshold for score in slice_scores],
        uid_for=lambda number: tracking_uid(job, analysis.model, group, number),
    )
    return replace(analysis, findings=found)


def _instances(group: FrameGroup) -> list[str]:
    return list(dict.fromkeys(frame.sop_instance_uid for frame in group.frames))


def _shadow_record(group: FrameGroup, shadow: Scorer, job: Job, settings: Settings) -> GroupRecord:
    """Let a candidate score the group; its maps are dropped and its failures are nobody's refusals."""
    scores, _ = score_group(group, shadow, settings)
    return _record(_analysis(group, scores, _Maps(group, scores), shadow, job, settings), shadow=True)


def _record(analysis: Analysis, *, shadow: bool) -> GroupRecord:
    scores = [score for score in analysis.slice_scores if score is not None]
    return GroupRecord(
        series_instance_uid=analysis.group.series_instance_uid,
        group_key=analysis.group.key,
        modality=analysis.group.modality,
        bundle_name=analysis.bundle_name,
        bundle_version=analysis.bundle_version,
        shadow=shadow,
        slices=len(scores),
        maximum=float(max(scores, default=0.0)),
        mean=float(sum(scores) / len(scores)) if scores else 0.0,
        findings=len(analysis.findings),
    )
