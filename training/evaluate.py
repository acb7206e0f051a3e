"""Scores of images that the model has not seen, and the figures that they support."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from adapters.backbone import Backbone
from adapters.bundle import AdapterBundle
from adapters.calibration import p_value
from adapters.scorer import fuse, load_model, patch_terms, replicate, slice_score
from training.calibrate import highest
from training.cases import SiteData
from training.errors import DataError
from training.metrics import (
    Figure,
    Metric,
    Tally,
    auroc,
    average_precision,
    binomial_interval,
    difference,
    figure,
    mean_figure,
    pro,
    sensitivity_at,
    tally,
)
from training.pixels import PixelCase, dice, edges_of, pixel_tally, thin
from training.pool import Pool, read_pool
from training.records import Record

Maps = NDArray[np.float32]
SPECIFICITY = 0.9


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures over held-out images.

    Parameters
    ----------
    records
        Every scored image.
    figures
        By name, each with its interval over patients.
    image, pixel
        Counts that the curves are drawn from; ``pixel`` is None without masks.
    alpha
        The operating point: allowed share of flagged normal patients.
    slice_threshold
        Images at or above it are flagged.
    normal_patients
        How many patients with normal images there are.
    flagged_normal_patients
        How many of them have a flagged normal image.
    normal_p, abnormal_p
        Conformal p-value of each patient's highest normal and abnormal image, among normal patients that
        its model has not seen either.
    """

    records: tuple[Record, ...]
    figures: Mapping[str, Figure]
    image: Tally
    pixel: Tally | None
    alpha: float
    slice_threshold: float
    normal_patients: int
    flagged_normal_patients: int
    normal_p: tuple[float, ...] = ()
    abnormal_p: tuple[float, ...] = ()

    @property
    def false_positive_interval(self) -> tuple[float, float]:
        """Return the 95 % binomial interval of the share of flagged normal patients."""
        return binomial_interval(self.flagged_normal_patients, self.normal_patients)

    def as_dict(self) -> dict[str, object]:
        """Return the figures as JSON values."""
        plain = {
            name: [None if not np.isfinite(v) else round(v, 4) for v in (f.value, f.low, f.high)]
            for name, f in self.figures.items()
        }
        rate = [self.flagged_normal_patients, self.normal_patients]
        return {"figures": plain, "alpha": self.alpha, "flagged_normal_patients": rate}


def evaluate_records(
    records: Sequence[Record],
    *,
    alpha: float,
    slice_threshold: float,
    flagged: int | None = None,
    reference: Sequence[float] | None = None,
    specificity: float = SPECIFICITY,
    seed: int = 0,
) -> Evaluation:
    """Compute every figure with its interval.

    Parameters
    ----------
    records
        Scored images of both classes.
    alpha, slice_threshold
        The operating point.
    flagged
        Normal patients flagged, where that was counted with a threshold that excludes the patient itself;
        None to count with ``slice_threshold``.
    reference
        Scores of the normal patients that p-values refer to; None for the normal patients of the other folds.
    specificity
        At which the sensitivity is read from the ROC curve.
    seed
        Of the bootstrap.

    Raises
    ------
    DataError
        A class is missing.
    """
    truth = [r.abnormal for r in records]
    if all(truth) or not any(truth):
        word = "normal" if all(truth) else "abnormal"
        raise DataError(f"there are no {word} images to evaluate on: figures need both classes")
    image = tally([r.score for r in records], truth, [r.patient for r in records])
    pixel = _pixels(records)
    metrics: dict[str, tuple[Tally | None, Metric]] = {
        "image AUROC": (image, auroc),
        "image AP": (image, average_precision),
        f"sensitivity at {specificity:.0%} specificity": (image, sensitivity_at(specificity)),
        "pixel AUROC": (pixel, auroc),
        "pixel AP": (pixel, average_precision),
        "PRO": (pixel, pro),
    }
    figures = {n: figure(c, metric, seed=seed) for n, (c, metric) in metrics.items() if c is not None}
    outlined = [r for r in records if r.abnormal and r.shot.mask is not None]
    if outlined:
        values = [dice(thin(r.full_map()) >= r.threshold, thin(r.full_mask())) for r in outlined]
        figures["Dice at the operating point"] = mean_figure(values, [r.patient for r in outlined], seed=seed)
    hit: dict[str, bool] = {}
    for r in records:
        if r.abnormal:
            hit[r.patient] = hit.get(r.patient, False) or r.score >= slice_threshold
    figures["abnormal patients flagged"] = mean_figure(list(hit.values()), list(hit), seed=seed)
    normal = {r.patient for r in records if not r.abnormal}
    above = {r.patient for r in records if not r.abnormal and r.score >= slice_threshold}
    return Evaluation(
        tuple(records),
        figures,
        image,
        pixel,
        alpha,
        slice_threshold,
        len(normal),
        len(above) if flagged is None else flagged,
        _p_values(records, False, reference),
        _p_values(records, True, reference),
    )


def compare(ours: Evaluation, other: Evaluation, *, seed: int = 0) -> dict[str, Figure]:
    """Return ours minus other, paired by patient, for the figures of images and pixels."""
    out = {"image AUROC": difference(ours.image, other.image, auroc, seed=seed)}
    if ours.pixel is not None and other.pixel is not None:
        out["pixel AUROC"] = difference(ours.pixel, other.pixel, auroc, seed=seed)
        out["pixel AP"] = difference(ours.pixel, other.pixel, average_precision, seed=seed)
    return out


def flagged_leaving_out(scores: Sequence[float], alpha: float) -> int:
    """Count normal patients whose conformal p-value among the *other* patients is at most alpha."""
    held = np.asarray(scores)
    above = (held[None, :] >= held[:, None]).sum(1)  # the patient itself is the 1 of the p-value
    return int((above / len(held) <= alpha + 1e-12).sum())


def evaluate_bundle(
    bundle: AdapterBundle,
    backbone: Backbone,
    site: SiteData,
    *,
    specificity: float = SPECIFICITY,
    seed: int = 0,
    batch_size: int = 16,
) -> Evaluation:
    """Score other data with a bundle, exactly as the daemon does, and compute the same figures.

    Parameters
    ----------
    bundle, backbone
        What is evaluated; its own thresholds apply.
    site
        Data that it was not fitted on.
    specificity, seed
        As in :func:`evaluate_records`.
    batch_size
        Images per forward pass.

    Raises
    ------
    DataError
        A class is missing or nothing can be read.
    BundleError
        The bundle was fitted on another backbone.
    """
    bundle.check_backbone(backbone.sha256)
    pool = read_pool(site, backbone)
    records = []
    terms = zip(
        pool.cases, pool.shots, pool.data.boxes, _maps(bundle, backbone, pool, batch_size), strict=True
    )
    for case, shot, box, fused in terms:
        score = float(bundle.slice_scale(slice_score(fused, box.valid(), bundle.top_fraction)))
        records.append(Record(case, shot, score, box, fused, 0, bundle.threshold))
    alpha = float(bundle.provenance.get("slice_fpr", 0.0))
    return evaluate_records(
        records,
        alpha=alpha,
        slice_threshold=bundle.slice_threshold,
        reference=bundle.normal_scores.tolist(),
        specificity=specificity,
        seed=seed,
    )


def _maps(bundle: AdapterBundle, backbone: Backbone, pool: Pool, batch_size: int) -> Iterator[Maps]:
    """Yield the (g, g) map of each image, as :class:`~adapters.scorer.Scorer` computes it."""
    model = load_model(backbone, bundle)
    text = torch.from_numpy(bundle.text).to(backbone.device)
    memory = [torch.from_numpy(rows).to(backbone.device) for rows in bundle.memory]
    for images in torch.split(pool.data.images, batch_size):
        with torch.no_grad():
            tokens = model(replicate(images)).of(bundle.families[0])
            terms = patch_terms(model, tokens, text, memory)
        for text_map, far in zip(*terms, strict=True):
            yield fuse(text_map, far, bundle.distance_scale)


def _p_values(
    records: Sequence[Record], abnormal: bool, reference: Sequence[float] | None
) -> tuple[float, ...]:
    out: list[float] = []
    for fold in sorted({r.fold for r in records}):
        mine = [r for r in records if r.fold == fold and r.abnormal == abnormal]
        others = [r for r in records if r.fold != fold and not r.abnormal]
        held = reference
        if held is None:
            held = highest([r.score for r in others], [r.patient for r in others]).tolist()
        if mine and held:
            scores = highest([r.score for r in mine], [r.patient for r in mine])
            out += [p_value(float(score), held) for score in scores]
    return tuple(out)


def _pixels(records: Sequence[Record]) -> Tally | None:
    usable = [r for r in records if not r.abnormal or r.shot.mask is not None]
    if not any(r.abnormal for r in usable):
        return None
    patches = [r.map[r.box.valid()] for r in usable]
    inside = [thin(r.full_map())[thin(r.full_mask())] for r in usable if r.abnormal]
    edges = edges_of(patches, inside)
    patients = list(dict.fromkeys(r.patient for r in usable))
    cases = (PixelCase(r.patient, thin(r.full_map()), thin(r.full_mask())) for r in usable)
    return pixel_tally(cases, edges, patients)
