"""Who is held out when, and what each model is fitted on."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError
from training.folds import assign_folds, pick_shots
from training.options import Options
from training.pool import Pool
from training.shots import Shots

Rows = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Plan:
    """Who is held out when, and what is fitted on.

    Parameters
    ----------
    fold_of
        (n,) fold of each image.
    chosen
        Per fold the rows that its model is fitted on.
    final
        Rows of the final fit.
    """

    fold_of: Rows
    chosen: tuple[Rows, ...]
    final: Rows


def make_plan(pool: Pool, options: Options, shots_per_class: int | None) -> Plan:
    """Deal the patients into folds and choose the shots of each.

    Raises
    ------
    DataError
        A fold would have nothing of one class to be fitted on.
    """
    if shots_per_class is not None and shots_per_class < 1:
        raise DataError(f"{shots_per_class} shots per class: at least one is needed")
    patients, labels = pool.patients, pool.labels
    fold_of = assign_folds(patients, labels, options.folds, options.seed)
    masked = any(mask is not None for mask in pool.data.masks)
    # With masks, an abnormal image without one teaches the map nothing: it is only evaluated.
    usable = np.array(
        [i for i, mask in enumerate(pool.data.masks) if not masked or not labels[i] or mask is not None]
    )
    chosen = tuple(
        pick_shots(usable[fold_of[usable] != fold], patients, labels, shots_per_class, options.seed)
        for fold in range(int(fold_of.max()) + 1)
    )
    for rows in chosen:
        missing = [word for label, word in ((0, "normal"), (1, "abnormal")) if label not in labels[rows]]
        if missing:
            what = "outlined abnormal" if missing[0] == "abnormal" and masked else missing[0]
            raise DataError(
                f"with one group of patients held out, no {what} image is left to fit on: add {what} "
                f"images of another patient"
            )
    return Plan(fold_of, chosen, pick_shots(usable, patients, labels, shots_per_class, options.seed))


def check_room(shots: Shots, pool: Pool, plan: Plan) -> None:
    """Refuse what neither memory nor disk has room for, before hours are spent on a part of it.

    Raises
    ------
    DataError
        The stem tokens do not fit; the message says how many shots do.
    """
    room = shots.store.memory_bytes + shots.store.disk_bytes
    images = len(pool.labels)

    def needed(plan: Plan) -> int:
        return shots.token_bytes(images, len(set(np.concatenate([*plan.chosen, plan.final]).tolist())))

    if needed(plan) <= room:
        return
    text = (
        f"the tokens of {images} images take {needed(plan) / 2**30:.3g} GiB, but memory and disk have room "
        f"for {room / 2**30:.3g} GiB"
    )
    # Each fold draws its own shots: how many images are fitted on is counted, not multiplied.
    most = range(1, int(np.bincount(pool.labels).max()))
    fitting = bisect_left(most, True, key=lambda k: needed(make_plan(pool, shots.options, k)) > room)
    if fitting:
        raise DataError(f"{text}: fit on at most {fitting} images per class (--shots {fitting})")
    raise DataError(f"{text}: not even for one shot per class; use fewer images or a smaller backbone")
