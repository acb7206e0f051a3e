"""Site data to bundle: cross-validation by patient, honest figures, calibration, final fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.backbone import Backbone
from adapters.calibration import operating_point, smallest_p
from adapters.slices import Normalisation
from training.baselines import with_baselines
from training.calibrate import Terms, calibrate
from training.cases import SiteData
from training.evaluate import SPECIFICITY, Evaluation, evaluate_records, flagged_leaving_out
from training.fit import bundle_of, held_out
from training.foldstore import FoldStore, fingerprint
from training.leakage import leakage_warnings
from training.options import Options, Progress, Recipe
from training.outcome import TrainingOutcome
from training.plan import Plan, check_room, make_plan
from training.pool import Pool, read_pool
from training.records import records_of
from training.shots import Expert, Shots
from training.stopping import choose_epochs

Rows = NDArray[np.intp]
# Of the held-out normals' pixels, where the options leave it open.
PIXEL_FPR = 0.01
# Unseen normal patients from which on they alone calibrate the final model.
ENOUGH_NORMALS = 19


@dataclass(slots=True)
class _Folds:
    """Folds that are done."""

    rows: list[Rows] = field(default_factory=list)
    terms: list[Terms] = field(default_factory=list)
    experts: list[Expert] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    nested: bool = True


def train(
    site: SiteData,
    backbone: Backbone,
    *,
    name: str,
    class_name: str,
    normalisation: Normalisation,
    shots_per_class: int | None = None,
    recipe: Recipe = "default",
    alpha: float = 0.1,
    seed: int = 0,
    options: Options | None = None,
    specificity: float = SPECIFICITY,
    modality: str = "",
    body_part: str = "",
    baselines: bool = False,
    resume_dir: Path | None = None,
    progress: Progress | None = None,
) -> TrainingOutcome:
    """Fit a bundle on a site's cases and say how good it is.

    Each image is scored by a model that has seen nothing of its patient; the figures, the thresholds and
    the calibration rest on those scores. The number of epochs of each fold is chosen on patients held out
    inside its training part; the final fit takes the median of them. Ctrl-C during the final fit keeps what
    it has; during the cross-validation, the model of the last complete fold, calibrated on what was held out
    until then.

    Parameters
    ----------
    site
        Cases with annotated images.
    backbone
        Frozen.
    name, class_name, normalisation, modality, body_part
        Go into the bundle; modality and body part default to the cases' own where all agree.
    shots_per_class
        Images per class that a model is fitted on; None for all. The rest still serves to evaluate.
    recipe, seed
        Override those of ``options``.
    alpha
        Allowed share of flagged normal patients.
    options
        Details of the fit.
    specificity
        At which a sensitivity is reported.
    baselines
        Also evaluate the frozen backbone without adapters on the same folds.
    resume_dir
        Where complete folds are kept and looked for; None keeps none.
    progress
        Called with stage, epoch from 1, epochs and mean loss.

    Raises
    ------
    DataError
        Too few patients or images of a class, or no room for so many; the message says what to do.
    CalibrationError
        The normal patients cannot support ``alpha``.
    KeyboardInterrupt
        Stopped before the first fold was complete.
    """
    options = options or Options()
    pixel_fpr = options.pixel_fpr or PIXEL_FPR
    options = replace(options, recipe=recipe, seed=seed, slice_fpr=alpha, pixel_fpr=pixel_fpr)
    pool = read_pool(site, backbone)
    plan = make_plan(pool, options, shots_per_class)
    _check_alpha(pool, alpha)
    shots = Shots(backbone, pool.data, pool.labels, class_name, options, resume_dir)
    check_room(shots, pool, plan)
    print_of = fingerprint(pool, backbone.sha256, options, shots=shots_per_class, class_name=class_name)
    store = FoldStore(resume_dir, print_of)
    done, expert, notes = _fit_all(shots, pool, plan, store, progress)
    calibration = calibrate(done.terms, options.pixel_fpr, alpha)
    rows = np.concatenate(done.rows)
    where = [(pool.cases[i], pool.shots[i], int(plan.fold_of[i])) for i in rows]
    records = records_of(done.terms, where, calibration, options.pixel_fpr)
    unseen = _unseen(shots, pool, plan, expert, alpha) if not notes else []
    own = calibrate(unseen, options.pixel_fpr, alpha) if unseen else calibration
    evaluation = evaluate_records(
        records,
        alpha=alpha,
        slice_threshold=calibration.slice_threshold,
        flagged=flagged_leaving_out(calibration.normal_scores.tolist(), alpha),
        specificity=specificity,
        seed=seed,
    )
    warnings = (*notes, *_warnings(pool, plan, evaluation), *leakage_warnings(pool, evaluation))
    provenance = {
        **pool.count(),
        "shots_per_class": shots_per_class,
        "fitted_slices": len(plan.final),
        "recipe": recipe,
        "epochs": expert.epochs,
        "epochs_of_folds": done.epochs,
        "epochs_chosen_on_held_out_patients": done.nested,
        "folds": len(plan.chosen),
        "seed": seed,
        "evaluation": evaluation.as_dict(),
        "data_sha256": print_of,
        "calibrated_on": "patients unseen by this model" if unseen else "cross-validation",
        **own.provenance,
    }
    bundle = bundle_of(
        shots,
        expert,
        own,
        name=name,
        class_name=class_name,
        normalisation=normalisation,
        modality=modality or _common([case.modality for case in pool.cases]),
        body_part=body_part or _common([case.body_part for case in pool.cases]),
        provenance=provenance,
    )
    outcome = TrainingOutcome(bundle, evaluation, warnings, provenance)
    if not baselines:
        return outcome
    return with_baselines(outcome, shots, pool, plan, specificity=specificity)


def _fit_all(
    shots: Shots, pool: Pool, plan: Plan, store: FoldStore, progress: Progress | None
) -> tuple[_Folds, Expert, list[str]]:
    """Return the folds, the final expert, and notes about an early end."""
    done = _Folds()
    try:
        for fold in range(len(plan.chosen)):
            _one_fold(done, shots, pool, plan, fold, store, progress)
    except KeyboardInterrupt:
        if not done.experts:
            raise
        note = (
            f"Stopped after {len(done.experts)} of {len(plan.chosen)} folds: the bundle holds the model of "
            f"the last complete one, and all figures rest on the patients held out until then."
        )
        return done, done.experts[-1], [note]
    epochs = int(np.median(done.epochs))
    try:
        expert = shots.fit(plan.final, "final fit", progress, lambda _, epoch: epoch >= epochs, keep=True)
    except KeyboardInterrupt:
        return (
            done,
            done.experts[-1],
            ["Stopped before the final fit: the bundle holds the last fold's model."],
        )
    if expert.interrupted:
        return done, expert, [f"Stopped in epoch {expert.epochs} of {epochs} of the final fit."]
    return done, expert, []


def _one_fold(
    done: _Folds,
    shots: Shots,
    pool: Pool,
    plan: Plan,
    fold: int,
    store: FoldStore,
    progress: Progress | None,
) -> None:
    held = np.flatnonzero(plan.fold_of == fold)
    stage = f"fold {fold + 1} of {len(plan.chosen)}"
    saved = store.load(f"fold-{fold + 1}", shots, held)
    if saved is None:
        best = choose_epochs(shots, plan.chosen[fold], pool.patients, stage, progress)
        limit = best or shots.epochs
        expert = shots.fit(plan.chosen[fold], stage, progress, _until(limit))
        expert = replace(expert, chosen=best is not None)
        terms = shots.terms(expert, held)
        store.save(f"fold-{fold + 1}", expert, held, terms)
    else:
        expert, terms = saved
    done.terms += [
        Terms(box, text, far, pool.patients[i], bool(shots.labels[i]), shots.data.masks[i])
        for i, box, text, far in zip(held, [shots.data.boxes[i] for i in held], *terms, strict=True)
    ]
    done.nested &= expert.chosen
    done.rows.append(held)
    done.experts.append(expert)
    done.epochs.append(expert.epochs)


def _unseen(shots: Shots, pool: Pool, plan: Plan, expert: Expert, alpha: float) -> list[Terms]:
    """Return the terms of patients whom the final model has not seen, or [] where they are too few.

    With K shots of many patients most are unseen: scores of the very model that is delivered make the
    conformal bound exact, those of the folds' models only nearly so.
    """
    seen = {pool.patients[i] for i in plan.final}
    rows = np.array([i for i, p in enumerate(pool.patients) if p not in seen], dtype=np.intp)
    normal = {pool.patients[i] for i in rows if not pool.labels[i]}
    if len(normal) < max(ENOUGH_NORMALS, math.ceil(1 / alpha) - 1):
        return []
    return held_out(shots, expert, rows, pool.patients)


def _until(limit: int) -> Callable[[Any, int], bool]:
    return lambda _, epoch: epoch >= limit


def _check_alpha(pool: Pool, alpha: float) -> None:
    """Refuse an operating point at once: every normal patient of the site is held out exactly once."""
    normal = {p for p, label in zip(pool.patients, pool.labels, strict=True) if not label}
    operating_point(np.zeros(len(normal)), alpha)


def _warnings(pool: Pool, plan: Plan, evaluation: Evaluation) -> list[str]:
    out = []
    n = evaluation.normal_patients
    out.append(
        f"{n} normal patients: the smallest false-positive rate that they support is {smallest_p(n):.3g}."
    )
    if pool.unreadable:
        reasons = sorted(set(pool.unreadable.values()))
        out.append(f"{len(pool.unreadable)} annotated images were not used: {'; '.join(reasons[:3])}.")
    if pool.count()["masks"]:
        bare = int(pool.labels.sum()) - pool.count()["masks"]
        if bare:
            out.append(f"{bare} abnormal images have no mask: they were evaluated, not fitted on.")
    if evaluation.normal_patients < 20 or pool.count()["abnormal_patients"] < 20:
        out.append(
            f"Few patients ({n} with normal, {pool.count()['abnormal_patients']} with abnormal images): the "
            f"intervals are wide and themselves uncertain."
        )
    return out


def _common(words: Sequence[str]) -> str:
    found = set(words)
    return found.pop() if len(found) == 1 else ""
