"""Regions of high score, their measurements and their outlines."""

import resource

import numpy as np
import pytest
from analyses import make_group
from factories import ct_series, dx, mr_series, us_cine

from daemon.findings import _diameter_mm, find
from daemon.outline import outline, outlines


@pytest.fixture
def volume(tmp_path):
    """A CT of 6 slices 2 mm apart with pixels of 1 mm × 0.5 mm."""
    return make_group(ct_series(6, 24, 32, spacing=(2.0, 1.0, 0.5)), tmp_path)


def maps_of(group):
    """Return empty score maps of a group."""
    return np.zeros((len(group.frames), group.rows, group.columns), dtype=np.float32)


def found(maps, group, **changes):
    """Find with settings that hide nothing, unless changed."""
    settings = {"threshold": 0.5, "minimum_voxels": 1, "minimum_volume_mm3": 0.0, **changes}
    return find(maps, group, uid_for=lambda number: f"2.25.{number}", **settings)


def test_measurements_have_true_units(volume):
    """Volume, area and diameter follow from the spacing of slices, rows and columns."""
    maps = maps_of(volume)
    maps[1:4, 5:9, 10:16] = 0.8
    maps[2, 6, 11] = 0.9
    (finding,) = found(maps, volume)
    assert finding.voxels == 72
    assert finding.volume_mm3 == pytest.approx(72.0)
    assert finding.area_mm2 == pytest.approx(12.0)
    assert finding.diameter_mm == pytest.approx(5.0)
    assert finding.peak == pytest.approx(0.9)
    assert finding.mean == pytest.approx((71 * 0.8 + 0.9) / 72, rel=1e-5)
    assert finding.origin == (1, 5, 10) and finding.mask.all() and finding.mask.shape == (3, 4, 6)


def test_voxels_that_meet_at_a_corner_are_one_finding_in_a_volume(volume):
    """Connectivity is 26 in a volume."""
    maps = maps_of(volume)
    maps[1, 5, 5] = maps[2, 6, 6] = 0.8
    assert [finding.voxels for finding in found(maps, volume)] == [2]


def test_frames_of_a_cine_are_never_joined(tmp_path):
    """Without space between frames each frame has findings of its own, 8-connected."""
    group = make_group([us_cine(3)], tmp_path)
    maps = maps_of(group)
    maps[:, 4, 4] = maps[:, 5, 5] = 0.8
    findings = found(maps, group)
    assert sorted(finding.origin[0] for finding in findings) == [0, 1, 2]
    assert all(finding.voxels == 2 and finding.volume_mm3 is None for finding in findings)


def test_projection_has_area_and_no_volume(tmp_path):
    """A radiograph's finding has an area from its pixel spacing."""
    group = make_group([dx()], tmp_path)
    maps = maps_of(group)
    maps[0, 10:20, 10:20] = 0.8
    (finding,) = found(maps, group)
    assert finding.volume_mm3 is None
    assert finding.area_mm2 == pytest.approx(100 * 0.04)


def test_findings_are_numbered_by_peak(volume):
    """The strongest finding is number 1, whatever its size and place."""
    maps = maps_of(volume)
    maps[0:3, 2:8, 2:8] = 0.6
    maps[5, 20, 20] = 0.95
    findings = found(maps, volume)
    assert [(f.number, f.tracking_uid, f.voxels) for f in findings] == [(1, "2.25.1", 1), (2, "2.25.2", 108)]


def test_largest_frame_is_the_slice_of_the_largest_area(volume):
    """The slice whose outline is reported is the one with the largest area."""
    maps = maps_of(volume)
    maps[1:5, 5:8, 5:8] = 0.8
    maps[3, 4:10, 4:10] = 0.7
    assert found(maps, volume)[0].largest_frame == 3


@pytest.mark.parametrize("limits", [{"minimum_voxels": 9}, {"minimum_volume_mm3": 8.5}])
def test_small_regions_are_dropped(volume, limits):
    """A region below the least voxels or the least volume is no finding."""
    maps = maps_of(volume)
    maps[0, 0:2, 0:4] = 0.8
    maps[4, 10:13, 10:13] = 0.8
    assert [finding.voxels for finding in found(maps, volume, **limits)] == [9]


def test_only_so_many_findings_are_kept(volume):
    """The weakest are dropped above the maximum."""
    maps = maps_of(volume)
    for i in range(5):
        maps[0, 4 * i, 4] = 0.6 + 0.05 * i
    findings = found(maps, volume, maximum_findings=2)
    assert [round(finding.peak, 2) for finding in findings] == [0.8, 0.75]


def test_a_region_counts_where_a_slice_was_flagged(volume):
    """Whole regions that reach into a flagged slice are findings; those of other slices are none."""
    maps = maps_of(volume)
    maps[0:3, 2:6, 2:6] = 0.8
    maps[4, 10:14, 10:14] = 0.9
    flagged = [False, False, True, False, False, False]
    (finding,) = found(maps, volume, flagged=flagged)
    assert (finding.origin, finding.mask.shape) == ((0, 2, 2), (3, 4, 4))
    assert found(maps, volume, flagged=[False] * 6) == ()


def test_nothing_above_the_threshold_is_no_finding(volume):
    """An all-normal volume has no findings, nor has one that is not a number."""
    assert found(maps_of(volume), volume) == ()
    assert found(maps_of(volume) * np.float32("nan"), volume) == ()


def test_a_list_of_maps_gives_the_same_as_an_array(volume):
    """Maps may come one per frame, as the scorer makes them."""
    maps = np.random.default_rng(3).random((6, 24, 32), dtype=np.float32)
    one, other = found(maps, volume, threshold=0.9), found(list(maps), volume, threshold=0.9)
    assert [f.origin for f in one] == [f.origin for f in other] and len(one) == 20


def test_maps_of_another_size_are_refused(tmp_path):
    """A score map on the model's grid instead of the source's is an error."""
    group = make_group(mr_series(3), tmp_path)
    with pytest.raises(ValueError, match="rows × columns"):
        found(np.zeros((3, 16, 16), dtype=np.float32), group)


def test_outline_of_one_pixel_is_its_border():
    """Pixel (row 2, column 3) has the corners (3, 2) to (4, 3) of PS3.3 C.18.6."""
    mask = np.zeros((5, 6), dtype=bool)
    mask[2, 3] = True
    assert outline(mask).tolist() == [[3, 2], [4, 2], [4, 3], [3, 3], [3, 2]]


def test_outline_joins_pixels_that_meet_at_a_corner_and_leaves_holes_out():
    """An 8-connected part has one outer loop; the hole is a loop of its own."""
    ring = np.ones((5, 5), dtype=bool)
    ring[2, 2] = False
    assert outline(ring).tolist() == [[0, 0], [5, 0], [5, 5], [0, 5], [0, 0]]
    assert len(outlines(ring)) == 2
    assert len(outlines(np.eye(4, dtype=bool))) == 1


def test_outlines_enclose_exactly_the_mask():
    """The signed areas of all loops of any mask sum to its number of pixels."""
    rng = np.random.default_rng(1)
    for _ in range(30):
        mask = rng.random((12, 15)) > 0.5
        loops = outlines(mask)
        signed = [np.sum(p[:-1, 0] * p[1:, 1] - p[1:, 0] * p[:-1, 1]) / 2 for p in loops]
        assert sum(signed) == mask.sum()
        assert all((p[0] == p[-1]).all() for p in loops)


@pytest.mark.parametrize("seed", range(20))
def test_the_diameter_is_the_largest_of_all_distances(seed: int) -> None:
    """Of a ragged region with holes and parts: between any two corners of its pixels."""
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 20, 2)) < rng.uniform(0.05, 0.9)
    mask[0, 0] = True
    pixels = np.argwhere(mask)
    corners = np.concatenate([pixels + move for move in ((0, 0), (0, 1), (1, 0), (1, 1))]) * (0.7, 1.3)
    largest = np.linalg.norm(corners[:, None] - corners, axis=2).max()
    assert _diameter_mm(mask, (0.7, 1.3)) == pytest.approx(largest, rel=1e-12)


def test_the_diameter_of_a_mammogram_s_lesion_needs_little_memory() -> None:
    """A region of 3,000 rows is measured right by the corners of its hull: all pairs would be gigabytes."""
    rows, columns = np.ogrid[:3000, :3000]
    disc = (rows - 1499.5) ** 2 + (columns - 1499.5) ** 2 <= 1500.0**2
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert _diameter_mm(disc, (0.1, 0.1)) == pytest.approx(300.0, abs=0.2)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
