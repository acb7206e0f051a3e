"""Stem tokens in memory and on disk: the same numbers, and a clear word where there is no room."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from phantoms import picture

from adapters.backbone import Backbone, BackboneSpec, load_backbone
from adapters.memory import bank, coreset
from training.cases import Case, Shot, SiteData
from training.errors import DataError
from training.options import Options
from training.plan import check_room, make_plan
from training.pool import Pool, read_pool
from training.room import _left_in_cgroups, free_memory_bytes
from training.shots import Shots
from training.stems import Stems, StemStore, draw

CPU = torch.device("cpu")
ROWS = np.arange(8)


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    """A small random CLIP."""
    return load_backbone(BackboneSpec("tiny"), "cpu")


def pool_of(backbone: Backbone, n: int = 4) -> Pool:
    """n normal and n abnormal pictures of as many patients."""
    rng = np.random.default_rng(0)
    cases = []
    for i in range(2 * n):
        image, mask = picture(rng, i >= n, 64)
        label = "abnormal" if i >= n else "normal"
        shot = Shot(f"s{i}", label, lambda image=image: image, mask > 0 if i >= n else None)  # type: ignore[misc]
        cases.append(Case(f"c{i}", f"p{i}", "CT", "", (shot,)))
    return read_pool(SiteData(tuple(cases), ()), backbone)


def shots_of(backbone: Backbone, pool: Pool, folder: Path, limit: int | None) -> Shots:
    """Shots whose tokens may take so much memory."""
    shots = Shots(backbone, pool.data, pool.labels, "Liver", Options(epochs=2), folder)
    shots.store = StemStore(backbone.device, folder, limit)
    return shots


@pytest.mark.parametrize("limit", [0, 40 * 4, 10**6])
def test_tokens_come_back_from_memory_and_file(tmp_path: Path, limit: int) -> None:
    """Each key gives what was put under it, wherever it lies; the file has no name."""
    store = StemStore(CPU, tmp_path / "new" / "folder", limit)
    tokens = torch.randn(9, 5, 4)
    for i, x in enumerate(tokens):
        store.put((i, -1), x)
    assert store.filed == {0: 9, 160: 7, 10**6: 0}[limit]
    assert torch.equal(store.take((i, -1) for i in (8, 0, 3, 3)), tokens[[8, 0, 3, 3]])
    stems = Stems(store, [(i, -1) for i in range(9)])
    assert len(stems) == 9 and torch.equal(torch.cat(list(stems.split(4))), tokens)
    assert torch.equal(stems[torch.tensor([2, 1])], tokens[[2, 1]]) and torch.equal(stems[5:6], tokens[5:6])
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize("recipe", ["default", "reference"])
def test_a_fit_from_disk_gives_the_same_numbers(tiny: Backbone, tmp_path: Path, recipe: str) -> None:
    """Adapters, memory and scores are bit for bit those of a fit whose tokens all lie in memory."""
    pool = pool_of(tiny)
    found = []
    for limit in (None, 0):
        shots = shots_of(tiny, pool, tmp_path, limit)
        expert = shots.fit(ROWS, "fit", None)
        found.append((expert, shots.terms(expert, ROWS)))
        assert (shots.store.filed > 0) == (limit == 0)
    (one, scores), (other, again) = found
    weights = other.model.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in one.model.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(one.memory, other.memory, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(scores, again, strict=True))


@pytest.mark.parametrize("size", [1, 7, 30, 99])
def test_a_memory_drawn_batch_by_batch_is_the_coreset_of_the_whole(size: int) -> None:
    """The same rows in the same order, without all of them in memory at once."""
    levels = [torch.randn(30, 6), torch.randn(30, 6)]
    batches = [[level[a:b] for level in levels] for a, b in ((0, 4), (4, 4), (4, 21), (21, 30))]
    for level, rows in zip(levels, draw(batches, 30, size, seed=5), strict=True):
        assert torch.equal(rows, coreset(bank(level), size, seed=5, method="random"))


def test_what_has_no_room_is_refused_with_the_shots_that_fit(tiny: Backbone, tmp_path: Path) -> None:
    """The message names what it takes, what there is, and a number of shots that passes the same check."""
    pool = pool_of(tiny, 9)
    shots = shots_of(tiny, pool, tmp_path, 0)
    plan = make_plan(pool, shots.options, None)
    shots.store = _Room(10, tmp_path)
    with pytest.raises(DataError, match="not even for one shot per class"):
        check_room(shots, pool, plan)
    shots.store = _Room(shots.token_bytes(18, 12), tmp_path)
    with pytest.raises(DataError, match=r"take 0.00993 GiB, but .* for 0.00717 GiB: .*\(--shots 2\)"):
        check_room(shots, pool, plan)
    check_room(shots, pool, make_plan(pool, shots.options, 2))
    with pytest.raises(DataError):
        check_room(shots, pool, make_plan(pool, shots.options, 3))


class _Room(StemStore):
    """So much memory, and no disk."""

    disk_bytes = 0  # type: ignore[assignment]

    def __init__(self, room: int, folder: Path) -> None:
        super().__init__(CPU, folder, room)


def test_free_memory_heeds_the_limits_of_control_groups(tmp_path: Path) -> None:
    """The tightest group above the process counts, with the file pages that it could drop."""
    (tmp_path / "self").write_text("0::/outer/inner\n")
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    for folder, limit in ((inner, "max"), (inner.parent, "1000")):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("900\n")
        (folder / "memory.stat").write_text("anon 600\ninactive_file 250\n")
    assert _left_in_cgroups(tmp_path, tmp_path / "self") == [350]
    assert _left_in_cgroups(tmp_path, tmp_path / "absent") == []
    assert 2**20 < free_memory_bytes(CPU) < 2**50
