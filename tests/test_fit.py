"""The few-shot fit finds the lesions of a phantom that it has not seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adapters.backbone import Backbone, BackboneSpec, load_backbone
from adapters.bundle import AdapterBundle
from adapters.errors import CalibrationError
from adapters.scorer import Scorer
from adapters.slices import Normalisation, Slice
from training.augment import PUBLISHED_VIEWS, SAFE_VIEWS, augment
from training.fit import fit
from training.losses import dice, focal, image_term, published_image_term
from training.shots import Options

Pair = tuple[np.ndarray, np.ndarray]


def phantom(rng: np.random.Generator, lesion: bool, size: int = 128) -> Pair:
    """A body ellipse with two darker organs and, if asked, one brighter or darker lesion; image and mask."""
    y, x = np.mgrid[:size, :size] / size - 0.5 + rng.normal(0, 0.015, (2, 1, 1))
    body = (y / rng.uniform(0.36, 0.42)) ** 2 + (x / rng.uniform(0.28, 0.34)) ** 2 < 1
    image = np.where(body, 0.45, 0.02)
    for side in (-1, 1):
        image[(y / 0.12) ** 2 + ((x - side * 0.14) / 0.08) ** 2 < 1] -= 0.15
    mask = np.zeros((size, size), bool)
    if lesion:
        centre, radius = rng.uniform(-0.15, 0.15, 2), rng.uniform(0.05, 0.1)
        mask = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
        image[mask] += rng.choice([-1, 1]) * rng.uniform(0.25, 0.4)
    image += rng.normal(0, 0.02, (size, size))
    return np.clip(image, 0, 1).astype(np.float32), mask


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    """The built-in random backbone."""
    return load_backbone(BackboneSpec(), "cpu")


@pytest.fixture(scope="module")
def fitted(tiny: Backbone) -> AdapterBundle:
    """A fit on 16 normal and 16 abnormal phantoms."""
    rng = np.random.default_rng(5)
    normal = [phantom(rng, False)[0] for _ in range(16)]
    abnormal = [phantom(rng, True) for _ in range(16)]
    return _fit(tiny, normal, abnormal, options=Options(epochs=20, folds=2))


def _fit(backbone: Backbone, normal: list, abnormal: list, **changes: object) -> AdapterBundle:
    fixed = {"name": "phantom", "class_name": "Brain", "normalisation": Normalisation("full", size_px=128)}
    return fit(backbone, normal, abnormal, **{**fixed, **changes})


def _score(backbone: Backbone, bundle: AdapterBundle, images: list) -> list:
    return list(Scorer(backbone, bundle, "cpu").score(Slice("1", "1", 1, i) for i in images))


def test_unseen_lesions_are_outlined(tiny: Backbone, fitted: AdapterBundle) -> None:
    """On phantoms never seen, lesions are outlined (mean Dice above 0.5) and normals stay clear."""
    rng = np.random.default_rng(77)
    abnormal = [phantom(rng, True) for _ in range(12)]
    normal = [phantom(rng, False)[0] for _ in range(12)]
    with_lesion = _score(tiny, fitted, [image for image, _ in abnormal])
    without = _score(tiny, fitted, normal)
    found = [s.map >= fitted.threshold for s in with_lesion]
    overlap = [2 * (f & m).sum() / (f.sum() + m.sum()) for f, (_, m) in zip(found, abnormal, strict=True)]
    assert np.mean(overlap) > 0.5
    assert np.mean([(s.map >= fitted.threshold).mean() for s in without]) < 0.005
    assert np.mean([a.score > b.score for a in with_lesion for b in without]) > 0.9


def test_a_fit_says_what_it_rests_on(fitted: AdapterBundle) -> None:
    """The bundle records counts, seed, the held-out normals and the smallest p that they reach."""
    assert fitted.provenance["held_out_normal_slices"] == 16
    assert fitted.provenance["smallest_p"] == pytest.approx(1 / 17)
    assert fitted.provenance["pixel_fpr"] <= 0.003
    assert len(fitted.normal_scores) == 16


def test_a_fit_repeats(tiny: Backbone) -> None:
    """The same shots and seed give the same bundle, to the last bit."""
    rng = np.random.default_rng(0)
    normal, abnormal = [phantom(rng, False)[0] for _ in range(4)], [phantom(rng, True) for _ in range(2)]
    options = Options(epochs=1, folds=2)
    first = _fit(tiny, normal, abnormal, options=options)
    assert _fit(tiny, normal, abnormal, options=options).version == first.version


@pytest.mark.parametrize("recipe", ["reference", "default"])
def test_shots_without_masks_train_the_detection_family(tiny: Backbone, recipe: str) -> None:
    """Without masks the detection family alone is fitted and gives the map."""
    rng = np.random.default_rng(0)
    normal = [phantom(rng, False)[0] for _ in range(3)]
    abnormal = [(phantom(rng, True)[0], None) for _ in range(2)]
    bundle = _fit(
        tiny,
        normal,
        abnormal,
        options=Options(recipe=recipe, epochs=1),
        holdout_normals=normal,
        case_keys=list("abcde"),
    )
    assert bundle.families == ("det",)
    assert _score(tiny, bundle, normal)[0].map.shape == (128, 128)


def test_the_reference_recipe_fits_both_families(tiny: Backbone) -> None:
    """With masks the published recipe fits segmentation and detection, and reports its progress."""
    rng = np.random.default_rng(0)
    seen: list[tuple[str, int, int]] = []
    bundle = _fit(
        tiny,
        [phantom(rng, False)[0] for _ in range(2)],
        [phantom(rng, True)],
        options=Options(recipe="reference", epochs=1),
        holdout_normals=[phantom(rng, False)[0] for _ in range(3)],
        progress=lambda stage, epoch, epochs, loss: seen.append((stage, epoch, epochs)),
    )
    assert (bundle.families, bundle.mix) == (("seg", "det"), "published")
    assert seen == [("fit", 1, 1)]


def test_unusable_shots_are_refused(tiny: Backbone) -> None:
    """Missing shots, mixed masks, too few cases and an unreachable operating point are named."""
    image, mask = phantom(np.random.default_rng(0), True)
    with pytest.raises(ValueError, match="both are needed"):
        _fit(tiny, [image], [])
    with pytest.raises(ValueError, match="for all or for none"):
        _fit(tiny, [image], [(image, mask), (image, None)])
    with pytest.raises(ValueError, match="case keys"):
        _fit(tiny, [image, image], [(image, mask)], case_keys=["a"])
    with pytest.raises(ValueError, match="one normal case"):
        _fit(tiny, [image, image], [(image, mask)], case_keys=["a", "a", "b"])
    with pytest.raises(CalibrationError, match="held-out normals reach p"):
        _fit(tiny, [image, image], [(image, mask)], options=Options(epochs=1, slice_fpr=0.01))
    with pytest.raises(ValueError, match="recipe"):
        Options(recipe="other")  # type: ignore[arg-type]


def test_views_move_image_and_mask_together() -> None:
    """Every view of a mask is the mask of that view, and no default view mirrors the body."""
    image = torch.zeros(1, 1, 64, 64)
    image[0, 0, 20:40, 10:30] = 1
    assert torch.equal(augment(image)[:, 0], augment(image.expand(1, 3, -1, -1))[:, 1])
    assert len(augment(image)) == len(PUBLISHED_VIEWS) == 11
    assert all(m[0][0] * m[1][1] - m[0][1] * m[1][0] > 0 for m in SAFE_VIEWS)


def test_losses_have_their_known_values() -> None:
    """A perfect map costs nothing; the published image term never falls below 0.31, ours does."""
    mask = torch.zeros(1, 8, 8)
    mask[0, 2:4] = 1
    assert dice(mask, mask) == pytest.approx(0, abs=1e-6)
    assert focal(mask, mask) == pytest.approx(0, abs=1e-6)
    one = torch.ones(1)
    assert published_image_term(one, one) == pytest.approx(0.3133, abs=1e-3)
    assert image_term(one, one) == pytest.approx(0, abs=1e-5)
