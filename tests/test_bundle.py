"""Bundles: what is saved is what is loaded, and everything else is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from adapters import registry
from adapters.backbone import Backbone, BackboneSpec, load_backbone
from adapters.bundle import AdapterBundle, load_bundle
from adapters.calibration import Scale
from adapters.errors import BundleError
from adapters.model import MVFA, text_features
from adapters.scorer import Scorer
from adapters.slices import Normalisation, Slice


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    """The built-in random backbone."""
    return load_backbone(BackboneSpec(), "cpu")


@pytest.fixture(scope="module")
def bundle(tiny: Backbone) -> AdapterBundle:
    """An unfitted bundle with real shapes."""
    torch.manual_seed(0)
    model = MVFA(tiny, (1, 2), ("seg",), "renormalised")
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20, tiny.embed_dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return AdapterBundle(
        name="brain",
        backbone=tiny.spec.as_dict(),
        backbone_sha256=tiny.sha256,
        image_size_px=tiny.image_size_px,
        patch_px=tiny.patch_px,
        levels=(1, 2),
        families=("seg",),
        mix="renormalised",
        class_name="Brain",
        text=text_features(tiny, "Brain").numpy(),
        normalisation=Normalisation("window", -100.0, 200.0, 128),
        weights={k: v.numpy() for k, v in model.state_dict().items()},
        memory=(rows, rows),
        distance_scale=Scale(0.5, 0.1),
        slice_scale=Scale(0.5, 0.1),
        normal_scores=np.linspace(0.1, 0.5, 19, dtype=np.float32),
        normal_map_quantiles=np.linspace(0, 1, 101, dtype=np.float32),
        threshold=0.5,
        slice_threshold=0.5,
        provenance={"normal_slices": 20, "dice": None},
    )


def test_a_saved_bundle_comes_back_the_same(bundle: AdapterBundle, tmp_path: Path) -> None:
    """Header, arrays and version survive a round trip through the file."""
    loaded = load_bundle(bundle.save(tmp_path / "b.safetensors"))
    assert loaded.version == bundle.version
    assert len(loaded.version) == 12
    assert loaded.normalisation == bundle.normalisation
    assert all(np.array_equal(loaded.weights[k], v) for k, v in bundle.weights.items())
    assert np.array_equal(loaded.memory[1], bundle.memory[1])


def test_the_version_follows_the_content(bundle: AdapterBundle) -> None:
    """Another threshold, and another weight, are another version."""
    assert replace(bundle, threshold=0.6).version != bundle.version
    key = next(iter(bundle.weights))
    other = dict(bundle.weights) | {key: bundle.weights[key] + 1}
    assert replace(bundle, weights=other).version != bundle.version


def test_a_changed_file_is_refused(bundle: AdapterBundle, tmp_path: Path) -> None:
    """A file whose arrays do not match its hash, and a file cut short, are refused by name."""
    path = bundle.save(tmp_path / "b.safetensors")
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    tensors["text"] = tensors["text"] + 1
    save_file(tensors, path, metadata)
    with pytest.raises(BundleError, match=r"b\.safetensors is damaged"):
        load_bundle(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(BundleError, match="cannot be read"):
        load_bundle(path)


@pytest.mark.parametrize(
    ("metadata", "message"), [({}, "no adapter bundle"), ({"bundle": "{}", "format": "9"}, "format '9'")]
)
def test_another_file_is_refused(tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    """A safetensors file that is no bundle, or of another format, is refused."""
    path = tmp_path / "x.safetensors"
    save_file({"a": np.zeros(1, np.float32)}, path, metadata)
    with pytest.raises(BundleError, match=message):
        load_bundle(path)


def test_another_backbone_is_refused(bundle: AdapterBundle) -> None:
    """A bundle does not run on other weights or another input size; the message names the bundle."""
    with pytest.raises(BundleError, match="bundle brain was fitted on backbone 'tiny'"):
        Scorer(load_backbone(BackboneSpec(seed=9), "cpu"), bundle, "cpu")
    same = load_backbone(BackboneSpec(), "cpu")
    with pytest.raises(BundleError, match="fitted at 64 px"):
        Scorer(same, replace(bundle, image_size_px=64), "cpu")


@pytest.mark.parametrize("name", ["", "a/b", "../x"])
def test_an_unsafe_name_is_refused(bundle: AdapterBundle, name: str) -> None:
    """A name becomes a file name: separators are refused."""
    with pytest.raises(BundleError, match="name"):
        replace(bundle, name=name)


def _slice(number: int, pixels: np.ndarray) -> Slice:
    return Slice("1.2", f"1.{number}", 1, pixels.astype(np.float32))


def test_scores_stay_in_range_on_every_grid(tiny: Backbone, bundle: AdapterBundle) -> None:
    """Blank, tiny, tall and wide slices are scored on their own grid, in [0, 1], in order."""
    rng = np.random.default_rng(0)
    shapes = [(128, 128), (300, 140), (64, 200), (1, 1)]
    slices = [_slice(i, rng.random(s)) for i, s in enumerate(shapes)]
    slices += [_slice(9, np.zeros((50, 60))), _slice(10, np.ones((50, 60)))]
    scores = list(Scorer(tiny, bundle, "cpu", batch_size=4).score(slices))
    assert [s.sop_instance_uid for s in scores] == [s.sop_instance_uid for s in slices]
    for score, item in zip(scores, slices, strict=True):
        assert score.map.shape == item.pixels.shape
        assert score.map.dtype == np.float32
        assert 0 <= score.map.min() <= score.map.max() <= 1
        assert 0 <= score.score <= 1


def test_scoring_streams(tiny: Backbone, bundle: AdapterBundle) -> None:
    """No more than one batch is taken from the source before its scores are given."""
    taken = 0

    def source() -> Iterator[Slice]:
        nonlocal taken
        for i in range(10):
            taken += 1
            yield _slice(i, np.zeros((20, 20)))

    scores = Scorer(tiny, bundle, "cpu", batch_size=2).score(source())
    next(scores)
    assert taken == 2


def test_a_score_does_not_depend_on_its_batch(tiny: Backbone, bundle: AdapterBundle) -> None:
    """A slice scores the same alone and among others: nothing of the set is used."""
    rng = np.random.default_rng(1)
    slices = [_slice(i, rng.random((100, 90))) for i in range(5)]
    scorer = Scorer(tiny, bundle, "cpu", batch_size=5)
    together = [s.score for s in scorer.score(slices)]
    alone = [next(scorer.score([s])).score for s in slices]
    assert together == pytest.approx(alone, abs=1e-5)
    assert scorer.p_value(1.0) == pytest.approx(0.05)


def test_promotion_and_roll_back(bundle: AdapterBundle, tmp_path: Path) -> None:
    """The promoted version serves its name; rolling back brings the one before."""
    second = replace(bundle, threshold=0.7)
    registry.store(tmp_path, bundle)
    assert registry.select(tmp_path, "brain").version == bundle.version
    registry.store(tmp_path, second)
    with pytest.raises(BundleError, match="promote one"):
        registry.select(tmp_path, "brain")
    registry.promote(tmp_path, "brain", bundle.version)
    registry.promote(tmp_path, "brain", second.version)
    assert registry.select(tmp_path, "brain").version == second.version
    assert registry.roll_back(tmp_path, "brain") == bundle.version
    assert [e.promoted for e in registry.entries(tmp_path) if e.version == bundle.version] == [True]
    with pytest.raises(BundleError, match="no earlier version"):
        registry.roll_back(tmp_path, "brain")
    with pytest.raises(BundleError, match="no bundle named"):
        registry.select(tmp_path, "liver")
    with pytest.raises(BundleError, match="of version"):
        registry.promote(tmp_path, "brain", "0")


def test_a_damaged_file_stops_no_other_bundle(bundle: AdapterBundle, tmp_path: Path) -> None:
    """A file that was copied in part is listed as damaged; the bundle in use goes on serving."""
    path = registry.store(tmp_path, bundle)
    registry.promote(tmp_path, "brain", bundle.version)
    (tmp_path / "half.safetensors").write_bytes(path.read_bytes()[:1000])
    assert registry.current(tmp_path) == {"brain": bundle.version}
    assert registry.select(tmp_path, "brain").version == bundle.version
    (item,) = registry.damaged(tmp_path)
    assert item.path.name == "half.safetensors"
    assert "half.safetensors" in item.reason


def test_nothing_serves_in_place_of_a_damaged_bundle(bundle: AdapterBundle, tmp_path: Path) -> None:
    """When the promoted file itself is damaged that is said by name, and no other version steps in."""
    registry.store(tmp_path, replace(bundle, threshold=0.7))
    path = registry.store(tmp_path, bundle)
    registry.promote(tmp_path, "brain", bundle.version)
    path.write_bytes(path.read_bytes()[:1000])
    for look in (registry.current, lambda folder: registry.select(folder, "brain")):
        with pytest.raises(BundleError, match=f"brain {bundle.version} is in use: import it again"):
            look(tmp_path)


def test_a_version_in_use_cannot_be_removed(bundle: AdapterBundle, tmp_path: Path) -> None:
    """Only a version that serves nothing is deleted; what serves is named by `current`."""
    second = replace(bundle, threshold=0.7)
    for item in (bundle, second):
        registry.store(tmp_path, item)
    registry.promote(tmp_path, "brain", second.version)
    assert registry.current(tmp_path) == {"brain": second.version}
    with pytest.raises(BundleError, match="in use"):
        registry.remove(tmp_path, second.version)
    registry.remove(tmp_path, bundle.version[:6])
    assert [entry.version for entry in registry.entries(tmp_path)] == [second.version]
    with pytest.raises(BundleError, match="0 bundles"):
        registry.find(tmp_path, bundle.version)
