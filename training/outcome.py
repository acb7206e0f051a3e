"""What a training leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adapters.bundle import AdapterBundle
from training.evaluate import Evaluation
from training.metrics import Figure


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """What a training leaves.

    Parameters
    ----------
    bundle
        Ready for the registry.
    evaluation
        Out-of-fold figures.
    warnings
        What a reader of the figures must know.
    provenance
        What the bundle records: counts, folds, seed, figures.
    baselines, differences
        Filled by :func:`training.baselines.with_baselines`: figures of each baseline, and ours minus its.
    """

    bundle: AdapterBundle
    evaluation: Evaluation
    warnings: tuple[str, ...]
    provenance: Mapping[str, Any]
    baselines: Mapping[str, Evaluation] = field(default_factory=dict)
    differences: Mapping[str, Mapping[str, Figure]] = field(default_factory=dict)
