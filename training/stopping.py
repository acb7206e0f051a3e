"""How many epochs: chosen on patients held out inside the training part, never on the evaluated ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adapters.model import MVFA
from training.errors import DataError
from training.folds import assign_folds
from training.metrics import auroc, tally
from training.options import Progress
from training.shots import Shots

Rows = NDArray[np.intp]
CHECKS = 10
# Fewer held-out slices of a class than this say nothing about an epoch.
ENOUGH = 4


def choose_epochs(
    shots: Shots, rows: Rows, patients: Sequence[str], stage: str, progress: Progress | None
) -> int | None:
    """Return the epoch of best held-out AUROC (images and patches), over two inner folds of patients.

    Parameters
    ----------
    shots
        All shots of the training.
    rows
        Those that may be fitted on.
    patients
        Of all shots.
    stage, progress
        Whom to tell.

    Returns
    -------
    int or None
        From 1; None where the patients are too few to hold some out.
    """
    labels = shots.labels[rows]
    if min(int((labels == 0).sum()), int((labels == 1).sum())) < 2 * ENOUGH:
        return None
    try:
        inner = assign_folds([patients[i] for i in rows], labels, 2, shots.options.seed)
    except DataError:
        return None
    every = max(1, shots.epochs // CHECKS)
    curves: list[list[float]] = []
    for fold in (0, 1):
        train, held = rows[inner != fold], rows[inner == fold]
        if min(len(set(shots.labels[train])), len(set(shots.labels[held]))) < 2:
            return None
        curve: list[float] = []

        def watch(model: MVFA, epoch: int, held: Rows = held, curve: list[float] = curve) -> bool:
            if epoch % every == 0:
                curve.append(quality(shots, model, held))
            return False

        shots.fit(train, f"{stage}, inner {fold + 1}", progress, watch)
        curves.append(curve)
    mean = np.mean(curves, axis=0)
    smooth = np.convolve(np.pad(mean, 1, mode="edge"), [0.25, 0.5, 0.25], mode="valid")
    # Within half a percent the longer fit is as good on few patients, and steadier.
    best = int(np.flatnonzero(smooth >= smooth.max() - 0.005)[-1])
    return (best + 1) * every


def quality(shots: Shots, model: MVFA, rows: Rows) -> float:
    """Return the mean of the image AUROC and, with masks, the patch AUROC of the text map."""
    maps, valid = shots.text_maps(model, rows), shots.valid[rows].cpu().numpy()
    top = [
        np.sort(m[v])[-max(1, round(0.01 * int(v.sum()))) :].mean() for m, v in zip(maps, valid, strict=True)
    ]
    ones = np.ones((1, 1))
    image = float(auroc(tally(top, shots.labels[rows] == 1, ["all"] * len(rows)), ones)[0])
    truth = shots.covered(rows) > 0.5
    if not (truth & valid).any():
        return image
    values = np.round(maps[valid], 4)
    return (image + float(auroc(tally(values, truth[valid], ["all"] * values.size), ones)[0])) / 2
