"""Raw score to calibrated score, conformal p-value and threshold, from held-out normals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adapters.errors import CalibrationError


def p_value(score: float, normals: ArrayLike) -> float:
    """Return the conformal p-value (1 + #{normal >= score}) / (n + 1).

    Flagging at p <= alpha has a false-positive rate of at most alpha on units exchangeable with the
    held-out normals, whatever the model.

    Parameters
    ----------
    score
        Of the new unit (slice, series or patient: the same unit as the normals).
    normals
        (n,) scores of held-out normal units.
    """
    held = np.asarray(normals, dtype=np.float64)
    return float((1 + np.count_nonzero(held >= score)) / (held.size + 1))


def smallest_p(n: int) -> float:
    """Return the smallest p-value that n held-out normals can give, 1 / (n + 1)."""
    return 1.0 / (n + 1)


def operating_point(normals: ArrayLike, alpha: float) -> float:
    """Return the lowest score above which p <= alpha: flag where score > this.

    Parameters
    ----------
    normals
        (n,) scores of held-out normal units.
    alpha
        Allowed false-positive rate, in (0, 1).

    Raises
    ------
    CalibrationError
        alpha is out of range, or below 1 / (n + 1).
    """
    held = np.sort(np.asarray(normals, dtype=np.float64))
    if not 0 < alpha < 1:
        raise CalibrationError(f"alpha must be between 0 and 1, not {alpha}")
    allowed = math.floor(alpha * (held.size + 1) + 1e-9)
    if allowed < 1:
        raise CalibrationError(
            f"{held.size} held-out normals reach p = {smallest_p(held.size):.3g} at best, above "
            f"alpha = {alpha}: add normals up to {math.ceil(1 / alpha) - 1}, or raise alpha"
        )
    # p <= alpha needs at most allowed - 1 normals at or above the score.
    return float(held[held.size - allowed])


@dataclass(frozen=True, slots=True)
class Scale:
    """A strictly increasing map of raw scores to (0, 1): logistic, 0.5 at ``centre``.

    Parameters
    ----------
    centre
        Raw score that becomes 0.5: the upper end of the held-out normals.
    width
        Raw units per unit of log-odds, above 0.
    """

    centre: float
    width: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.centre) and math.isfinite(self.width) and self.width > 0):
            raise CalibrationError(f"the scale (centre {self.centre}, width {self.width}) is not usable")

    def __call__(self, raw: ArrayLike) -> NDArray[np.float32]:
        """Return the calibrated score, float32 in [0, 1], of the same shape."""
        z = np.clip((np.asarray(raw, dtype=np.float64) - self.centre) / self.width, -60.0, 60.0)
        return np.asarray(1 / (1 + np.exp(-z)), dtype=np.float32)


def fit_scale(normals: ArrayLike, quantile: float) -> Scale:
    """Fit a scale: the given quantile of the normals becomes 0.5, their median 0.02.

    Parameters
    ----------
    normals
        Raw scores of held-out normals, any shape.
    quantile
        In (0.5, 1].

    Raises
    ------
    CalibrationError
        There are no finite normals.
    """
    held = np.asarray(normals, dtype=np.float64).ravel()
    if not held.size or not np.isfinite(held).all():
        raise CalibrationError("there are no usable scores of held-out normals: give more normal cases")
    centre = float(np.quantile(held, quantile, method="higher"))
    # Identical normals would make a step: keep a width above rounding noise.
    width = max((centre - float(np.median(held))) / 4.0, 1e-4)
    return Scale(centre, width)
