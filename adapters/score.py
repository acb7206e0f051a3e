"""What the model says of one slice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class SliceScore:
    """One slice's anomaly score and map.

    Parameters
    ----------
    sop_instance_uid, frame_number
        The source frame.
    score
        Calibrated slice score in [0, 1].
    draw
        Makes ``map``.
    patches
        (grid, grid) float32 in [0, 1], the small map that ``map`` is drawn from; None where there is none.
    """

    sop_instance_uid: str
    frame_number: int
    score: float
    draw: Callable[[], NDArray[np.float32]] = field(repr=False)
    patches: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)

    @property
    def map(self) -> NDArray[np.float32]:
        """(rows, columns) float32 in [0, 1] on the *source* grid.

        Made anew from the small patch grid each time: a study's maps at full size would not fit.
        """
        return self.draw()
