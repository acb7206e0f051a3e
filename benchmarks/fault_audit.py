"""The audit that ends each fault run: what was answered, disk, index and PACS must agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.fault_modality import Modality, data_set_sha256
from benchmarks.fault_pacs import read_journal
from benchmarks.fault_site import Site
from daemon.errors import DaemonError
from daemon.index import Index
from daemon.spool import Spool

SR = "1.2.840.10008.5.1.4.1.1.88.34"


@dataclass(frozen=True, slots=True)
class Audit:
    """What the end of a fault run counts; ``lost``, ``doubled`` and ``orphans`` shall be 0."""

    instances: int
    studies: int
    revisions: int
    results: int
    lost: int
    doubled: int
    orphans: int
    dead_letters: int
    failed_studies: int
    sent_again: int
    problems: tuple[str, ...]


def finish(sites: Sequence[Site], modalities: Sequence[Modality], timeout_s: float = 240.0) -> dict[str, Any]:
    """Let every study come to its end, stop the daemons, and audit.

    Parameters
    ----------
    sites
        The daemons; they share one index and one spool, and the first started the PACS.
    modalities
        Those that sent.
    timeout_s
        How long the work may take that is left.
    """
    for modality in modalities:
        modality.stop()
    statuses: Counter[str] = Counter()
    for modality in modalities:
        statuses += modality.statuses
    studies = {uid for modality in modalities for uid in modality.studies}
    finished = sites[0].wait_until_done(studies, timeout_s)
    for site in sites:
        site.stop_daemon()
    with sites[0].index() as index:
        found = audit(index, Spool(sites[0].settings.spool_dir), sites[0].pacs, modalities)
    return {"finished": finished, "answers": dict(statuses), **asdict(found)}


def refusals(found: dict[str, Any]) -> int:
    """How many C-STOREs were answered with something else than Success, or not at all."""
    return sum(count for status, count in found["answers"].items() if status != "0000")


def audit(index: Index, spool: Spool, pacs: Path, modalities: Sequence[Modality]) -> Audit:
    """Compare what was answered with Success, disk, index and PACS."""
    problems: list[str] = []
    studies = index.list_studies()
    rows: dict[str, list[Path]] = {}
    for study in studies:
        for instance in index.all_versions(study.study_instance_uid):
            rows.setdefault(instance.sop_instance_uid, []).append(spool.path(instance.path))
    answered = {uid: sha for m in modalities for uid, sha in m.answered.items()}
    for uid, sha in answered.items():
        if uid not in rows:
            problems.append("lost: an answered instance is not in the index")
        elif not any(_has(path, sha) for path in rows[uid]):
            problems.append("lost: an answered instance is not on disk")
    journal = [line for line in read_journal(pacs) if line["status"] in (0, 0xB000, 0x0111)]
    contents: dict[str, set[str]] = {}
    for line in journal:
        contents.setdefault(line["sop"], set()).add(line["sha256"])
    problems += ["doubled: one UID with two contents" for found in contents.values() if len(found) > 1]
    results = [r for s in studies for r in index.results_of(s.study_instance_uid)]
    problems += _compare(index, {r.sop_instance_uid for r in results}, set(contents))
    reports = Counter((r.study_instance_uid, r.revision) for r in results if r.sop_class_uid == SR)
    problems += ["doubled: two reports of one revision" for count in reports.values() if count > 1]
    dead = index.deliveries(states=["dead"])
    for study in studies:
        held = {r.revision for r in results if r.study_instance_uid == study.study_instance_uid}
        if study.state == "scored" and study.revision not in held:
            problems.append("lost: a scored revision has no result")
    problems += _orphans(index, spool)
    kinds = Counter(problem.split(":")[0] for problem in problems)
    return Audit(
        instances=len(answered),
        studies=len(studies),
        revisions=sum(study.revision for study in studies),
        results=len(results),
        lost=kinds["lost"],
        doubled=kinds["doubled"],
        orphans=kinds["orphan"],
        dead_letters=len(dead),
        failed_studies=sum(study.state == "failed" for study in studies),
        sent_again=len(journal) - len(contents),
        problems=tuple(sorted(set(problems))),
    )


def _compare(index: Index, results: set[str], arrived: set[str]) -> list[str]:
    """Every result is at the PACS or a visible dead letter; nothing else is there."""
    dead = {delivery.sop_instance_uid for delivery in index.deliveries(states=["dead"])}
    lost = ["lost: a result is neither at the PACS nor a dead letter"] * len(results - arrived - dead)
    return lost + ["doubled: the PACS has a result that the index does not know"] * len(arrived - results)


def _orphans(index: Index, spool: Spool) -> list[str]:
    known = {i.path for s in index.list_studies() for i in index.all_versions(s.study_instance_uid)}
    known |= {r.path for s in index.list_studies() for r in index.results_of(s.study_instance_uid)}
    found = [p for p in spool.root.rglob("*") if p.is_file() and p.suffix in (".dcm", ".part")]
    stray = [p for p in found if str(p.relative_to(spool.root)) not in known]
    return [f"orphan: {path.relative_to(spool.root).parts[0]}/…{path.suffix}" for path in stray]


def _has(path: Path, sha256: str) -> bool:
    try:
        return data_set_sha256(path) == sha256
    except (OSError, DaemonError):
        return False
