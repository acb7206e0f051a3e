"""The published protocol runs on the BMAD layout, few-shot and zero-shot, and names what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from phantoms import picture, site
from PIL import Image

from adapters.backbone import Backbone, BackboneSpec, load_backbone
from training.bmad import draw_shots, read_bmad
from training.errors import DataError
from training.protocol_mvfa import evaluate_mvfa
from training.zero_shot import leave_out


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    """A small random backbone."""
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "layers": 4, "width": 48, "head_width": 24, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    return load_backbone(BackboneSpec(model="phantom", config=config), "cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes in the BMAD layout, one with masks."""
    base = tmp_path_factory.mktemp("bmad")
    rng = np.random.default_rng(0)
    for name, masked in (("Brain", True), ("Chest", False)):
        for part in ("valid", "test"):
            for folder in ("good", "Ungood"):
                _write(base / f"{name}_AD" / part / folder, rng, folder == "Ungood", masked)
    return base


def _write(folder: Path, rng: np.random.Generator, lesion: bool, masked: bool) -> None:
    (folder / "img").mkdir(parents=True)
    (folder / "anomaly_mask").mkdir()
    for i in range(5):
        image, mask = picture(rng, lesion, 80)
        Image.fromarray((image * 255).astype(np.uint8)).save(folder / "img" / f"{i}.png")
        if masked and lesion:
            Image.fromarray(mask).save(folder / "anomaly_mask" / f"{i}.png")


def test_few_shot_with_masks_gives_both_figures(root: Path, tiny: Backbone) -> None:
    """K = 2 with masks: image and pixel AUROC of the best and of the last epoch, and the files used."""
    seen: list[int] = []
    result = evaluate_mvfa(
        root, tiny, "Brain", 2, epochs=2, progress=lambda stage, epoch, epochs, loss: seen.append(epoch)
    )
    assert seen == [1, 2]
    assert len(result.chosen) == 4
    assert result.pixel_auroc is not None
    assert result.last_pixel_auroc is not None
    best, last = result.image_auroc + result.pixel_auroc, result.last_image_auroc + result.last_pixel_auroc
    assert best >= last
    assert 0 <= result.last_image_auroc <= 1


def test_few_shot_without_masks_scores_images(root: Path, tiny: Backbone) -> None:
    """A class without masks gets an image figure alone; named shots are used."""
    names = (["0.png", "3.png"], ["1.png", "2.png"])
    result = evaluate_mvfa(root, tiny, "Chest", 2, names=names, epochs=1)
    assert result.pixel_auroc is None
    assert result.chosen == ("0.png", "3.png", "1.png", "2.png")


def test_zero_shot_trains_on_the_other_classes(root: Path, tiny: Backbone) -> None:
    """With no shots the other classes' test images are fitted on and text alone scores."""
    result = evaluate_mvfa(root, tiny, "Brain", 0, epochs=1)
    assert (result.shots, result.chosen, result.best_epoch) == (0, (), 1)
    assert result.pixel_auroc is not None


def test_a_run_repeats(root: Path, tiny: Backbone) -> None:
    """The same seed gives the same figures."""
    first, second = (evaluate_mvfa(root, tiny, "Brain", 1, epochs=1) for _ in range(2))
    assert first == second


def test_masks_stand_with_their_images(root: Path) -> None:
    """Normal images have empty masks, abnormal ones their own, all at the model's size."""
    data = read_bmad(root, "Brain", "test", 64)
    assert data.masks is not None
    assert data.images.shape == (10, 3, 64, 64)
    assert data.masks[:5].sum() == 0
    assert all(mask.any() for mask in data.masks[5:])


def test_what_is_missing_is_named(root: Path, tiny: Backbone, tmp_path: Path) -> None:
    """An unknown class, missing folders, masks or images, and too many shots are told apart."""
    with pytest.raises(DataError, match="'Knee' is none of Brain"):
        evaluate_mvfa(root, tiny, "Knee", 1)
    with pytest.raises(DataError, match="BMAD layout"):
        evaluate_mvfa(root, tiny, "Liver", 1)
    with pytest.raises(DataError, match="fewer than 9 shots"):
        draw_shots(root, "Brain", 9, 0)
    with pytest.raises(DataError, match=r"no image x\.png"):
        read_bmad(root, "Brain", "valid", 64, (["x.png"], []))
    rng = np.random.default_rng(0)
    for part in ("valid", "test"):
        for folder in ("good", "Ungood"):
            _write(tmp_path / "Liver_AD" / part / folder, rng, folder == "Ungood", False)
    with pytest.raises(DataError, match="needs its mask"):
        evaluate_mvfa(tmp_path, tiny, "Liver", 1)
    for part in ("valid", "test"):
        for folder in ("good", "Ungood"):
            _write(tmp_path / "Chest_AD" / part / folder, rng, folder == "Ungood", False)
    (tmp_path / "Liver_AD").rename(tmp_path / "other")
    with pytest.raises(DataError, match="at least one other"):
        evaluate_mvfa(tmp_path, tiny, "Chest", 0)


def test_a_task_is_left_out_and_evaluated(tiny: Backbone) -> None:
    """Adapters fitted on one task score another by text alone; unknown names and lone tasks are refused."""
    bare = site(2, 2, masks=False)
    tasks = {"a": (site(4, 4), "Brain"), "b": (site(3, 3, seed=1), "Liver"), "c": (bare, "Lung")}
    evaluation = leave_out(tasks, "a", tiny, epochs=1)
    assert len(evaluation.records) == 8
    assert evaluation.pixel is not None
    with pytest.raises(DataError, match="'x' is none of a, b, c"):
        leave_out(tasks, "x", tiny)
    with pytest.raises(DataError, match="at least one other task"):
        leave_out({"a": tasks["a"]}, "a", tiny)
