"""The demo's verdict: what arrived at the PACS against the lesions that the phantoms were given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.uid import SegmentationStorage
from rich.console import Console
from rich.table import Table

from daemon.demo_pacs import DemoPacs
from daemon.phantom import PIXEL_SPACING_MM, SLICE_SPACING_MM, PhantomCase


@dataclass(frozen=True, slots=True)
class Shown:
    """A phantom study that is played through the daemon."""

    case: PhantomCase
    files: tuple[Path, ...]


def compare(console: Console, shown: Sequence[Shown], pacs: DemoPacs, out: Path) -> bool:
    """Read back what the PACS got, hold it against the known lesions and print a table.

    Parameters
    ----------
    console
        Gets the table.
    shown
        The studies that were played through the daemon.
    pacs
        Where their results went.
    out
        Fetched results go to ``arrived/`` below it.

    Returns
    -------
    bool
        True if each study has its SR, each lesion was found, and nothing else was.
    """
    table = Table("study", "lesion", "objects at the PACS", "overlap (Dice)", "centre off by", title="truth")
    ok = True
    for number, item in enumerate(shown, 1):
        files = pacs.fetch(item.case.study_instance_uid, out / "arrived" / f"study-{number}")
        kinds = sorted(str(dcmread(f, stop_before_pixels=True).Modality) for f in files)
        found = _mask_of(files, item)
        dice, off_mm = _overlap(found, item.case.lesion)
        good = "SR" in kinds and (dice > 0.5 if item.case.abnormal else not found.any())
        ok &= good
        table.add_row(
            str(number),
            "yes" if item.case.abnormal else "none",
            ", ".join(kinds),
            f"{dice:.2f}" if item.case.abnormal else ("nothing found" if good else "false finding"),
            f"{off_mm:.1f} mm" if off_mm is not None else "",
        )
    console.print(table)
    return ok


def _mask_of(files: Sequence[Path], item: Shown) -> NDArray[np.bool_]:
    """Union of the segments, laid on the source slices by the instance that each frame names."""
    order = {str(dcmread(f, stop_before_pixels=True).SOPInstanceUID): i for i, f in enumerate(item.files)}
    mask = np.zeros(item.case.lesion.shape, dtype=bool)
    for file in files:
        ds = dcmread(file)
        if ds.SOPClassUID != SegmentationStorage:
            continue
        frames = ds.pixel_array.reshape(-1, ds.Rows, ds.Columns)
        for frame, groups in zip(frames, ds.PerFrameFunctionalGroupsSequence, strict=True):
            source = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
            mask[order[str(source)]] |= frame.astype(bool)
    return mask


def _overlap(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> tuple[float, float | None]:
    total = int(found.sum()) + int(truth.sum())
    dice = 2 * int((found & truth).sum()) / total if total else 1.0
    if not found.any() or not truth.any():
        return dice, None
    spacing = np.array([SLICE_SPACING_MM, PIXEL_SPACING_MM, PIXEL_SPACING_MM])
    offset = (np.argwhere(found).mean(0) - np.argwhere(truth).mean(0)) * spacing
    return dice, float(np.linalg.norm(offset))
