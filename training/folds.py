"""Who is held out: folds by patient, and which shots of many are fitted on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError

Rows = NDArray[np.intp]


def assign_folds(patients: Sequence[str], labels: Rows, folds: int, seed: int) -> Rows:
    """Give every slice a fold: a patient's slices share it, and each class is spread over the folds.

    Parameters
    ----------
    patients
        (n,) keys.
    labels
        (n,) 0 normal, 1 abnormal.
    folds
        Wanted; fewer where a class has fewer patients.
    seed
        Of the deal.

    Returns
    -------
    ndarray
        (n,) fold from 0.

    Raises
    ------
    DataError
        A class has fewer than two patients, or the same patients carry a class so that no split serves.
    """
    owners = np.asarray(patients)
    having = [set(owners[labels == label].tolist()) for label in (0, 1)]
    for word, found in zip(("normal", "abnormal"), having, strict=True):
        if len(found) < 2:
            raise DataError(
                f"{len(found)} patients with {word} slices: cross-validation needs at least 2 patients per "
                f"class; add {word} cases of other patients"
            )
    k = min(folds, len(having[0]), len(having[1]))
    rng = np.random.default_rng(seed)
    fold: dict[str, int] = {}
    # Patients with both classes first, then each class goes on where it is scarcest.
    for group in (having[0] & having[1], having[1] - having[0], having[0] - having[1]):
        names = sorted(group)
        for name in rng.permutation(len(names)):
            fold[names[name]] = _scarcest(fold, group, k, rng)
    return np.array([fold[key] for key in patients], dtype=np.intp)


def _scarcest(fold: dict[str, int], group: set[str], k: int, rng: np.random.Generator) -> int:
    """Return the fold with the fewest patients of the group, then the fewest in all; ties by chance."""
    own = np.bincount([f for p, f in fold.items() if p in group], minlength=k)
    all_ = np.bincount(list(fold.values()), minlength=k)
    order = np.lexsort((rng.random(k), all_, own))
    return int(order[0])


def pick_shots(rows: Rows, patients: Sequence[str], labels: Rows, shots: int | None, seed: int) -> Rows:
    """Choose up to ``shots`` slices per class, taking patients in turn so that as many as possible count.

    Parameters
    ----------
    rows
        Indices to choose from.
    patients, labels
        Of all slices.
    shots
        Per class; None for all.
    seed
        Of the draw.
    """
    if shots is None:
        return rows
    chosen: list[int] = []
    for label in (0, 1):
        rng = np.random.default_rng([seed, label])
        queues: dict[str, list[int]] = {}
        for i in rng.permutation([int(i) for i in rows if labels[i] == label]):
            queues.setdefault(patients[i], []).append(int(i))
        taken: list[int] = []
        while len(taken) < shots and any(queues.values()):
            for queue in queues.values():
                if queue and len(taken) < shots:
                    taken.append(queue.pop())
        chosen += taken
    return np.array(sorted(chosen), dtype=np.intp)
