"""The letterbox: where a source pixel goes, and that it comes back to the same place."""

from __future__ import annotations

import numpy as np
import pytest

from adapters.letterbox import Letterbox

GRIDS = [(128, 128), (300, 140), (97, 251), (512, 512), (61, 73), (40, 40)]


def _points(rows: int, columns: int) -> list[tuple[float, float]]:
    rng = np.random.default_rng(1)
    return [(rng.uniform(0.25, 0.75) * rows, rng.uniform(0.25, 0.75) * columns) for _ in range(60)]


@pytest.mark.parametrize(("rows", "columns"), GRIDS)
def test_a_point_lesion_comes_back_where_it_was(rows: int, columns: int) -> None:
    """Over many places a small lesion's centroid has no bias beyond a twentieth of a patch."""
    box = Letterbox(rows, columns, 128, 8)
    y, x = np.mgrid[:rows, :columns]
    patch = 8 * max(rows, columns) / 128
    errors = []
    for cy, cx in _points(rows, columns):
        blob = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * (0.3 * patch) ** 2)).astype(np.float32)
        square = box.forward(blob).numpy()
        patches = square.reshape(16, 8, 16, 8).mean(axis=(1, 3))
        found = box.backward(patches)
        found /= found.sum()
        errors.append(((found * y).sum() - cy, (found * x).sum() - cx))
    assert np.abs(np.mean(errors, axis=0)).max() < 0.05 * patch
    assert np.abs(errors).max() < 0.5 * patch


@pytest.mark.parametrize(("rows", "columns"), GRIDS)
@pytest.mark.parametrize(("size", "patch"), [(128, 8), (240, 14)])
def test_patch_coordinates_come_back_exactly(rows: int, columns: int, size: int, patch: int) -> None:
    """A map that holds each patch's own source coordinate gives every inner pixel its own coordinate."""
    box = Letterbox(rows, columns, size, patch)
    centre_y, centre_x = box.patch_centres()
    valid_y, valid_x = np.flatnonzero(box.valid().any(1)), np.flatnonzero(box.valid().any(0))
    grid = box.grid
    found_y = box.backward(np.repeat(centre_y[:, None], grid, 1).astype(np.float32))[:, 0]
    found_x = box.backward(np.repeat(centre_x[None], grid, 0).astype(np.float32))[0]
    y, x = np.arange(rows), np.arange(columns)
    inner_y = (y >= centre_y[valid_y[0]]) & (y <= centre_y[valid_y[-1]])
    inner_x = (x >= centre_x[valid_x[0]]) & (x <= centre_x[valid_x[-1]])
    assert np.allclose(found_y[inner_y], y[inner_y], atol=1e-3)
    assert np.allclose(found_x[inner_x], x[inner_x], atol=1e-3)


def test_the_aspect_is_kept() -> None:
    """A tall image keeps its shape between black bars."""
    top, left, height, width = Letterbox(200, 100, 128, 8).content
    assert (top, left, height, width) == (0, 32, 128, 64)


def test_patches_in_the_padding_never_reach_the_source() -> None:
    """Values outside the image do not bleed into its border."""
    box = Letterbox(200, 100, 128, 8)
    patches = np.where(box.valid(), 0.0, 1.0).astype(np.float32)
    assert box.backward(patches).max() == 0.0


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (3, 200)])
def test_an_extreme_grid_still_has_a_patch(shape: tuple[int, int]) -> None:
    """An image thinner than one patch maps to the patch that holds it."""
    box = Letterbox(*shape, 128, 8)
    assert box.valid().any()
    assert box.backward(np.ones((16, 16), np.float32)).shape == shape


def test_a_wrong_grid_is_refused() -> None:
    """An image or a map of another shape is refused with both shapes."""
    box = Letterbox(20, 30, 128, 8)
    with pytest.raises(ValueError, match=r"\(5, 5\)"):
        box.forward(np.zeros((5, 5), np.float32))
    with pytest.raises(ValueError, match=r"\(5, 5\)"):
        box.backward(np.zeros((5, 5), np.float32))
    with pytest.raises(ValueError, match="empty"):
        Letterbox(0, 3, 128, 8)
    with pytest.raises(ValueError, match="does not fit"):
        Letterbox(3, 3, 8, 16)
