"""What the frozen backbone can do without adapters, on the same folds and shots.

Three of them: its text alone, a memory of its normal tokens alone, and a PatchCore-style memory
(arXiv 2106.08265: mid-level features, 3 x 3 neighbourhoods, greedy coreset).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from adapters.backbone import Backbone
from adapters.calibration import fit_scale, operating_point
from adapters.letterbox import Letterbox
from adapters.memory import bank, coreset, distance
from adapters.model import abnormal_probability
from adapters.scorer import slice_score
from training.calibrate import TOP_FRACTION, highest
from training.cases import SiteData
from training.errors import DataError
from training.evaluate import SPECIFICITY, Evaluation, compare, evaluate_records, flagged_leaving_out
from training.folds import pick_shots
from training.metrics import Figure
from training.options import Options
from training.outcome import TrainingOutcome
from training.plan import Plan
from training.pool import Pool, read_pool
from training.records import Record, cross_fitted
from training.shots import Shots

Rows = NDArray[np.intp]
Maps = NDArray[np.float32]
NAMES = ("text only", "memory only", "PatchCore-style")


@dataclass(frozen=True, slots=True)
class Scored:
    """Raw baseline maps (B, g, g) of some rows, and image scores (B,) or None for the map's top."""

    maps: Maps
    scores: NDArray[np.float64] | None = None


def with_baselines(
    outcome: TrainingOutcome, shots: Shots, pool: Pool, plan: Plan, *, specificity: float = SPECIFICITY
) -> TrainingOutcome:
    """Return the outcome with the baselines' figures and ours minus each, paired by patient."""
    found, gains = run_baselines(outcome.evaluation, shots, pool, plan, specificity=specificity)
    return replace(outcome, baselines=found, differences=gains)


def baselines_on(
    evaluation: Evaluation,
    fitted: SiteData,
    other: SiteData,
    backbone: Backbone,
    *,
    class_name: str,
    shots_per_class: int | None = None,
    options: Options | None = None,
    specificity: float = SPECIFICITY,
) -> tuple[dict[str, Evaluation], dict[str, dict[str, Figure]]]:
    """Evaluate the baselines on the data that a bundle was evaluated on.

    Parameters
    ----------
    evaluation
        Of the bundle on ``other``.
    fitted
        The site data that the bundle was fitted on: the memories are built from its normals.
    other
        Data with other keys than ``fitted``.
    backbone, class_name, shots_per_class, options
        As in the training.
    specificity
        As in :func:`~training.evaluate.evaluate_records`.

    Returns
    -------
    tuple of dict
        Evaluation by baseline, and ours minus each by figure.

    Raises
    ------
    DataError
        Both have cases of the same key.
    """
    options = options or Options()
    if shared := {case.key for case in fitted.cases} & {case.key for case in other.cases}:
        raise DataError(
            f"{len(shared)} cases are in both the data to evaluate on and the data that was fitted on: "
            "leave them out, or, if they are other pictures of the same names, rename those"
        )
    pool = read_pool(SiteData((*fitted.cases, *other.cases), ()), backbone)
    shots = Shots(backbone, pool.data, pool.labels, class_name, options)
    own = {case.key for case in fitted.cases}
    inside = np.array([case.key in own for case in pool.cases])
    chosen = pick_shots(np.flatnonzero(inside), pool.patients, pool.labels, shots_per_class, options.seed)
    plan = Plan(np.where(inside, -1, 0), (chosen,), chosen)
    return run_baselines(evaluation, shots, pool, plan, specificity=specificity)


def run_baselines(
    ours: Evaluation, shots: Shots, pool: Pool, plan: Plan, *, specificity: float = SPECIFICITY
) -> tuple[dict[str, Evaluation], dict[str, dict[str, Figure]]]:
    """Score every image of ``ours`` by each baseline, fold by fold; return evaluations and differences."""
    order = {record.shot.key: i for i, record in enumerate(ours.records)}
    found: dict[str, Evaluation] = {}
    for name, method in _methods(shots).items():
        records = _records(method, shots, pool, plan, ours.records)
        records.sort(key=lambda r: order[r.shot.key])
        scores = highest(*_normals(records))
        cut = operating_point(scores, ours.alpha)
        found[name] = evaluate_records(
            records,
            alpha=ours.alpha,
            slice_threshold=float(np.nextafter(cut, np.inf)),
            flagged=flagged_leaving_out(scores.tolist(), ours.alpha),
            specificity=specificity,
            seed=shots.options.seed,
        )
    gains = {name: compare(ours, other, seed=shots.options.seed) for name, other in found.items()}
    return found, gains


Method = Callable[[Rows, Rows], Scored]


def _methods(shots: Shots) -> dict[str, Method]:
    """Return by name: rows fitted on and rows held out to raw maps."""
    return {
        NAMES[0]: lambda fitted, held: text_only(shots, held),
        NAMES[1]: lambda fitted, held: memory_only(shots, fitted, held),
        NAMES[2]: lambda fitted, held: patchcore(shots, fitted, held),
    }


def text_only(shots: Shots, held: Rows) -> Scored:
    """Return maps of the last block's patch tokens against the text, and the class token's probability."""
    backbone = shots.backbone
    maps, scores = [], []
    for part in _parts(held):
        x = backbone.run_blocks(shots.plain(part), shots.levels[0], backbone.blocks)
        with torch.no_grad():
            tokens = backbone.visual.ln_post(x) @ backbone.visual.proj
            maps.append(abnormal_probability(tokens[:, backbone.prefix :], shots.text).cpu().numpy())
            scores.append(abnormal_probability(backbone.pool(x), shots.text).cpu().numpy())
    return Scored(_grid(np.concatenate(maps)), np.concatenate(scores).astype(np.float64))


def memory_only(shots: Shots, fitted: Rows, held: Rows) -> Scored:
    """Return the distance to the frozen tokens of the fitted normals' views, mean over the levels."""
    levels = shots.drawn(lambda x: _levels(shots, x), fitted[shots.labels[fitted] == 0])
    maps = [
        torch.stack([distance(t, m) for t, m in zip(_levels(shots, shots.plain(part)), levels, strict=True)])
        .mean(0)
        .cpu()
        .numpy()
        for part in _parts(held)
    ]
    return Scored(_grid(np.concatenate(maps)))


def patchcore(shots: Shots, fitted: Rows, held: Rows) -> Scored:
    """Return the distance of mid-level 3 x 3 means to a 10 % coreset; the image score is the maximum."""
    normal = fitted[shots.labels[fitted] == 0]
    rows = torch.cat(
        [_mid(shots, shots.plain(part))[shots.valid[torch.from_numpy(part)]] for part in _parts(normal)]
    )
    rows = coreset(bank(rows), max(1, min(len(rows) // 10, 2 * shots.options.memory_rows)), seed=0)
    maps = [distance(_mid(shots, shots.plain(part)), rows).cpu().numpy() for part in _parts(held)]
    flat = np.concatenate(maps)
    valid = shots.valid[torch.from_numpy(held)].cpu().numpy()
    return Scored(_grid(flat), np.where(valid, flat, -1.0).max(axis=1).astype(np.float64))


def _levels(shots: Shots, stem: torch.Tensor) -> list[torch.Tensor]:
    """Return per level (B, P, W) frozen patch tokens."""
    backbone, out, x = shots.backbone, [], stem
    with torch.no_grad():
        for i, level in enumerate(shots.levels):
            x = backbone.run_blocks(x, shots.levels[i - 1], level) if i else x
            out.append(x[:, backbone.prefix :])
    return out


def _mid(shots: Shots, stem: torch.Tensor) -> torch.Tensor:
    """Return (B, P, 2 W): the two middle levels, each normalised and averaged over 3 x 3 patches."""
    levels = _levels(shots, stem)
    middle = levels[1:3] if len(levels) > 2 else levels
    out = []
    for x in middle:
        grid = round(x.shape[1] ** 0.5)
        image = F.normalize(x, dim=-1).transpose(1, 2).reshape(len(x), -1, grid, grid)
        mean = F.avg_pool2d(image, 3, stride=1, padding=1, count_include_pad=False)
        out.append(mean.flatten(2).transpose(1, 2))
    return torch.cat(out, dim=-1)


def _records(method: Method, shots: Shots, pool: Pool, plan: Plan, ours: Sequence[Record]) -> list[Record]:
    """Score what we scored, fold by fold, maps scaled to [0, 1] by the held-out normals."""
    wanted = {record.shot.key for record in ours}
    raw: list[tuple[int, int, Letterbox, Maps, float | None]] = []
    for fold, fitted in enumerate(plan.chosen):
        held = np.array([i for i in np.flatnonzero(plan.fold_of == fold) if pool.shots[i].key in wanted])
        if not len(held):
            continue
        scored = method(fitted, held)
        for j, i in enumerate(held):
            score = None if scored.scores is None else float(scored.scores[j])
            raw.append((int(i), fold, pool.data.boxes[i], scored.maps[j], score))
    scale = fit_scale(
        np.concatenate([m[box.valid()] for i, _, box, m, _ in raw if not pool.labels[i]]), 0.999
    )
    records = []
    for i, fold, box, values, score in raw:
        fused = scale(values)
        top = slice_score(values, box.valid(), TOP_FRACTION) if score is None else score
        records.append(Record(pool.cases[i], pool.shots[i], top, box, fused, fold, 0.5))
    return cross_fitted(records, shots.options.pixel_fpr)


def _normals(records: Sequence[Record]) -> tuple[list[float], list[str]]:
    normal = [r for r in records if not r.abnormal]
    return [r.score for r in normal], [r.patient for r in normal]


def _parts(rows: Rows) -> list[Rows]:
    return np.array_split(rows, max(1, -(-len(rows) // 32)))


def _grid(flat: Maps) -> Maps:
    side = round(flat.shape[1] ** 0.5)
    return flat.reshape(len(flat), side, side)
