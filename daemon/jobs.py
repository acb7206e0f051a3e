"""What the engine keeps of one study revision between its steps: references in JSON, no pixels."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class JobRecord:
    """What is fixed for one study revision, as JSON can hold it.

    Parameters
    ----------
    study, revision
        The work.
    created
        ISO 8601 with time zone: every date and time in the results.
    bundles
        Name → version of the adapter bundles in use; empty if there is none.
    predecessors
        (SOP Class UID, SOP Instance UID, Series Instance UID, destinations) of the results replaced.
    asked
        A person asked for it: it is scored whatever came.
    """

    study: str
    revision: int
    created: str
    bundles: dict[str, str]
    predecessors: list[list[str]] = field(default_factory=list)
    asked: bool = False

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read back what the engine kept, maybe of an earlier version that knew fewer fields."""
        return cls(**{item.name: values[item.name] for item in fields(cls) if item.name in values})


@dataclass(frozen=True, slots=True)
class ResultRef:
    """How a revision ended: state, reason, references to the written results, and figures per bundle."""

    state: str
    reason: str
    results: list[dict[str, Any]] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read back what the engine kept."""
        return cls(**{item.name: values[item.name] for item in fields(cls)})
