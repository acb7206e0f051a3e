"""Training by cross-validation: nothing of a held-out patient is seen, and what is said of it is honest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from phantoms import picture, site

from adapters.backbone import Backbone, BackboneSpec, load_backbone
from adapters.bundle import load_bundle
from adapters.errors import BundleError, CalibrationError
from adapters.scorer import Scorer
from adapters.slices import Normalisation, Slice
from training.baselines import NAMES, baselines_on
from training.cases import Case, Shot, SiteData
from training.errors import DataError
from training.evaluate import evaluate_bundle, evaluate_records, flagged_leaving_out
from training.folds import assign_folds, pick_shots
from training.options import Options
from training.outcome import TrainingOutcome
from training.pool import read_pool
from training.shots import Shots
from training.stopping import choose_epochs
from training.train import train

FAST = Options(epochs=6, folds=3, memory_rows=200)


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    """A small random backbone, coarser than the built-in one."""
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "layers": 2, "width": 48, "head_width": 24, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    return load_backbone(BackboneSpec(model="phantom", config=config), "cpu")


def _train(data: SiteData, backbone: Backbone, **changes: Any) -> TrainingOutcome:
    fixed: dict[str, Any] = {
        "name": "phantom",
        "class_name": "Liver",
        "normalisation": Normalisation("full", size_px=64),
        "options": FAST,
        "alpha": 0.2,
    }
    return train(data, backbone, **{**fixed, **changes})


@pytest.fixture(scope="module")
def outcome(tiny: Backbone) -> TrainingOutcome:
    """A training on 12 normal and 12 abnormal patients with baselines."""
    return _train(site(12, 12, slices=2), tiny, baselines=True, options=replace(FAST, epochs=20))


def test_every_image_is_scored_once_with_its_patient_held_out(outcome: TrainingOutcome) -> None:
    """All 48 images have one record each, and a patient's images share a fold."""
    records = outcome.evaluation.records
    assert len({r.shot.key for r in records}) == len(records) == 48
    assert all(len({r.fold for r in records if r.patient == p}) == 1 for p in {r.patient for r in records})


def test_adapters_beat_the_backbone_alone(outcome: TrainingOutcome) -> None:
    """On phantoms the adapters' pixel AUROC is above every baseline's, with the paired interval above 0."""
    assert outcome.evaluation.figures["image AUROC"].value > 0.85
    assert set(outcome.baselines) == set(outcome.differences) == set(NAMES)
    assert all(found["pixel AUROC"].low > 0 for found in outcome.differences.values())


def test_the_figures_are_all_there(outcome: TrainingOutcome) -> None:
    """Each promised figure has a value and an interval that holds it."""
    names = {"image AUROC", "image AP", "pixel AUROC", "pixel AP", "PRO", "Dice at the operating point"}
    figures = outcome.evaluation.figures
    assert names | {"sensitivity at 90% specificity", "abnormal patients flagged"} == set(figures)
    assert all(f.low <= f.value <= f.high for f in figures.values())


def test_the_operating_point_holds_on_held_out_normals(outcome: TrainingOutcome) -> None:
    """No more normal patients than alpha are flagged, leaving each out of its own calibration."""
    evaluation = outcome.evaluation
    assert evaluation.normal_patients == 12 == len(outcome.bundle.normal_scores)
    assert evaluation.flagged_normal_patients <= 0.2 * 13
    assert outcome.provenance["smallest_p"] == pytest.approx(1 / 13)
    assert any("smallest false-positive rate" in w for w in outcome.warnings)
    assert flagged_leaving_out([0.1, 0.2, 0.3, 0.9], 0.25) == 1


def test_the_bundle_carries_its_figures_and_no_case(outcome: TrainingOutcome, tmp_path: Path) -> None:
    """The bundle is read back with figures and counts; no key of a case or patient is in it."""
    loaded = load_bundle(outcome.bundle.save(tmp_path / "b.safetensors"))
    assert loaded.provenance["evaluation"]["figures"]["image AUROC"]
    assert (loaded.modality, loaded.body_part) == ("CT", "ABDOMEN")
    text = json.dumps(dict(loaded.provenance))
    assert "patient0" not in text
    assert "case0" not in text


def test_a_bundle_is_evaluated_as_the_daemon_scores(outcome: TrainingOutcome, tiny: Backbone) -> None:
    """Evaluation on other data gives the scorer's own scores and maps, and good figures."""
    other = site(6, 6, seed=9)
    evaluation = evaluate_bundle(outcome.bundle, tiny, other)
    slices = [Slice("1", "1", 1, case.shots[0].load()) for case in other.cases]
    for record, scored in zip(
        evaluation.records, Scorer(tiny, outcome.bundle, "cpu").score(slices), strict=True
    ):
        assert record.score == pytest.approx(scored.score, abs=1e-5)
        assert np.allclose(record.full_map(), scored.map, atol=1e-5)
    assert evaluation.figures["pixel AUROC"].value > 0.8
    assert len(evaluation.normal_p) == 6


def test_a_bundle_of_another_backbone_is_refused(outcome: TrainingOutcome) -> None:
    """Evaluation names the mismatch instead of giving figures."""
    with pytest.raises(BundleError):
        evaluate_bundle(outcome.bundle, load_backbone(BackboneSpec(), "cpu"), site(2, 2))


def test_a_training_repeats(tiny: Backbone) -> None:
    """The same data and seed give the same bundle to the last bit; another seed gives another."""
    data = site(5, 5)
    first = _train(data, tiny).bundle.version
    assert _train(data, tiny).bundle.version == first
    assert _train(data, tiny, seed=1).bundle.version != first


def test_a_stopped_training_goes_on_where_it_was(tiny: Backbone, tmp_path: Path) -> None:
    """Ctrl-C in the final fit, then a resume: no fold is fitted again, the bundle is the same."""
    data = site(5, 5)
    expected = _train(data, tiny).bundle.version

    def stop(stage: str, epoch: int, epochs: int, loss: float) -> None:
        if stage.startswith("final"):
            raise KeyboardInterrupt

    _train(data, tiny, resume_dir=tmp_path, progress=stop)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".safetensors"] * 3
    seen: list[str] = []
    again = _train(data, tiny, resume_dir=tmp_path, progress=lambda stage, *_: seen.append(stage))
    assert set(seen) == {"final fit"}
    assert again.bundle.version == expected


def test_folds_of_other_data_are_not_resumed(tiny: Backbone, tmp_path: Path) -> None:
    """Saved folds of another seed, other data or damaged files are fitted anew."""
    _train(site(4, 4), tiny, resume_dir=tmp_path, alpha=0.25)
    (tmp_path / "fold-1.safetensors").write_bytes(b"damaged")
    seen: set[str] = set()
    _train(
        site(4, 4, seed=3),
        tiny,
        resume_dir=tmp_path,
        alpha=0.25,
        progress=lambda stage, *_: seen.add(stage),
    )
    assert any(stage.startswith("fold 2") for stage in seen)


def test_ctrl_c_keeps_the_best_so_far(tiny: Backbone) -> None:
    """After a complete fold Ctrl-C leaves a bundle that says what it rests on; before, none."""

    def stop_in(word: str, at: int) -> Any:
        def stop(stage: str, epoch: int, epochs: int, loss: float) -> None:
            if stage.startswith(word) and epoch == at:
                raise KeyboardInterrupt

        return stop

    kept = _train(site(12, 12), tiny, progress=stop_in("fold 3", 1), options=replace(FAST, epochs=3))
    assert any("2 of 3 folds" in w for w in kept.warnings)
    final = _train(site(12, 12), tiny, progress=stop_in("final", 2), options=replace(FAST, epochs=3))
    assert any("epoch 2" in w for w in final.warnings)
    with pytest.raises(KeyboardInterrupt):
        _train(site(12, 12), tiny, progress=stop_in("fold 1", 1))


def test_k_shots_fit_and_the_rest_evaluates(tiny: Backbone) -> None:
    """With K = 3 six images are fitted on, and all are scored."""
    outcome = _train(site(5, 5, slices=2), tiny, shots_per_class=3)
    assert outcome.provenance["fitted_slices"] == 6
    assert len(outcome.evaluation.records) == 20


def test_unseen_patients_calibrate_the_final_model(tiny: Backbone) -> None:
    """With K shots of many normals the final model is calibrated on those it has not seen, and says so."""
    outcome = _train(site(24, 6), tiny, shots_per_class=4, options=replace(FAST, epochs=2))
    assert outcome.provenance["calibrated_on"] == "patients unseen by this model"
    assert len(outcome.bundle.normal_scores) == 20


def test_baselines_run_on_other_data(outcome: TrainingOutcome, tiny: Backbone) -> None:
    """Baselines built from the fitted cases score the same held-out images as the bundle."""
    fitted, other = site(12, 12, slices=2), site(12, 12, seed=9)
    cases = [
        replace(c, key=f"o{c.key}", patient_key=f"o{c.key}", shots=(replace(c.shots[0], key=f"o{c.key}"),))
        for c in other.cases
    ]
    other = SiteData(tuple(cases), ())
    evaluation = evaluate_bundle(outcome.bundle, tiny, other)
    found, gains = baselines_on(evaluation, fitted, other, tiny, class_name="Liver", options=FAST)
    assert all(len(e.records) == 24 for e in found.values())
    assert all(gain["pixel AUROC"].value > 0 for gain in gains.values())


def test_baselines_refuse_the_cases_that_the_bundle_was_fitted_on(
    outcome: TrainingOutcome, tiny: Backbone
) -> None:
    """Cases of the same key on both sides are counted and refused."""
    data = site(12, 12, slices=2)
    evaluation = evaluate_bundle(outcome.bundle, tiny, data)
    with pytest.raises(DataError, match="24 cases are in both"):
        baselines_on(evaluation, data, data, tiny, class_name="Liver", options=FAST)


def test_too_little_data_says_what_is_missing(tiny: Backbone) -> None:
    """No images, one class, one patient of a class and an unreachable alpha are named; nothing is fitted."""
    for data, message in (
        (SiteData((), ()), "no annotated image"),
        (site(3, 0), "0 patients with abnormal"),
        (site(0, 3), "0 patients with normal"),
        (site(3, 1), "1 patients with abnormal.*at least 2 patients per class"),
    ):
        with pytest.raises(DataError, match=message):
            _train(data, tiny)
    with pytest.raises(CalibrationError, match="raise alpha"):
        _train(site(3, 3), tiny, alpha=0.1)
    with pytest.raises(DataError, match="at least one is needed"):
        _train(site(3, 3), tiny, shots_per_class=0)


def test_unusable_images_are_counted_not_fatal(tiny: Backbone) -> None:
    """An unreadable image, a mask of another size and an empty mask are left out with a reason."""

    def broken() -> np.ndarray:
        raise OSError("the file is cut short")

    image, mask = picture(np.random.default_rng(0), True)
    bad = (
        Shot("x1", "normal", broken),
        Shot("x2", "abnormal", lambda: image, mask[:10]),
        Shot("x3", "abnormal", lambda: image, mask & False),
        Shot("x4", "normal", lambda: image * np.float32(np.nan)),
        Shot("x5", "normal", lambda: image[0]),
    )
    data = site(5, 5)
    outcome = _train(SiteData((*data.cases, Case("bad", "bad", "", "", bad)), ()), tiny)
    assert len(outcome.evaluation.records) == 10
    assert any(w.startswith("5 annotated images were not used") for w in outcome.warnings)
    with pytest.raises(DataError, match="none of the 5"):
        read_pool(SiteData((Case("bad", "bad", "", "", bad),), ()), tiny)


def test_abnormal_images_without_a_mask_are_evaluated_only(tiny: Backbone) -> None:
    """Among outlined images, one without a mask is scored, not fitted on, and that is said."""
    data, bare = site(5, 5), site(0, 1, seed=4, masks=False).cases[0]
    bare = replace(bare, key="bare", patient_key="bare")
    outcome = _train(SiteData((*data.cases, bare), ()), tiny)
    assert outcome.provenance["fitted_slices"] == 10
    assert any("1 abnormal images have no mask" in w for w in outcome.warnings)


def test_without_masks_images_alone_are_judged(tiny: Backbone) -> None:
    """A site without masks gets a detection bundle and no pixel figures."""
    outcome = _train(site(5, 5, masks=False), tiny)
    assert outcome.bundle.families == ("det",)
    assert outcome.evaluation.pixel is None
    assert "pixel AUROC" not in outcome.evaluation.figures


def test_the_reference_recipe_trains_too(tiny: Backbone) -> None:
    """The published recipe goes through the same cross-validation."""
    outcome = _train(site(5, 5), tiny, recipe="reference", options=replace(FAST, epochs=1))
    assert outcome.bundle.mix == "published"


def test_folds_keep_patients_together_and_classes_apart() -> None:
    """Every fold has both classes, patients with both included, and one fold each."""
    patients = [f"p{i % 9}" for i in range(36)]
    labels = np.array([int(i % 9 < 5) if i < 18 else int(i % 9 < 4) for i in range(36)])
    folds = assign_folds(patients, labels, 3, seed=0)
    assert all(set(labels[folds == k]) == {0, 1} for k in range(3))
    assert all(len({int(f) for f, p in zip(folds, patients, strict=True) if p == q}) == 1 for q in patients)


def test_shots_are_drawn_from_as_many_patients_as_possible() -> None:
    """Four shots of four patients are one each."""
    patients = [f"p{i % 4}" for i in range(40)] + ["q"]
    labels = np.array([0] * 40 + [1])
    chosen = pick_shots(np.arange(41), patients, labels, 4, seed=0)
    assert sorted(patients[i] for i in chosen) == ["p0", "p1", "p2", "p3", "q"]


def test_epochs_are_chosen_on_patients_held_out_inside(tiny: Backbone) -> None:
    """The inner choice sees the fitted rows alone, and declines where they are too few."""
    pool = read_pool(site(9, 9), tiny)
    shots = Shots(tiny, pool.data, pool.labels, "Liver", FAST)
    seen: list[str] = []
    rows = np.arange(18)
    best = choose_epochs(shots, rows, pool.patients, "fold", lambda stage, *_: seen.append(stage))
    assert best is not None
    assert 1 <= best <= FAST.epochs
    assert set(seen) == {"fold, inner 1", "fold, inner 2"}
    assert choose_epochs(shots, np.array([0, 1, 9, 10]), pool.patients, "fold", None) is None


def test_figures_need_both_classes(outcome: TrainingOutcome) -> None:
    """Evaluation on one class is refused by name."""
    normal = [r for r in outcome.evaluation.records if not r.abnormal]
    with pytest.raises(DataError, match="no abnormal images"):
        evaluate_records(normal, alpha=0.1, slice_threshold=0.5)


def test_random_state_is_left_alone(tiny: Backbone) -> None:
    """A training does not disturb the caller's random numbers."""
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    _train(site(5, 5), tiny, options=replace(FAST, epochs=1))
    assert torch.equal(torch.rand(3), expected)
