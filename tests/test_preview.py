"""The contact sheet: which slices, what is drawn, and that it is a readable PNG."""

import numpy as np
import pytest
from PIL import Image

from daemon.preview import PreviewSlice, contact_sheet


def make_slice(score=0.5, *, mask=False, shape=(64, 48), spacing_mm=None):
    """Return a grey slice whose map has one value, with a square finding if asked."""
    where = np.zeros(shape, dtype=bool)
    where[20:30, 20:30] = mask
    heat = np.full(shape, score, dtype=np.float32)
    return PreviewSlice(np.full(shape, 0.3, np.float32), heat, where, "slice 1 of 1", score, spacing_mm)


def cyan(path):
    """Count pixels of the outline's colour."""
    with Image.open(path) as image:
        pixels = np.asarray(image).astype(int)
    return int((np.abs(pixels - [64, 224, 255]).max(axis=-1) < 3).sum())


def test_sheet_is_a_png(tmp_path):
    """The picture opens as an RGB PNG without any text chunk."""
    contact_sheet([make_slice()], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.format == "PNG" and image.mode == "RGB" and not image.info


def test_finding_is_outlined(tmp_path):
    """A finding adds an outline; without one only the legend has its colour."""
    contact_sheet([make_slice()], tmp_path / "without.png")
    contact_sheet([make_slice(mask=True)], tmp_path / "with.png")
    assert cyan(tmp_path / "with.png") > cyan(tmp_path / "without.png") + 100


def test_at_most_twelve_slices_are_drawn(tmp_path):
    """Forty slices make a sheet as large as twelve do."""
    contact_sheet([make_slice(i / 40) for i in range(40)], tmp_path / "many.png")
    contact_sheet([make_slice(i / 40) for i in range(12)], tmp_path / "twelve.png")
    with Image.open(tmp_path / "many.png") as many, Image.open(tmp_path / "twelve.png") as twelve:
        assert many.size == twelve.size


def test_slices_of_the_highest_score_are_drawn(tmp_path):
    """The one finding among thirty slices is on the sheet because its slice scores highest."""
    slices = [make_slice(0.1) for _ in range(30)]
    slices[17] = make_slice(0.9, mask=True)
    contact_sheet(slices, tmp_path / "sheet.png")
    contact_sheet(slices[:17], tmp_path / "without.png")
    assert cyan(tmp_path / "sheet.png") > cyan(tmp_path / "without.png") + 100


def test_no_slice_is_an_error(tmp_path):
    """An empty sheet would look like a normal result."""
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([], tmp_path / "sheet.png")


def test_mask_on_another_grid_is_refused():
    """An overlay that would be shifted is refused."""
    grey = np.zeros((4, 4), np.float32)
    with pytest.raises(ValueError, match="one \\(rows, columns\\) shape"):
        PreviewSlice(grey, grey, np.zeros((4, 5), bool), "", 0)
