"""Normalisation: stored values become what a reader sees, in [0, 1], alike in fit and score."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from factories import ct_series, dx, op, palette, sc, us_cine, write
from factories_enhanced import enhanced_ct, enhanced_mr
from pydicom import Dataset
from pydicom.sequence import Sequence as DicomSequence

from adapters.decode import decode_frame
from adapters.errors import DecodeError
from adapters.slices import Normalisation, load_slice, normalise

OBJECT = Normalisation("object")
FULL = Normalisation("full")
LIMIT = 10**7


def _grey(pixels: np.ndarray, **attributes: object) -> Dataset:
    ds = sc(pixels=pixels)
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def _normal(ds: Dataset, normalisation: Normalisation, frame_number: int = 1) -> np.ndarray:
    pixels = decode_frame(ds, frame_number, max_frame_pixels=LIMIT)
    return normalise(pixels, ds, normalisation, frame_number=frame_number)


RAMP = np.arange(256, dtype=np.uint16).reshape(16, 16) * 10


def test_bundle_window_is_in_modality_units() -> None:
    """A window of −160 to 240 HU means Hounsfield units, whatever the stored values are."""
    ds = _grey(np.array([[864, 1064, 1264, 0]], np.uint16), RescaleSlope=1, RescaleIntercept=-1024)
    unit = _normal(ds, Normalisation("window", -160, 240))
    assert unit.dtype == np.float32
    assert unit[0].tolist() == pytest.approx([0, 0.5, 1, 0])


def test_linear_window_follows_the_standard() -> None:
    """C.11.2.1.2.1: centre 2048 and width 4096 take 0 to 0 and 4095 to 1."""
    ds = _grey(np.array([[0, 1, 2048, 4095]], np.uint16), WindowCenter=2048, WindowWidth=4096)
    assert _normal(ds, OBJECT)[0].tolist() == pytest.approx([0, 1 / 4095, 2048 / 4095, 1])


def test_linear_exact_window_follows_the_standard() -> None:
    """C.11.2.1.3.2: the window runs from centre − width / 2 to centre + width / 2."""
    ds = _grey(np.array([[0, 25, 50, 100]], np.uint16), WindowCenter=50, WindowWidth=100)
    ds.VOILUTFunction = "LINEAR_EXACT"
    assert _normal(ds, OBJECT)[0].tolist() == pytest.approx([0, 0.25, 0.5, 1])


def test_sigmoid_window_follows_the_standard() -> None:
    """C.11.2.1.3.1: 1 / (1 + exp(−4 (x − c) / w))."""
    ds = _grey(np.array([[0, 50, 100]], np.uint16), WindowCenter=50, WindowWidth=100)
    ds.VOILUTFunction = "SIGMOID"
    expected = [1 / (1 + np.exp(2)), 0.5, 1 / (1 + np.exp(-2))]
    assert _normal(ds, OBJECT)[0].tolist() == pytest.approx(expected)


def test_first_of_several_windows_counts() -> None:
    """Of two windows the first is the object's default."""
    ds = _grey(np.array([[0, 50, 100]], np.uint16), WindowCenter=[50.5, 500], WindowWidth=[101, 10])
    assert _normal(ds, OBJECT)[0].tolist() == pytest.approx([0, 0.5, 1])


@pytest.mark.parametrize("width", [0, -5, "", None])
def test_impossible_window_gives_way_to_percentiles(width: object) -> None:
    """A window without width is none; the percentiles take its place."""
    ds = _grey(RAMP, WindowCenter=50, WindowWidth=width)
    assert np.array_equal(_normal(ds, OBJECT), _normal(ds, Normalisation("percentile")))


def test_window_of_width_one_is_a_step() -> None:
    """LINEAR with width 1 is a step at centre − 0.5, without a division by zero."""
    ds = _grey(np.array([[9, 10, 11]], np.uint16), WindowCenter=10.5, WindowWidth=1)
    assert _normal(ds, OBJECT)[0].tolist() == [0, 0, 1]


def _lut(first: int, data: list[int], bits: int) -> DicomSequence:
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [len(data), first, bits], data
    return DicomSequence([item])


def test_voi_table_goes_before_the_window() -> None:
    """A VOI LUT sequence is applied, clamped at both its ends."""
    ds = _grey(np.array([[0, 10, 11, 99]], np.uint16), WindowCenter=1, WindowWidth=1)
    ds.VOILUTSequence = _lut(10, [0, 128, 255], 8)
    assert _normal(ds, OBJECT)[0].tolist() == pytest.approx([0, 0, 128 / 255, 1])


def test_modality_table_is_applied() -> None:
    """A modality LUT sequence takes the place of the rescale."""
    ds = _grey(np.array([[0, 1, 2]], np.uint16))
    ds.ModalityLUTSequence = _lut(0, [100, 50, 0], 16)
    assert _normal(ds, FULL)[0].tolist() == [1, 0.5, 0]


def test_damaged_table_is_as_good_as_none() -> None:
    """A VOI table without data gives way to the window."""
    ds = _grey(np.array([[0, 50, 100]], np.uint16), WindowCenter=50.5, WindowWidth=101)
    ds.VOILUTSequence = DicomSequence([Dataset()])
    assert _normal(ds, OBJECT)[0].tolist() == pytest.approx([0, 0.5, 1])


@pytest.mark.parametrize("kind", ["object", "percentile", "full"])
def test_monochrome1_is_inverted(kind: str) -> None:
    """MONOCHROME1 comes out as the same picture as its MONOCHROME2 negative."""
    one, two = dx(mono="MONOCHROME1"), dx()
    pixels = decode_frame(two, max_frame_pixels=LIMIT)
    negative = (4095 - pixels).astype(np.uint16)
    norm = Normalisation(kind)  # type: ignore[arg-type]
    assert np.allclose(normalise(negative, one, norm), normalise(pixels, two, norm), atol=1e-3)


@pytest.mark.parametrize("mono", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_count(mono: str) -> None:
    """Padding becomes 0 under either polarity, and moves no percentile."""
    pixels = np.full((20, 20), -2000, np.int16)
    pixels[5:15, 5:15] = np.arange(100).reshape(10, 10)
    ds = _grey(pixels, PhotometricInterpretation=mono)
    ds.add_new("PixelPaddingValue", "SS", -2000)
    unit = _normal(ds, FULL)
    assert (unit[:5] == 0).all()
    inner = unit[5:15, 5:15].ravel()
    assert sorted((inner[0], inner[-1])) == [0, 1] and inner[50] == pytest.approx(0.5, abs=0.01)


def test_padding_written_with_the_wrong_sign_and_a_range() -> None:
    """63536 means −2000 for signed pixels, and a range covers what lies between."""
    pixels = np.array([[-2000, -1500, -1000, 0, 100]], np.int16)
    ds = _grey(pixels)
    ds.add_new("PixelPaddingValue", "US", 63536)
    ds.add_new("PixelPaddingRangeLimit", "SS", -1000)
    assert _normal(ds, FULL)[0].tolist() == [0, 0, 0, 0, 1]


def test_colour_becomes_luminance() -> None:
    """Red, green and blue weigh 0.299, 0.587 and 0.114 of full scale."""
    ds = sc(pixels=np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8))
    assert _normal(ds, OBJECT)[0].tolist() == pytest.approx([0.299, 0.587, 0.114, 1], abs=1e-5)


def test_palette_becomes_luminance() -> None:
    """A palette's 16-bit colours are scaled by their own range."""
    unit = _normal(palette(), OBJECT)
    assert unit[0, 0] == pytest.approx(0.701, abs=1e-3) and unit[-1, -1] == pytest.approx(0.299, abs=1e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32])
def test_every_integer_type_fills_the_range(dtype: type[np.generic]) -> None:
    """The full range of 8, 16 and 32 bits, signed or not, becomes 0 to 1."""
    info = np.iinfo(dtype)
    unit = _normal(_grey(np.linspace(info.min, info.max, 12).astype(dtype).reshape(3, 4)), FULL)
    assert unit.min() == 0 and unit.max() == 1 and (np.diff(unit.ravel()) > 0).all()


@pytest.mark.parametrize("kind", ["object", "percentile", "full", "window"])
def test_constant_frame_is_black(kind: str) -> None:
    """A frame of one value holds no picture, whatever the normalisation."""
    norm = Normalisation("window", 0, 10) if kind == "window" else Normalisation(kind)  # type: ignore[arg-type]
    ds = _grey(np.full((4, 4), 7, np.uint16), WindowCenter=5, WindowWidth=10)
    assert not _normal(ds, norm).any()


def test_all_padding_is_black() -> None:
    """A frame of padding alone is 0 and raises nothing."""
    ds = _grey(np.zeros((4, 4), np.uint16))
    ds.add_new("PixelPaddingValue", "US", 0)
    for kind in ("object", "percentile", "full"):
        assert not _normal(ds, Normalisation(kind)).any()  # type: ignore[arg-type]


def test_nan_and_infinity_are_black() -> None:
    """Values that are no number become 0 and move nothing."""
    pixels = np.array([[np.nan, np.inf, -np.inf, 0, 1, 2]], np.float32)
    assert normalise(pixels, Dataset(), FULL)[0].tolist() == [0, 0, 0, 0, 0.5, 1]


def test_rare_structure_on_a_flat_ground_survives() -> None:
    """When both percentiles fall on the ground, the whole range is used."""
    pixels = np.zeros((100, 100), np.uint16)
    pixels[0, 0] = 9
    assert _normal(_grey(pixels), Normalisation("percentile"))[0, 0] == 1


def test_broken_rescale_is_left_out() -> None:
    """A slope of zero, or none, leaves the stored values as they are."""
    for slope in (0, None, ""):
        ds = _grey(np.array([[0, 5, 10]], np.uint16), RescaleSlope=slope, RescaleIntercept=3)
        assert _normal(ds, Normalisation("window", 0, 10))[0].tolist() == [0, 0.5, 1]


def test_enhanced_frames_have_their_own_rescale() -> None:
    """Each frame of an enhanced MR uses the slope of its own functional group."""
    ds = enhanced_mr(3, 8, 8, slope=[1.0, 2.0, 4.0])
    window = Normalisation("window", 0, 8000)
    for n, slope in enumerate((1, 2, 4), 1):
        stored = decode_frame(ds, n, max_frame_pixels=LIMIT)
        assert np.allclose(_normal(ds, window, n), np.clip(stored * slope / 8000, 0, 1), atol=1e-6)


def test_enhanced_ct_uses_shared_rescale_and_window() -> None:
    """The shared functional groups hold rescale and window where the frame has none."""
    ds = enhanced_ct(2, 16, 16)
    stored = decode_frame(ds, 2, max_frame_pixels=LIMIT).astype(float) - 1024
    expected = np.clip((stored - 39.5) / 399 + 0.5, 0, 1)
    assert np.allclose(_normal(ds, OBJECT, 2), expected, atol=1e-5)


def test_slice_carries_its_source(tmp_path: Path) -> None:
    """A loaded slice says which frame of which instance it is, on the source's grid."""
    for i, ds in enumerate([ct_series(1, 20, 30)[0], op(20, 30), us_cine(3, 20, 30), dx(20, 30)]):
        path = write(ds, tmp_path / f"{i}.dcm")
        frame = int(ds.get("NumberOfFrames", 1))
        found = load_slice(path, frame, normalisation=OBJECT, max_frame_pixels=LIMIT)
        assert (found.sop_class_uid, found.sop_instance_uid) == (ds.SOPClassUID, ds.SOPInstanceUID)
        assert found.frame_number == frame and found.pixels.shape == (20, 30)
        assert found.pixels.min() >= 0 and found.pixels.max() <= 1


def test_slice_over_the_limit_is_refused(tmp_path: Path) -> None:
    """A frame over the limit is not decoded."""
    path = write(ct_series(1, 20, 30)[0], tmp_path / "a.dcm")
    with pytest.raises(DecodeError, match="limit"):
        load_slice(path, normalisation=OBJECT, max_frame_pixels=599)


@pytest.mark.parametrize(
    "arguments",
    [("window", 5, 5), ("percentile", 99, 1), ("percentile", -1, 99), ("none",), ("full", 0, 1, 0)],
)
def test_impossible_normalisation_is_refused(arguments: tuple[object, ...]) -> None:
    """A range that no value can lie in is refused when it is made, not when it is used."""
    with pytest.raises(ValueError):
        Normalisation(*arguments)  # type: ignore[arg-type]


def test_importing_slices_does_not_import_torch() -> None:
    """Reading pixels costs no torch."""
    code = "import sys, adapters.slices; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0
