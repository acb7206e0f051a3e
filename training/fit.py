"""Few-shot fit: normal and abnormal slices in, AdapterBundle out; nothing is written to disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.backbone import Backbone
from adapters.bundle import AdapterBundle
from adapters.slices import Normalisation
from training.calibrate import Calibration, Terms, calibrate
from training.options import Options, Progress
from training.prepared import Image, Mask, Prepared
from training.shots import Expert, Shots

PIXEL_FPR = 0.002


def fit(
    backbone: Backbone,
    normal: Sequence[Image],
    abnormal: Sequence[tuple[Image, Mask | None]],
    *,
    name: str,
    class_name: str,
    normalisation: Normalisation,
    holdout_normals: Sequence[Image] = (),
    case_keys: Sequence[str] | None = None,
    options: Options | None = None,
    modality: str = "",
    body_part: str = "",
    provenance: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> AdapterBundle:
    """Fit adapters, build the memory, calibrate on normals that were not fitted on.

    Parameters
    ----------
    backbone
        Frozen.
    normal
        (rows, columns) float32 in [0, 1] each, normalised as ``normalisation`` says.
    abnormal
        Image and (rows, columns) bool mask each; None for every mask trains image scores alone.
    name, class_name, normalisation, modality, body_part, provenance
        Go into the bundle.
    holdout_normals
        Normal slices of other cases to calibrate on; without them cross-validation over the cases scores
        every normal slice by a model that has not seen its case.
    case_keys
        The case of each normal, then of each abnormal slice; without them each slice is its own case.
    options
        How to fit.
    progress
        Called with stage, epoch from 1, epochs and mean loss.

    Raises
    ------
    ValueError
        There is nothing to fit, or masks or keys do not match the images.
    CalibrationError
        The normals are too few for the operating point.
    """
    options = options or Options()
    keys = list(case_keys) if case_keys is not None else [str(i) for i in range(len(normal) + len(abnormal))]
    fold_of = _folds(normal, abnormal, keys, 1 if holdout_normals else options.folds)
    extra = [(image, None) for image in holdout_normals]
    data = Prepared(backbone, [*((image, None) for image in normal), *abnormal, *extra])
    labels = np.array([0] * len(normal) + [1] * len(abnormal) + [0] * len(extra))
    shots = Shots(backbone, data, labels, class_name, options)
    rows = np.arange(len(fold_of))
    held: list[Terms] = []
    if extra:
        expert = shots.fit(rows, "fit", progress)
        outside = [f"holdout {i}" for i in range(len(extra))]
        unseen = np.flatnonzero(labels.astype(bool) | (np.arange(len(labels)) >= len(rows)))
        held += held_out(shots, expert, unseen, [*keys, *outside])
    else:
        for fold in range(int(fold_of.max()) + 1):
            expert = shots.fit(rows[fold_of != fold], f"fold {fold + 1}", progress)
            held += held_out(shots, expert, rows[fold_of == fold], keys)
        expert = shots.fit(rows, "final fit", progress)
    calibration = calibrate(held, options.pixel_fpr or PIXEL_FPR, options.slice_fpr)
    counts = {
        "normal_slices": len(normal),
        "abnormal_slices": len(abnormal),
        "cases": len(set(keys)),
        "recipe": options.recipe,
        "epochs": shots.epochs,
        "seed": options.seed,
    }
    return bundle_of(
        shots,
        expert,
        calibration,
        name=name,
        class_name=class_name,
        normalisation=normalisation,
        modality=modality,
        body_part=body_part,
        provenance=counts | calibration.provenance | dict(provenance or {}),
    )


def held_out(shots: Shots, expert: Expert, rows: NDArray[np.intp], patients: Sequence[str]) -> list[Terms]:
    """Return the raw terms of shots that the expert has not seen; ``patients`` is indexed by row."""
    if not len(rows):
        return []
    data = shots.data
    return [
        Terms(data.boxes[i], text, far, patients[i], bool(shots.labels[i]), data.masks[i])
        for i, text, far in zip(rows, *shots.terms(expert, rows), strict=True)
    ]


def bundle_of(
    shots: Shots,
    expert: Expert,
    calibration: Calibration,
    *,
    name: str,
    class_name: str,
    normalisation: Normalisation,
    modality: str,
    body_part: str,
    provenance: Mapping[str, Any],
) -> AdapterBundle:
    """Put a fitted expert and its calibration into a bundle; parameters as in :func:`fit`."""
    backbone = shots.backbone
    return AdapterBundle(
        name=name,
        backbone=backbone.spec.as_dict(),
        backbone_sha256=backbone.sha256,
        image_size_px=backbone.image_size_px,
        patch_px=backbone.patch_px,
        levels=expert.model.levels,
        families=expert.model.families,
        mix=expert.model.mix,
        class_name=class_name,
        text=shots.text.cpu().numpy(),
        normalisation=normalisation,
        weights={k: v.detach().cpu().numpy() for k, v in expert.model.state_dict().items()},
        memory=tuple(rows.cpu().numpy() for rows in expert.memory),
        distance_scale=calibration.distance_scale,
        slice_scale=calibration.slice_scale,
        normal_scores=calibration.normal_scores,
        normal_map_quantiles=calibration.map_quantiles,
        threshold=calibration.threshold,
        slice_threshold=calibration.slice_threshold,
        modality=modality,
        body_part=body_part,
        provenance=provenance,
    )


def _folds(
    normal: Sequence[Image],
    abnormal: Sequence[tuple[Image, Mask | None]],
    keys: Sequence[str],
    folds: int,
) -> NDArray[np.intp]:
    """Give every slice a fold; slices of one case share it, normal cases spread evenly."""
    total = len(normal) + len(abnormal)
    if not normal or not abnormal:
        raise ValueError(f"{len(normal)} normal and {len(abnormal)} abnormal slices: both are needed")
    if len({mask is None for _, mask in abnormal}) > 1:
        raise ValueError(
            "some abnormal slices have a mask and some have none: give masks for all or for none"
        )
    if len(keys) != total:
        raise ValueError(f"{len(keys)} case keys for {total} slices")
    cases = list(dict.fromkeys(keys))
    normal_cases = len(set(keys[: len(normal)]))
    if folds > 1 and normal_cases < 2:
        raise ValueError("one normal case alone cannot be held out: give two or holdout_normals")
    fold = {case: i % min(folds, normal_cases) for i, case in enumerate(cases)}
    return np.array([fold[key] for key in keys], dtype=np.intp)
