"""Backbone, adapters, memory and calibration."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from adapters.backbone import Backbone, BackboneSpec, load_backbone
from adapters.calibration import Scale, fit_scale, operating_point, p_value, smallest_p
from adapters.errors import BackboneError, CalibrationError
from adapters.memory import bank, coreset, distance
from adapters.model import MVFA, default_levels, text_features
from adapters.prompts import prompts
from adapters.weights import convert_checkpoint
from daemon.models import backbone_spec
from daemon.sections import ModelSettings


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    """The built-in random backbone."""
    return load_backbone(BackboneSpec(), "cpu")


def test_importing_adapters_does_not_import_torch() -> None:
    """The package can be imported where only its errors and types are needed."""
    code = "import sys, adapters.errors, adapters.slices, adapters.score; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_random_weights_are_the_same_everywhere(tiny: Backbone) -> None:
    """A seed gives the same weights on every machine: a bundle fitted on one loads on another."""
    assert tiny.sha256 == load_backbone(BackboneSpec(), "cpu").sha256
    assert tiny.sha256 != load_backbone(BackboneSpec(seed=1), "cpu").sha256


def test_a_named_model_can_be_seeded() -> None:
    """Any open_clip vision transformer can be built without a weight file, at another input size."""
    backbone = load_backbone(BackboneSpec("ViT-S-32-alt", image_size_px=96), "cpu")
    assert (backbone.grid, backbone.image_size_px) == (3, 96)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (BackboneSpec("no-such-model"), "unknown"),
        (BackboneSpec("RN50"), "vision transformer"),
        (BackboneSpec("ViT-B-16-SigLIP"), "vision transformer"),
        (BackboneSpec("tiny", "absent.safetensors"), "set model.weights to its path"),
        (BackboneSpec("ViT-L-14-336", "openai"), "another machine"),
        (BackboneSpec("ViT-L-14-336", "no-tag"), "neither a file nor a tag"),
    ],
)
def test_a_missing_or_unfit_model_is_named(spec: BackboneSpec, message: str) -> None:
    """An error says what is wrong with the model or its weights and how to get them."""
    with pytest.raises(BackboneError, match=message):
        load_backbone(spec, "cpu")


def test_weight_files_are_checked(tiny: Backbone, tmp_path: Path) -> None:
    """A file loads as the same weights; a wrong hash, a damaged file and another model are refused."""
    path = tmp_path / "w.safetensors"
    save_file({k: v.contiguous().clone() for k, v in tiny.clip.state_dict().items()}, path)
    assert load_backbone(BackboneSpec(weights=str(path)), "cpu").sha256 == tiny.sha256
    with pytest.raises(BackboneError, match="SHA-256"):
        load_backbone(BackboneSpec(weights=str(path), sha256="0" * 64), "cpu")
    with pytest.raises(BackboneError, match="not those of model"):
        load_backbone(BackboneSpec("ViT-S-32-alt", str(path)), "cpu")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BackboneError, match="cannot be read"):
        load_backbone(BackboneSpec(weights=str(path)), "cpu")


def test_checkpoints_convert_to_the_same_weights(tiny: Backbone, tmp_path: Path) -> None:
    """A .pt state dict becomes safetensors with the same hash of weights."""
    source, target = tmp_path / "w.pt", tmp_path / "w.safetensors"
    torch.save({"state_dict": {f"module.{k}": v for k, v in tiny.clip.state_dict().items()}}, source)
    convert_checkpoint(source, target)
    assert load_backbone(BackboneSpec(weights=str(target)), "cpu").sha256 == tiny.sha256
    assert load_backbone(BackboneSpec(weights=str(source)), "cpu").sha256 == tiny.sha256
    source.write_bytes(b"nothing")
    with pytest.raises(BackboneError, match="neither a state dict"):
        convert_checkpoint(source, target)


def test_a_torchscript_archive_converts_to_the_same_weights(tiny: Backbone, tmp_path: Path) -> None:
    """An archive as OpenAI publishes its models becomes safetensors with the same hash of weights."""
    source, target = tmp_path / "archive.pt", tmp_path / "w.safetensors"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, yet the form of the published files
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(tiny.clip), source)
    convert_checkpoint(source, target)
    assert load_backbone(BackboneSpec(weights=str(target)), "cpu").sha256 == tiny.sha256


def test_default_levels_are_the_quarter_depths() -> None:
    """Twenty-four blocks give the published places; a shallow model adapts its last block."""
    assert default_levels(24) == (6, 12, 18, 24)
    assert default_levels(12) == (3, 6, 9, 12)
    assert default_levels(2) == (2,)


def test_an_absent_family_adds_nothing(tiny: Backbone) -> None:
    """With zero adapters the renormalised mix leaves the backbone's own stream, scaled to sum to one."""
    model = MVFA(tiny, (1, 2), ("det",), "renormalised")
    x = torch.rand(1, 5, tiny.width)
    assert torch.allclose(model._mix(x, [x]), x)
    assert torch.allclose(MVFA(tiny, (1, 2))._mix(x, [x, x]), x)


@pytest.mark.parametrize("levels", [(), (0, 1), (2, 1), (1, 99)])
def test_impossible_levels_are_refused(tiny: Backbone, levels: tuple[int, ...]) -> None:
    """Levels must increase within the backbone's blocks."""
    with pytest.raises(ValueError, match="must increase"):
        MVFA(tiny, levels)


def test_text_features_are_unit_columns(tiny: Backbone) -> None:
    """Any class name gives two unit columns."""
    text = text_features(tiny, "Knee")
    assert text.shape == (tiny.embed_dim, 2)
    assert torch.allclose(text.norm(dim=0), torch.ones(2), atol=1e-5)
    with pytest.raises(ValueError, match="empty"):
        prompts(" ")


def test_the_coreset_covers_better_than_chance() -> None:
    """The greedy coreset leaves a smaller largest distance than a random draw of the same size."""
    rows = bank(torch.randn(600, 8, generator=torch.Generator().manual_seed(0)))
    greedy, chance = coreset(rows, 40, seed=0), coreset(rows, 40, seed=0, method="random")
    assert distance(rows, greedy).max() < distance(rows, chance).max()
    assert coreset(rows, 1000, seed=0).shape == rows.shape
    assert distance(rows, rows).max() < 1e-5
    with pytest.raises(ValueError, match="method"):
        coreset(rows, 4, seed=0, method="best")


def test_p_values_keep_the_promised_rate() -> None:
    """On exchangeable normals the rate of p <= alpha is at most alpha, on average over calibrations."""
    rng = np.random.default_rng(0)
    hits = [p_value(rng.normal(), rng.normal(size=19)) <= 0.1 for _ in range(4000)]
    assert np.mean(hits) < 0.115
    assert p_value(1.0, []) == 1.0
    assert smallest_p(19) == pytest.approx(0.05)


def test_an_operating_point_agrees_with_its_p_value() -> None:
    """Above the operating point p <= alpha, at or below it p > alpha; what n cannot support is refused."""
    normals = np.arange(19.0)
    cut = operating_point(normals, 0.1)
    assert p_value(cut + 0.01, normals) <= 0.1 < p_value(cut, normals)
    with pytest.raises(CalibrationError, match="add normals up to 99"):
        operating_point(normals, 0.01)
    with pytest.raises(CalibrationError, match="between 0 and 1"):
        operating_point(normals, 1.5)


def test_a_scale_is_monotone_and_bounded() -> None:
    """The calibrated score rises with the raw score within [0, 1] and is 0.5 at the normals' upper end."""
    scale = fit_scale(np.linspace(0, 1, 101), 0.99)
    values = scale(np.linspace(-5, 5, 1000))
    assert (np.diff(values) >= 0).all()
    assert values.min() >= 0
    assert values.max() <= 1
    assert float(scale(0.99)) == pytest.approx(0.5)
    with pytest.raises(CalibrationError, match="not usable"):
        Scale(0.0, 0.0)
    with pytest.raises(CalibrationError, match="held-out normals"):
        fit_scale([], 0.9)


def test_a_tag_that_is_in_the_cache_needs_no_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of an earlier download is read, and checked; without it the error says what to do."""
    monkeypatch.setenv("HOME", str(tmp_path))
    spec = BackboneSpec(model="ViT-B-32-quickgelu", weights="openai", quick_gelu=True)
    with pytest.raises(BackboneError, match=r"not in open_clip's cache.*model\.allow_download"):
        load_backbone(spec, "cpu", "fp32")
    folder = tmp_path / ".cache" / "clip"
    folder.mkdir(parents=True)
    (folder / "ViT-B-32.pt").write_bytes(b"half of it")
    with pytest.raises(BackboneError, match=r"ViT-B-32\.pt"):
        load_backbone(spec, "cpu", "fp32")


def test_the_name_of_a_backbone_says_its_activation() -> None:
    """``-quickgelu`` of open_clip's names is kept, and the settings' input size reaches the backbone."""
    section = ModelSettings(backbone="ViT-L-14-336-quickgelu", image_size_px=240)
    assert (backbone_spec(section).quick_gelu, backbone_spec(section).image_size_px) == (True, 240)
    assert not backbone_spec(ModelSettings(backbone="ViT-L-14-336")).quick_gelu
