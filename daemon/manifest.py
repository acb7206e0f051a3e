"""What the spool keeps of each study revision beside its results, so that the index can be made again.

In ``results/<2 hex>/<study>/<revision>/``: ``job.json`` (what was fixed before scoring, and which
instances the revision holds), ``outcome.json`` (state, reason, results, figures), and one
``sent.<destination>.json`` for each destination that has everything. UIDs, numbers and paths; no
patient data.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from daemon.errors import SpoolError
from daemon.jobs import JobRecord, ResultRef
from daemon.spool import Spool

_JOB, _OUTCOME = "job.json", "outcome.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """One revision as the spool has it; ``outcome`` is None while it is in work."""

    job: JobRecord
    instances: tuple[str, ...]
    outcome: ResultRef | None
    destinations: tuple[str, ...]
    expires_at: float
    sent: dict[str, list[str]]


def keep_job(spool: Spool, job: JobRecord, instances: list[str]) -> JobRecord:
    """Write what is fixed for a revision, unless an earlier attempt did; return what is kept."""
    try:
        return _read_job(spool.results_dir(job.study) / str(job.revision))[0]
    except OSError:
        spool.write_result(
            job.study, job.revision, _JOB, _encode({"job": asdict(job), "instances": sorted(instances)})
        )
        return job


def keep_outcome(
    spool: Spool, job: JobRecord, outcome: ResultRef, destinations: list[str], expires_at: float
) -> None:
    """Write how a revision ended and where its results go, unless an earlier attempt did."""
    if not (spool.results_dir(job.study) / str(job.revision) / _OUTCOME).is_file():
        kept = {"outcome": asdict(outcome), "destinations": destinations, "expires_at": expires_at}
        spool.write_result(job.study, job.revision, _OUTCOME, _encode(kept))


def keep_sent(spool: Spool, study: str, revision: int, destination: str, uids: list[str]) -> None:
    """Write that a destination has every result of a revision."""
    spool.write_result(study, revision, f"sent.{destination}.json", _encode(sorted(uids)))


def is_scored(spool: Spool, study: str, revision: int) -> bool:
    """True if the spool says that this revision ended scored; what is gone or damaged says nothing."""
    try:
        kept = _read(spool.results_dir(study) / str(revision))
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return kept.outcome is not None and kept.outcome.state == "scored"


def read_manifests(spool: Spool, study: str) -> Iterator[Manifest]:
    """Yield what the spool has of each revision of a study, oldest first.

    Raises
    ------
    SpoolError
        A file is damaged.
    """
    folder = spool.results_dir(study)
    numbers = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    for number in sorted(numbers):
        try:
            yield _read(folder / str(number))
        except OSError:
            continue  # results of a version that kept no job
        except (ValueError, KeyError, TypeError) as error:
            raise SpoolError("a revision's job.json or outcome.json in the spool is damaged") from error


def _read(folder: Path) -> Manifest:
    job, instances = _read_job(folder)
    outcome = folder / _OUTCOME
    kept = json.loads(outcome.read_text()) if outcome.is_file() else {}
    return Manifest(
        job,
        tuple(instances),
        ResultRef.from_dict(kept["outcome"]) if kept else None,
        tuple(kept.get("destinations", ())),
        kept.get("expires_at", 0.0),
        {
            path.name.removeprefix("sent.").removesuffix(".json"): json.loads(path.read_text())
            for path in folder.glob("sent.*.json")
        },
    )


def _read_job(folder: Path) -> tuple[JobRecord, list[str]]:
    values = json.loads((folder / _JOB).read_text())
    return JobRecord.from_dict(values["job"]), values["instances"]


def _encode(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()
