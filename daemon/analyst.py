"""The steps that the durable workflow runs for one study revision; each may be repeated.

``open_job`` fixes everything that must not change between attempts, ``run_job`` scores, encodes
and writes the results under UIDs that follow from it, ``close_job`` records them.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.errors import AdapterError
from daemon import __version__
from daemon.attributes import attributes
from daemon.corrections import ANNOTATIONS
from daemon.errors import DaemonError, DatabaseError, DiskReserveError, SpoolError
from daemon.index import Index
from daemon.jobs import JobRecord, ResultRef
from daemon.log import event, pseudonym
from daemon.manifest import is_scored, keep_job, keep_outcome
from daemon.patch_maps import PatchMaps
from daemon.pipeline import Observer, StudyResult, analyse
from daemon.records import ResultRecord, ScoreRecord
from daemon.results import Analysis, Job, Predecessor, is_own
from daemon.serving import Models, Scorer
from daemon.settings import Settings
from daemon.spool import Spool
from daemon.study import Refusal, assemble
from daemon.uids import derived
from daemon.views import Views


class Analyst:
    """Scores study revisions that the index holds.

    Parameters
    ----------
    settings, index, spool, models
        Options, what was received, where it is, and the model.
    pseudonym_key
        For the log.
    """

    def __init__(
        self,
        settings: Settings,
        index: Index,
        spool: Spool,
        models: Models,
        pseudonym_key: bytes,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._index, self._spool, self._models = settings, index, spool, models
        self._key, self._clock = pseudonym_key, clock
        self._views = Views(settings.views_dir)
        # Held while a revision is scored: what is scored early waits.
        self.busy = threading.Lock()

    def open_job(self, study: str, revision: int) -> JobRecord:
        """Fix dates, bundle and predecessors of this revision."""
        self._index.set_state(study, "scoring")
        earlier = [result for result in self._index.results_of(study) if result.revision < revision]
        newest = max((result.revision for result in earlier), default=0)
        job = JobRecord(
            study=study,
            revision=revision,
            created=datetime.fromtimestamp(int(self._clock()), UTC).isoformat(),
            bundles=self._bundles(study),
            predecessors=[
                [
                    result.sop_class_uid,
                    result.sop_instance_uid,
                    result.series_instance_uid,
                    result.destinations,
                ]
                for result in earlier
                if result.revision == newest
            ],
            asked=bool(self._index.wanted_bundle(study)),
        )
        held = self._index.instances_of(study, revision)
        kept = keep_job(self._spool, job, [instance.path for instance in held])
        self._index.want_bundle(study, "")
        return kept

    def run_job(self, record: JobRecord) -> ResultRef:
        """Score, encode and write; whatever goes wrong becomes the study's state and reason."""
        started = time.monotonic()
        try:
            with self.busy:
                reference = self._run(record)
        except (DatabaseError, DiskReserveError):
            raise  # the study is not to blame: the step waits and is repeated
        except (DaemonError, AdapterError) as error:
            reference = ResultRef("failed", str(error))
        except Exception as error:
            # The named edge of scoring: one odd study must not stop the queue. The message could
            # quote the data set, so the study's reason has the type alone.
            reference = ResultRef("failed", f"internal error ({type(error).__name__}); see the log")
            event("scoring failed", level=logging.ERROR, error=type(error).__name__, step=_where(error))
        event(
            "study",
            study=pseudonym(record.study, self._key),
            revision=record.revision,
            state=reference.state,
            results=len(reference.results),
            bundle=",".join(f"{name}@{version}" for name, version in sorted(record.bundles.items())),
            duration_s=round(time.monotonic() - started, 2),
        )
        return reference

    def close_job(self, record: JobRecord, reference: ResultRef) -> None:
        """Record results, plan their deliveries, set the study's state."""
        destinations = [destination.name for destination in self._settings.destinations]
        expires_at = self._clock() + self._settings.delivery.give_up_s
        keep_outcome(self._spool, record, reference, destinations, expires_at)
        self._index.add_results(ResultRecord(**result) for result in reference.results)
        self._index.add_scores(ScoreRecord(**score) for score in reference.scores)
        self._index.plan_deliveries(record.study, record.revision, destinations, expires_at)
        self._index.set_state(record.study, reference.state, reference.reason)  # type: ignore[arg-type]
        PatchMaps(self._spool, record.study).forget()

    def _bundles(self, study: str) -> dict[str, str]:
        """Versions in use, or the one that a person wants; empty if none loads: ``run_job`` says why."""
        try:
            versions = self._models.versions()
        except AdapterError:
            versions = {}
        name, _, version = self._index.wanted_bundle(study).partition(" ")
        if not version:
            return versions
        return {**versions, name: version} if name in versions else {name: version}

    def _run(self, record: JobRecord) -> ResultRef:
        if self._only_own_results_came(record):
            return ResultRef("scored", "no image came since the last revision, only results or annotations")
        if not record.bundles:
            self._models.versions()  # raises if a bundle is there but cannot be used
            return ResultRef(
                "refused",
                "no adapter bundle is in use: put one in place with `daemon adapters import FILE`, "
                "then `daemon retry` this study",
            )
        limits = self._settings.study
        study = assemble(
            record.study,
            self._paths(record.study, record.revision),
            max_frame_pixels=limits.maximum_frame_pixels,
            max_study_frames=limits.maximum_study_frames,
            is_own=is_own,
        )
        job = make_job(record, self._settings)
        serving, known = self._models.serving(record.bundles), PatchMaps(self._spool, record.study)
        result = analyse(study, serving, job, self._settings, self._keep_view(record), known)
        self._views.write_refusals(record.study, record.revision, result.refusals)
        state = "scored" if result.analyses else "refused"
        stations = {item.key: item.group.station for item in result.analyses}
        scores = [
            asdict(item)
            | {
                "scanner": self._scanner(stations.get(item.group_key, "")),
                "study_instance_uid": record.study,
                "revision": record.revision,
                "scored_at": datetime.fromisoformat(record.created).timestamp(),
            }
            for item in result.records
        ]
        return ResultRef(state, summarise(result.refusals), self._write(record, result), scores)

    def _scanner(self, station: str) -> str:
        return pseudonym(f"station {station}", self._key) if station else ""

    def _keep_view(self, record: JobRecord) -> Observer:
        def observe(analysis: Analysis, maps: Sequence[NDArray[np.float32]], scorer: Scorer) -> None:
            normalisation = scorer.bundle.normalisation
            self._views.write(record.study, record.revision, analysis, maps, normalisation, self._spool.root)

        return observe

    def _paths(self, study: str, revision: int) -> list[Path]:
        return [self._spool.path(instance.path) for instance in self._index.instances_of(study, revision)]

    def _only_own_results_came(self, record: JobRecord) -> bool:
        """Our results may come back, and people's corrections: that is no reason to score again.

        It is one where a person asked for it, or where the revision before, whose images are in this one,
        was not scored: it failed, say.
        """
        if record.asked or not self._index.results_of(record.study):
            return False
        before = {instance.path for instance in self._index.instances_of(record.study, record.revision - 1)}
        # Nothing of a pruned study is here that could be scored.
        if before and not is_scored(self._spool, record.study, record.revision - 1):
            return False
        now = self._index.instances_of(record.study, record.revision)
        fresh = [instance for instance in now if instance.path not in before]
        return bool(fresh) and all(
            instance.sop_class_uid in ANNOTATIONS or _is_own_file(self._spool.path(instance.path))
            for instance in fresh
        )

    def _write(self, record: JobRecord, result: StudyResult) -> list[dict[str, Any]]:
        written = []
        for item in result.objects:
            kind = item.kind
            path = self._spool.write_result(
                record.study, record.revision, f"{kind}.{item.sop_instance_uid}.dcm", item.content
            )
            written.append(
                {
                    "study_instance_uid": record.study,
                    "revision": record.revision,
                    "kind": kind,
                    "sop_class_uid": item.sop_class_uid,
                    "sop_instance_uid": item.sop_instance_uid,
                    "series_instance_uid": item.series_instance_uid,
                    "path": path,
                    "sha256": hashlib.sha256(item.content).hexdigest(),
                    "destinations": " ".join(item.destinations),
                }
            )
        return written


def make_job(record: JobRecord, settings: Settings) -> Job:
    """The encoders' job from what was fixed for this revision."""
    findings = settings.findings
    return Job(
        study_instance_uid=record.study,
        revision=record.revision,
        created=datetime.fromisoformat(record.created),
        device_uid=derived(
            "installation", settings.results.manufacturer, settings.results.device_serial_number
        ),
        software_version=__version__,
        manufacturer=settings.results.manufacturer,
        parameters=(
            f"min={findings.minimum_voxels}/{findings.minimum_volume_mm3} max={findings.maximum_findings}"
        ),
        device_serial_number=settings.results.device_serial_number,
        predecessors=tuple(Predecessor(*item) for item in record.predecessors),
    )


def summarise(refusals: Sequence[Refusal]) -> str:
    """Reasons with their counts, most frequent first, in one line."""
    counts = Counter(refusal.reason for refusal in refusals)
    return "; ".join(f"{count} × {reason}" for reason, count in counts.most_common(8))


def _is_own_file(path: Path) -> bool:
    try:
        with attributes(path, ("InstanceCreatorUID",)) as ds:
            return is_own(ds)
    except SpoolError:
        return False


def _where(error: BaseException) -> str:
    """File and line of an error, without its message, which could quote a data set."""
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    return f"{Path(step.tb_frame.f_code.co_filename).name}:{step.tb_lineno}" if step else "?"
