"""Speed without another answer: half precision, batches that fit, black slices, work on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from open_clip.transformer import ResidualAttentionBlock

from adapters import device
from adapters.backbone import BackboneSpec, load_backbone
from adapters.blocks import half_blocks
from adapters.bundle import AdapterBundle
from adapters.device import (
    ToHost,
    automatic_batch_size,
    automatic_decoders,
    resolve_precision,
    slice_bytes,
)
from adapters.errors import BackboneError
from adapters.letterbox import Letterbox, to_square
from adapters.memory import distance
from adapters.model import MVFA, default_levels
from adapters.scorer import Scorer, from_patches, overlapped
from adapters.slices import Slice

CPU = torch.device("cpu")
# ViT-L-14-336 at 240 px.
LARGE = SimpleNamespace(width=1024, embed_dim=768, grid=17, image_size_px=240)


def _slices(count: int, shape: tuple[int, int] = (100, 90)) -> list[Slice]:
    rng = np.random.default_rng(0)
    return [Slice("1.2", f"1.{i}", 1, rng.random(shape, dtype=np.float32)) for i in range(count)]


def test_half_precision_changes_scores_within_its_tolerance(phantom_bundle: AdapterBundle) -> None:
    """On noise bf16 moves a slice score by 0.02 at most and a map by 0.01 on average."""
    scores = {}
    for precision in ("fp32", "bf16"):
        backbone = load_backbone(BackboneSpec(), "cpu", precision)
        scores[precision] = list(Scorer(backbone, phantom_bundle, batch_size=4).score(_slices(6)))
    for exact, half in zip(scores["fp32"], scores["bf16"], strict=True):
        assert exact.patches is not None
        assert half.patches is not None
        assert half.score == pytest.approx(exact.score, abs=0.02)
        assert 0 < np.abs(half.patches - exact.patches).mean() < 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_converted_block_computes_what_the_block_does(dtype: torch.dtype) -> None:
    """In fp32 a converted block differs from open_clip's by rounding alone, in bf16 by up to 1 %."""
    torch.manual_seed(0)
    block = ResidualAttentionBlock(64, 4, ls_init_value=0.5).eval().requires_grad_(False)
    x = torch.randn(2, 10, 64)
    expected = block(x)
    converted = half_blocks(torch.nn.ModuleList([block]), dtype)
    assert converted is not None
    difference = (converted[0](x) - expected).abs().max() / expected.abs().max()
    assert difference < (1e-6 if dtype == torch.float32 else 1e-2)


def test_blocks_of_another_kind_are_left_alone() -> None:
    """A block without torch's attention is not converted; the backbone then casts as it goes."""
    assert half_blocks(torch.nn.ModuleList([torch.nn.Linear(3, 3)]), torch.bfloat16) is None


def test_a_conversion_is_not_taken_back() -> None:
    """Weights that were rounded cannot serve as fp32 again: the backbone must be loaded anew."""
    backbone = load_backbone(BackboneSpec(), "cpu", "bf16")
    backbone.use_precision("bf16")
    with pytest.raises(BackboneError, match="load it again"):
        backbone.use_precision("fp32")


def test_a_wide_backbone_uses_what_the_cpu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """``auto`` is bf16 only where the CPU multiplies it and the backbone is wide enough to gain."""
    for has in (True, False):
        monkeypatch.setattr(device, "multiplies_bf16", lambda has=has: has)
        assert resolve_precision("auto", CPU, 1024) == ("bf16" if has else "fp32")
        assert resolve_precision("auto", CPU, 96) == "fp32"
    with pytest.raises(BackboneError, match="unknown"):
        resolve_precision("int4", CPU)


def test_the_last_level_needs_no_way_back() -> None:
    """Level tokens are the same whether or not the blocks behind the last level are run."""
    backbone = load_backbone(BackboneSpec(), "cpu")
    net = MVFA(backbone, default_levels(backbone.blocks)).eval()
    images = torch.rand(2, 3, backbone.image_size_px, backbone.image_size_px)
    with torch.no_grad():
        short, long = net(images), net(images, pooled=True)
    for family in ("seg", "det"):
        pairs = zip(short.of(family), long.of(family), strict=True)  # type: ignore[arg-type]
        assert all(torch.equal(a, b) for a, b in pairs)


def test_black_slices_are_scored_once(phantom_bundle: AdapterBundle) -> None:
    """A black slice gets the score that the model gives it, without running the model again."""
    scorer = Scorer(load_backbone(BackboneSpec(), "cpu", "fp32"), phantom_bundle, batch_size=4)
    seen: list[int] = []
    scorer._model.register_forward_pre_hook(lambda _net, given: seen.append(len(given[0])))
    filled = _slices(3)
    black = [Slice("1.2", f"2.{i}", 1, np.zeros((40 + i, 60), np.float32)) for i in range(5)]
    scores = list(scorer.score([black[0], *filled, *black[1:]]))
    assert sum(seen) == 4
    assert [s.sop_instance_uid for s in scores] == ["2.0", "1.0", "1.1", "1.2", "2.1", "2.2", "2.3", "2.4"]
    faint = replace(black[1], pixels=np.full((41, 60), 1e-30, np.float32))
    modelled = next(scorer.score([faint]))
    assert scores[4].score == pytest.approx(modelled.score, abs=1e-5)
    assert scores[4].map == pytest.approx(modelled.map, abs=1e-5)


def test_work_is_launched_ahead_and_given_in_order() -> None:
    """With one ahead the second item is launched before the first is waited for; without, after."""
    for ahead, expected in ((1, "l0 l1 f0 l2 f1 f2"), (0, "l0 f0 l1 f1 l2 f2")):
        log: list[str] = []

        def finish(item: int, launched: int, log: list[str] = log) -> Iterator[int]:
            log.append(f"f{item}")
            yield launched

        def launch(item: int, log: list[str] = log) -> int:
            log.append(f"l{item}")
            return item * 10

        assert list(overlapped(range(3), launch, finish, ahead)) == [0, 10, 20]
        assert " ".join(log) == expected


@pytest.mark.parametrize("shape", [(240, 240), (300, 140), (64, 200), (1, 7)])
def test_a_batch_takes_the_way_of_each_slice(shape: tuple[int, int]) -> None:
    """Placed and spread in one step on the device, slices and maps are those of one at a time."""
    box = Letterbox(*shape, 240, 14)
    pixels = [item.pixels for item in _slices(3, shape)]
    together = to_square(pixels, 240, 14, CPU)
    assert torch.equal(together, torch.stack([box.forward(p) for p in pixels]))
    maps = torch.rand(2, 17, 17, generator=torch.Generator().manual_seed(0))
    alone = np.stack([box.backward(m.numpy()) for m in maps])
    assert np.array_equal(box.spread(maps).numpy(), alone)


def test_a_map_is_drawn_where_the_model_is(
    phantom_bundle: AdapterBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a GPU a map is drawn there, and is the map that a CPU draws, to the bit."""
    spread, box = Letterbox.spread, Letterbox(300, 140, phantom_bundle.image_size_px, phantom_bundle.patch_px)
    drawn: list[torch.Tensor] = []

    def counted(self: Letterbox, patches: torch.Tensor) -> torch.Tensor:
        # "meta" stands for a GPU here: a device that numpy cannot read.
        assert patches.device.type == "meta"
        drawn.append(patches)
        return spread(self, torch.from_numpy(fused)[None])

    fused = np.random.default_rng(0).random((box.grid, box.grid), dtype=np.float32)
    monkeypatch.setattr(Letterbox, "spread", counted)
    given = (phantom_bundle, "1.2", 1, (300, 140), fused)
    on_cpu = from_patches(*given, CPU)
    elsewhere = from_patches(*given, torch.device("meta"))
    assert elsewhere.score == on_cpu.score
    assert np.array_equal(on_cpu.map, box.backward(fused)) and not drawn
    assert np.array_equal(elsewhere.map, on_cpu.map) and len(drawn) == 1


def test_a_gpu_is_read_for_by_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU model has its cores to itself; beside a GPU up to eight slices are read at once."""
    for cores, expected in ((2, 2), (4, 3), (16, 8)):
        monkeypatch.setattr(device.os, "sched_getaffinity", lambda _pid, n=cores: set(range(n)))
        assert automatic_decoders(CPU) == 1
        assert automatic_decoders(torch.device("cuda")) == expected


def test_distances_are_made_in_parts() -> None:
    """A bank too large for one product gives the distances of one product."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(9000, 8, generator=generator), dim=-1)
    tokens = torch.randn(3, 70, 8, generator=generator)
    whole = 1 - (torch.nn.functional.normalize(tokens, dim=-1) @ rows.T).amax(dim=-1)
    assert torch.allclose(distance(tokens, rows), whole, atol=1e-6)


def test_what_is_on_its_way_arrives() -> None:
    """Waiting gives the values, on a CPU at once."""
    made = torch.arange(3.0)
    assert ToHost([made, made * 2]).wait()[1].tolist() == [0.0, 2.0, 4.0]


def test_mixed_grids_keep_their_order() -> None:
    """Slices of several grids come out in the order in which they went in."""
    pixels = [item.pixels for shape in ((20, 30), (50, 40), (20, 30)) for item in _slices(1, shape)]
    squares = to_square(pixels, 48, 8, CPU)
    each = [Letterbox(*p.shape, 48, 8).forward(p) for p in pixels]
    assert torch.equal(squares, torch.stack(each))


def test_a_batch_fits_the_smallest_card() -> None:
    """A 6 GB card with the published backbone takes full batches, with the full bank still many slices."""
    free = 6_000_000_000 - 2_400_000_000  # weights, and what the driver keeps
    card = torch.device("cuda")
    small = slice_bytes(LARGE, "bf16", 8, 1276)
    full = slice_bytes(LARGE, "bf16", 8, 12_760)
    assert automatic_batch_size(small, card, free) >= 64
    assert automatic_batch_size(full, card, free) >= 32
    assert automatic_batch_size(full, card, free) * full < free
    assert automatic_batch_size(small, card, 10_000_000) == 1
    assert automatic_batch_size(small, card, 10**12) == 256
    assert automatic_batch_size(small, CPU, free) == 8


def test_a_batch_is_chosen_where_none_is_given(phantom_bundle: AdapterBundle) -> None:
    """``batch_size=0`` chooses one; a negative one is refused."""
    backbone = load_backbone(BackboneSpec(), "cpu", "fp32")
    scorer = Scorer(backbone, phantom_bundle, batch_size=0)
    assert scorer.batch_size in (1, 2, 4, 8)
    assert len(list(scorer.score(_slices(3)))) == 3
    with pytest.raises(ValueError, match="at least 1, or 0"):
        Scorer(backbone, phantom_bundle, batch_size=-1)
