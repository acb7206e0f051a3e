"""The slow scoring of the benchmarks computes the published numbers, and the fast one the same."""

from __future__ import annotations

import pytest
import torch
from test_vectors import CASES, ROOT, World

from adapters import reference as ref
from adapters.model import MVFA
from benchmarks.published_scoring import PublishedScoring
from training.augment import augment

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not ROOT.is_dir(), reason=f"MVFA_VECTORS: no numeric vectors at {ROOT.name}/"),
]


@pytest.fixture(scope="module", params=CASES)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """One case of the vectors."""
    return World(request.param, tmp_path_factory.mktemp(request.param))


def _published(world: World) -> PublishedScoring:
    return PublishedScoring(world.model, world.text("Brain"))


def test_tokens_equal_the_published_ones(world: World) -> None:
    """Level tokens of both families and the embedding are within 2e-5."""
    slow = [_published(world).tokens(image[None]) for image in world.images[:2]]
    for family in ("seg", "det"):
        stored = world.vectors[f"fwd.{family}_tokens"]
        ours = torch.stack([torch.stack(getattr(tokens, family)) for tokens in slow])[: len(stored)]
        assert (ours - stored[: len(ours)]).abs().max() <= 2e-5
    stored = world.vectors["fwd.pooled"]
    assert (torch.cat([tokens.pooled for tokens in slow])[: len(stored)] - stored[:2]).abs().max() <= 2e-5


def test_maps_and_scores_equal_the_published_ones(world: World) -> None:
    """Both maps and both scores of every test image are within the vectors' tolerances."""
    slow = _published(world)
    banks = {f: ref.build_banks(world.model, augment(world.normals), f) for f in ("seg", "det")}  # type: ignore[arg-type]
    for i, image in enumerate(world.images):
        tokens = slow.tokens(image[None])
        few = slow.few_map(tokens.seg, banks["seg"], world.size)
        zero = slow.zero_map(tokens.seg, world.size)
        assert (few - world.vectors["fewtest.seg.few_map"][i]).abs().max() <= 1e-5
        assert (zero - world.vectors["fewtest.seg.zero_map"][i]).abs().max() <= 1e-3
        few_det = slow.few_map(tokens.det, banks["det"], world.size).mean()
        assert abs(float(few_det - world.vectors["fewtest.det.few_score"][i])) <= 5e-6
        assert abs(slow.zero_score(tokens.det) - float(world.vectors["zerotest.image_score_raw"][i])) <= 2e-4


def test_only_the_published_model_is_scored_as_published(world: World) -> None:
    """A model of one family is refused: it would be faster than what was published."""
    with pytest.raises(ValueError, match="both families"):
        PublishedScoring(MVFA(world.model.backbone, world.model.levels, ("seg",)), world.text("Brain"))
