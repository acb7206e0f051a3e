"""Which slices of a scored group go on its contact sheet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from adapters.slices import Slice
from daemon.preview import MAXIMUM_SLICES, PreviewSlice, draw_sheet
from daemon.results import Analysis
from daemon.study import Frame

# Decodes one frame as the bundle saw it.
Reader = Callable[[Frame], Slice]


def sheet_slices(analysis: Analysis, maps: Sequence[NDArray[np.float32]], read: Reader) -> list[PreviewSlice]:
    """Choose the slices worth a look: those of the findings first, then the highest scores, in order.

    Parameters
    ----------
    analysis, maps
        Of one frame group; one map per frame.
    read
        Gives the pixels.

    Returns
    -------
    list of PreviewSlice
        At most as many as a sheet has room for.
    """
    frames = analysis.group.frames
    by_score = sorted(range(len(frames)), key=lambda i: -(analysis.slice_scores[i] or 0.0))
    wanted = list(dict.fromkeys([f.largest_frame for f in analysis.findings] + by_score))[:MAXIMUM_SLICES]
    slices = []
    for index in sorted(wanted):
        score = analysis.slice_scores[index]
        if score is None:
            continue
        mask = np.zeros(maps[index].shape, dtype=bool)
        for finding in analysis.findings:
            z, y, x = finding.origin
            depth, height, width = finding.mask.shape
            if z <= index < z + depth:
                mask[y : y + height, x : x + width] |= finding.mask[index - z]
        caption, spacing = f"slice {index + 1} of {len(frames)}", analysis.group.pixel_spacing_mm
        slices.append(PreviewSlice(read(frames[index]).pixels, maps[index], mask, caption, score, spacing))
    return slices


def picture_of(analysis: Analysis, maps: Sequence[NDArray[np.float32]], read: Reader) -> NDArray[np.uint8]:
    """Contact sheet of a group, (rows, columns, 3) uint8."""
    return draw_sheet(sheet_slices(analysis, maps, read), threshold=analysis.threshold)
