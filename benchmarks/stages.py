"""What needs the daemon's own code: prepare a site, read the times of a run, time the pipeline's stages.

Each function is run in a process of its own. The benchmark's main process imports none of this: a
library that it maps too would be shared with the daemon and make the daemon's PSS look smaller.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from dbos import DBOSClient, DBOSPortableJSONSerializer

from adapters import registry, scorer, slices
from adapters.backbone import BackboneSpec, load_backbone
from adapters.letterbox import Letterbox
from adapters.score import SliceScore
from adapters.slices import Normalisation, Slice, load_slice
from benchmarks.phantom_study import compress, write_study
from daemon import pipeline, variants
from daemon.analyst import make_job
from daemon.index import Index
from daemon.jobs import JobRecord
from daemon.models import Models
from daemon.phantom import make_case, write_case
from daemon.results import is_own
from daemon.serving import OneBundle
from daemon.settings import load_settings
from daemon.spool import Spool
from daemon.study import assemble
from training.fit import fit
from training.shots import Options

_FITTED_CASES = 12


def prepare(folder: Path, slice_count: int) -> str:
    """Write the study in both transfer syntaxes and fit the bundle; return the Study Instance UID."""
    study = write_study(folder / "explicit", slices=slice_count)
    compress(folder / "explicit", folder / "jpeg-lossless")
    prepare_bundle(folder)
    return study


def prepare_bundle(folder: Path, model: str = "tiny") -> None:
    """Fit a bundle on phantoms and promote it in ``folder/bundles``.

    Of a large backbone the fit is short and its thresholds are low: what scoring costs does not depend on
    how good it is, and something must be found.
    """
    backbone = load_backbone(BackboneSpec(model=model), "cpu", "fp32")
    normalisation = Normalisation(kind="object", size_px=backbone.image_size_px)
    normal, abnormal, normal_keys, abnormal_keys = [], [], [], []
    for number in range(_FITTED_CASES):
        case = make_case(number, abnormal=number >= _FITTED_CASES // 2)
        for file, mask in zip(write_case(case, folder / "fit" / str(number)), case.lesion, strict=True):
            pixels = load_slice(file, normalisation=normalisation, max_frame_pixels=1 << 20).pixels
            if mask.any():
                abnormal.append((pixels, np.asarray(mask)))
                abnormal_keys.append(str(number))
            elif not case.abnormal:
                normal.append(pixels)
                normal_keys.append(str(number))
    bundle = fit(
        backbone,
        normal,
        list(abnormal),
        name="phantom-ct",
        class_name="Chest",
        normalisation=normalisation,
        case_keys=normal_keys + abnormal_keys,
        modality="CT",
        options=Options(folds=2, epochs=0 if model == "tiny" else 3),
    )
    if model != "tiny":
        low = float(bundle.normal_map_quantiles[99])
        bundle = replace(bundle, threshold=low, slice_threshold=0.0)
    registry.store(folder / "bundles", bundle)
    registry.promote(folder / "bundles", bundle.name, bundle.version)


def read_times(settings_path: Path, study: str) -> dict[str, Any]:
    """Return the wall times of a delivered study from the index and the queue, seconds since the epoch."""
    settings = load_settings(settings_path)
    index = Index(settings.database_url)
    record = index.get_study(study)
    results = [result.kind for result in index.results_of(study)]
    index.close()
    client = DBOSClient(system_database_url=settings.engine_url, serializer=DBOSPortableJSONSerializer())
    times: dict[str, Any] = {
        "first_received": record.first_received,
        "last_received": record.last_received,
        "instances": record.instance_count,
        "state": record.state,
        "results": results,
    }
    destination = settings.destinations[0].name
    for workflow_id in (f"score:{study}:1", f"send:{study}:1:{destination}:0"):
        for step in client.list_workflow_steps(workflow_id):
            times[f"{step['function_name']}.started"] = (step["started_at_epoch_ms"] or 0) / 1000
            times[f"{step['function_name']}.ended"] = (step["completed_at_epoch_ms"] or 0) / 1000
    client.destroy()
    return times


class Stopwatch:
    """Adds up the time spent in functions that it wraps.

    Parameters
    ----------
    clock
        Gives seconds: ``time.perf_counter``, or ``time.process_time`` for CPU time.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.seconds: dict[str, float] = defaultdict(float)

    def wrap(self, owner: object, name: str, stage: str) -> None:
        """Replace ``owner.name`` by itself, timed."""
        inner: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = self._clock()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds[stage] += self._clock() - started

        setattr(owner, name, timed)


class _TimedScorer:
    """A scorer whose time is told apart from that of reading the slices it pulls."""

    def __init__(self, inner: scorer.Scorer, watch: Stopwatch) -> None:
        self.bundle, self._inner, self._watch = inner.bundle, inner, watch

    def score(self, items: Iterable[Slice]) -> Iterator[SliceScore]:
        stream = self._inner.score(items)
        while True:
            started, before = time.perf_counter(), self._watch.seconds["load_slice"]
            item = next(stream, None)
            reading = self._watch.seconds["load_slice"] - before
            self._watch.seconds["model"] += time.perf_counter() - started - reading
            if item is None:
                return
            yield item


def time_stages(settings_path: Path, study: str) -> dict[str, Any]:
    """Run the pipeline on what the daemon spooled, in this process, and return seconds per stage."""
    settings = load_settings(settings_path)
    index, spool = Index(settings.database_url), Spool(settings.spool_dir)
    paths = [spool.path(instance.path) for instance in index.instances_of(study, 1)]
    index.close()
    models = Models(settings)
    versions = models.versions()
    inner = models.scorer(next(iter(versions.values())))
    watch = Stopwatch()
    watch.wrap(slices, "read_source", "header")
    watch.wrap(slices, "decode_frame", "decode")
    watch.wrap(slices, "normalise", "normalise")
    watch.wrap(scorer, "to_square", "to the model's grid")
    watch.wrap(Letterbox, "backward", "to the source's grid")
    watch.wrap(pipeline, "load_slice", "load_slice")
    for module, name in ((pipeline, "find"), (variants, "encode_seg"), (variants, "encode_sr")):
        watch.wrap(module, name, name)
    started = time.perf_counter()
    assembled = assemble(
        study,
        paths,
        max_frame_pixels=settings.study.maximum_frame_pixels,
        max_study_frames=settings.study.maximum_study_frames,
        is_own=is_own,
    )
    watch.seconds["assemble"] = time.perf_counter() - started
    job = make_job(JobRecord(study, 1, datetime.now(UTC).isoformat(), versions), settings)
    result = pipeline.analyse(assembled, OneBundle(_TimedScorer(inner, watch)), job, settings)
    watch.seconds["write"] = _time_writes(result, study, settings.service.data_dir)
    watch.seconds["total"] = time.perf_counter() - started
    return {
        "seconds": dict(watch.seconds),
        "findings": sum(len(analysis.findings) for analysis in result.analyses),
        "result_bytes": {item.kind: len(item.content) for item in result.objects},
        "backbone": result.analyses[0].backbone_name if result.analyses else "",
    }


def _time_writes(result: pipeline.StudyResult, study: str, data_dir: Path) -> float:
    """Write the results durably into another spool on the same disk."""
    with tempfile.TemporaryDirectory(dir=data_dir) as folder:
        scratch = Spool(Path(folder))
        started = time.perf_counter()
        for item in result.objects:
            scratch.write_result(study, 1, f"{item.kind}.{item.sop_instance_uid}.dcm", item.content)
        return time.perf_counter() - started
