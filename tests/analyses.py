"""Analyses of synthetic studies: real files, real assembly, made-up score maps."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import factories
import numpy as np
from pydicom.dataset import Dataset

from daemon.findings import find
from daemon.results import Analysis, Job, tracking_uid
from daemon.study import FrameGroup, assemble

Box = tuple[slice, slice, slice]


def make_job(**changes: Any) -> Job:
    """Return a job of revision 1 at a fixed time."""
    values: dict[str, Any] = {
        "study_instance_uid": factories.uid("study"),
        "revision": 1,
        "created": datetime(2026, 11, 24, 10, 11, 12, tzinfo=UTC),
        "device_uid": factories.uid("installation"),
        "software_version": "0.1.0",
    }
    return Job(**{**values, **changes})


def make_group(datasets: Sequence[Dataset], folder: Path) -> FrameGroup:
    """Write datasets and assemble them into the one frame group that they must make."""
    paths = factories.write_all(datasets, folder)
    study = assemble(datasets[0].StudyInstanceUID, paths, max_frame_pixels=10**8, max_study_frames=10**4)
    assert len(study.groups) == 1, study.refusals
    return study.groups[0]


def make_analysis(group: FrameGroup, boxes: Sequence[Box], *, scored: bool = True) -> Analysis:
    """Return an analysis with one finding per box, the first the strongest."""
    maps = np.zeros((len(group.frames), group.rows, group.columns), dtype=np.float32)
    for i, box in enumerate(boxes):
        maps[box] = 0.9 - 0.1 * i
    job, model = make_job(), "tiny/demo/abcdef123456"
    findings = find(
        maps,
        group,
        threshold=0.5,
        minimum_voxels=2,
        minimum_volume_mm3=0,
        uid_for=lambda number: tracking_uid(job, model, group, number),
    )
    assert len(findings) == len(boxes)
    return Analysis(
        group=group,
        scored=len(group.frames) if scored else 0,
        total=len(group.frames),
        findings=findings,
        slice_scores=tuple(float(m.max()) if scored else None for m in maps),
        bundle_name="demo",
        bundle_version="abcdef123456",
        backbone_name="tiny",
        threshold=0.5,
    )


def painted(group: FrameGroup, boxes: Sequence[Box]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return the boxes as one (frames, rows, columns) mask."""
    mask = np.zeros((len(group.frames), group.rows, group.columns), dtype=bool)
    for box in boxes:
        mask[box] = True
    return mask
