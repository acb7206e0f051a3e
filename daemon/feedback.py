"""Feedback → site data: what people said of findings, as folders that ``daemon train`` understands.

One folder per study: hard links (copies across file systems) of its images, and beside them what
outlines the lesions:

- annotations that came back over DICOM, as they came; a report that only accepts or rejects what we found
  counts like verdicts on the page;
- ``accepted-*.dcm``: our SEGs with the accepted segments alone, now SEMIAUTOMATIC (PS3.3 C.8.20.2);
- ``corrected-*.dcm``: polygons drawn on the page, as SCOORD of a Comprehensive SR (PS3.3 C.18.6);
- ``labels.csv``: series whose findings were all rejected count as normal.

A series of which a finding was not judged is left out: its slices are neither normal nor outlined.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.annotate import accepted_segments, drawn_report
from daemon.assessments import assess_all
from daemon.corrections import ANNOTATIONS, Correction, Corrections
from daemon.index import Index
from daemon.part import uid_name
from daemon.records import ResultRecord, ScoreRecord
from daemon.spool import Spool
from daemon.verdicts import Verdicts
from daemon.views import Views

_COLUMNS = ("series", "label")


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export brought: studies, annotations, series that count as normal, and what was left out."""

    studies: int
    annotations: int
    normal_series: int
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where feedback and images are."""

    index: Index
    spool: Spool
    verdicts: Verdicts
    corrections: Corrections
    views: Views


@dataclass(frozen=True, slots=True)
class _Judged:
    """What was said of a finding; ``correction`` as on the page, empty if it came over DICOM."""

    verdict: str
    correction: str
    at: float


@dataclass(slots=True)
class _Study:
    """What goes into one study's folder."""

    uid: str
    folder: Path
    annotations: int = 0
    normal: list[str] | None = None
    left_out: list[str] | None = None


def export_feedback(sources: Sources, folder: Path) -> Exported:
    """Write every study with feedback below a folder; what is there of an earlier export is replaced.

    What is there of a study that was pruned since stays. Each study that was looked at counts as
    exported, whether or not what was said makes a case of it, so that retention waits for none for
    ever. What is left out is said.

    Parameters
    ----------
    sources
        Feedback and images.
    folder
        Made if need be; a folder of cases for ``daemon train --site-data``.

    Returns
    -------
    Exported
        In figures, and in words what was left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.time()  # what is said from now on is for the next export
    came: dict[str, list[Correction]] = defaultdict(list)
    for correction in sources.corrections.received():
        came[correction.study_instance_uid].append(correction)
    judged = {verdict.study_instance_uid for verdict in sources.verdicts.newest().values()}
    studies, normal, left_out = [], [], []
    labels = _read_labels(folder / "labels.csv")
    for uid in sorted(judged | set(came)):
        place = folder / uid_name(uid)
        if _is_pruned(sources, uid):
            # An earlier export may be all that is left of it.
            normal += [one for one in _series_of(sources, uid) if place.is_dir() and one in labels]
            continue
        shutil.rmtree(place, ignore_errors=True)
        study = _Study(uid, place, normal=[], left_out=[])
        _write_study(sources, study, came.get(uid, []))
        left_out += study.left_out or []
        if study.annotations or study.normal:
            _link_images(sources, study)
            studies.append(study)
            normal += study.normal or []
    _write_labels(folder / "labels.csv", normal)
    sources.corrections.note_export(judged | set(came), begun)
    return Exported(len(studies), sum(s.annotations for s in studies), len(normal), tuple(left_out))


def _write_study(sources: Sources, study: _Study, came: Sequence[Correction]) -> None:
    results = sources.index.results_of(study.uid)
    reports = [result.path for result in results if result.kind == "SR"]
    assessed = assess_all(came, sources.spool.path, reports)
    assert study.left_out is not None
    study.left_out += [
        f"{one.kind} from {one.calling_ae} of study {uid_name(study.uid)}: {assessment.reason}"
        for one, assessment in assessed
        if assessment.reason
    ]
    outlining = [one for one, assessment in assessed if assessment.outlines]
    for one in outlining:
        if _place(sources.spool.path(one.path), study.folder / f"came-{one.sop_instance_uid}.dcm"):
            study.annotations += 1
    # Who sent outlines outlined the study as a whole: the page's verdicts are of what they replace.
    judged = {} if outlining else _judged_on_page(sources, study.uid)
    for one, assessment in assessed[::-1]:  # the newest last
        for uid, verdict in assessment.verdicts.items():
            if uid not in judged or judged[uid].at < one.received_at:
                judged[uid] = _Judged(verdict, "", one.received_at)
    scores = [score for score in sources.index.scores(study.uid) if not score.shadow]
    newest = max((score.revision for score in scores), default=0)
    for score in scores:
        view = sources.views.read(study.uid, score.revision, score.group_key)
        if score.revision == newest and view is not None:
            found = {
                finding["tracking_uid"]: judged.get(finding["tracking_uid"]) for finding in view["findings"]
            }
            if outlining:
                _write_accepted(sources, study, score, found)
            else:
                _write_group(sources, study, score, view, found)


def _judged_on_page(sources: Sources, uid: str) -> dict[str, _Judged]:
    return {
        key: _Judged(verdict.verdict, verdict.correction, verdict.given_at)
        for key, verdict in sources.verdicts.newest(uid).items()
    }


def _write_group(
    sources: Sources,
    study: _Study,
    score: ScoreRecord,
    view: Mapping[str, Any],
    found: Mapping[str, _Judged | None],
) -> None:
    given = [verdict for verdict in found.values() if verdict is not None]
    name = f"{view['modality']} series of study {uid_name(study.uid)}"
    assert study.left_out is not None and study.normal is not None
    if not given:
        return
    if len(given) < len(found):
        study.left_out.append(f"{name}: {len(found) - len(given)} of {len(found)} findings are not judged")
        return
    if all(one.verdict == "reject" for one in given):
        study.normal.append(score.series_instance_uid)
        return
    if not _write_accepted(sources, study, score, found):
        study.left_out.append(f"{name}: its SEG is no longer here")
        return
    drawn = [json.loads(one.correction) for one in given if one.verdict == "correct" and one.correction]
    if drawn:
        frames = [(sources.spool.path(path), number) for path, number, _ in view["frames"]]
        content = drawn_report(frames, drawn, f"{study.uid} {score.group_key} {score.revision}")
        study.folder.mkdir(parents=True, exist_ok=True)
        (study.folder / f"corrected-{score.group_key}.dcm").write_bytes(content)
        study.annotations += 1


def _write_accepted(
    sources: Sources, study: _Study, score: ScoreRecord, found: Mapping[str, _Judged | None]
) -> bool:
    """False if the SEG of what was accepted is gone."""
    accepted = {uid for uid, one in found.items() if one is not None and one.verdict == "accept"}
    if not accepted:
        return True
    contents = accepted_segments(_segs(sources, study.uid, score), accepted)
    for number, content in enumerate(contents or (), 1):
        study.folder.mkdir(parents=True, exist_ok=True)
        (study.folder / f"accepted-{score.group_key}-{number}.dcm").write_bytes(content)
        study.annotations += 1
    return contents is not None


def _segs(sources: Sources, uid: str, score: ScoreRecord) -> list[Path]:
    results: list[ResultRecord] = sources.index.results_of(uid)
    return [sources.spool.path(r.path) for r in results if r.kind == "SEG" and r.revision == score.revision]


def _link_images(sources: Sources, study: _Study) -> None:
    """Images, and whatever else came that is no annotation, as they were received.

    Annotations that came with the images would count as a person's outlines of lesions.
    """
    own = {result.sop_instance_uid for result in sources.index.results_of(study.uid)}
    for instance in sources.index.instances_of(study.uid):
        if instance.sop_class_uid not in ANNOTATIONS and instance.sop_instance_uid not in own:
            place = study.folder / "images" / f"{instance.sop_instance_uid}.dcm"
            _place(sources.spool.path(instance.path), place)


def _place(source: Path, target: Path) -> bool:
    """Hard link, or copy across file systems; False if the file is not there any more."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        return False
    except OSError:
        shutil.copyfile(source, target)
    return True


def _is_pruned(sources: Sources, uid: str) -> bool:
    """True if no image is here any more; an annotation may have come since."""
    return all(one.sop_class_uid in ANNOTATIONS for one in sources.index.instances_of(uid))


def _series_of(sources: Sources, uid: str) -> list[str]:
    """Series that were scored, each once."""
    return list(dict.fromkeys(score.series_instance_uid for score in sources.index.scores(uid)))


def _read_labels(path: Path) -> set[str]:
    """Series that an earlier export counted as normal."""
    if not path.is_file():
        return set()
    with path.open(newline="") as file:
        return {row.get("series", "") for row in csv.DictReader(file)}


def _write_labels(path: Path, series: Sequence[str]) -> None:
    if not series:
        path.unlink(missing_ok=True)
        return
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        writer.writerows((uid, "normal") for uid in series)
