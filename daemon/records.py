"""What the index gives out and takes in: plain, frozen records; times are seconds since the epoch, UTC."""

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Literal, TypeVar

from daemon.spool import StoredInstance

StudyState = Literal["receiving", "stable", "scoring", "scored", "refused", "failed"]
DeliveryState = Literal["pending", "sent", "failed", "dead"]
ResultKind = Literal["SEG", "SR", "PM", "SC"]


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """One study: when it came, its newest opened revision (0: none) and the state of that.

    ``dirty`` says that something is in no revision yet, ``closed`` that no quiet time is waited
    for, ``pruned_at`` when its files were removed.
    """

    study_instance_uid: str
    first_received: float
    last_received: float
    instance_count: int
    revision: int
    state: str
    state_reason: str
    dirty: bool
    closed: bool
    pruned_at: float | None = None


@dataclass(frozen=True, slots=True)
class ResultRecord:
    """One result object of one study revision; ``path`` is relative to the spool's root.

    ``destinations`` names those that get it, apart by blanks; "" is every one.
    """

    study_instance_uid: str
    revision: int
    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    path: str
    sha256: str
    destinations: str = ""


@dataclass(frozen=True, slots=True)
class ScoreRecord:
    """What one bundle said of one frame group; see :class:`daemon.pipeline.GroupRecord`."""

    study_instance_uid: str
    revision: int
    group_key: str
    bundle_version: str
    series_instance_uid: str
    modality: str
    bundle_name: str
    shadow: bool
    slices: int
    maximum: float
    mean: float
    findings: int
    scored_at: float
    scanner: str = ""


@dataclass(frozen=True, slots=True)
class ScoreCounts:
    """How often a bundle's highest slice score was at most each bound.

    Parameters
    ----------
    bundle_name, bundle_version
        Of the bundle.
    count, total
        How many series it scored, and the sum of their highest scores.
    at_most
        By bound.
    """

    bundle_name: str
    bundle_version: str
    count: int
    total: float
    at_most: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DeliveryRecord:
    """One result object for one destination: its state, attempts, last error, next time and last time.

    ``committed_at`` says when the destination committed itself to keep it.
    """

    study_instance_uid: str
    revision: int
    destination: str
    sop_instance_uid: str
    state: str
    attempts: int
    last_error: str
    next_at: float
    expires_at: float
    committed_at: float | None = None

    def commitment(self, committing: Collection[str]) -> str:
        """Say whether it is committed to storage; "" where it is not delivered, or nobody is asked to.

        Parameters
        ----------
        committing
            Names of the destinations that are asked.
        """
        if self.state != "sent" or self.destination not in committing:
            return ""
        return "not committed" if self.committed_at is None else "committed"


@dataclass(frozen=True, slots=True)
class DueDelivery:
    """What is due of one revision for one destination, after so many attempts."""

    study: str
    revision: int
    destination: str
    attempts: int


R = TypeVar("R", StudyRecord, ResultRecord, ScoreRecord, DeliveryRecord, StoredInstance)


def fields_of(record: ResultRecord | ScoreRecord | StoredInstance) -> dict[str, object]:
    """Return a record as keyword arguments of its table's row."""
    return {field.name: getattr(record, field.name) for field in fields(record)}


def record_of(kind: type[R], row: object) -> R:
    """Return a row as its record."""
    return kind(**{field.name: getattr(row, field.name) for field in fields(kind)})
