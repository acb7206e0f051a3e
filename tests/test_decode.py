"""Decoding: every transfer syntax, one frame at a time, and nothing a hostile file can do."""

from __future__ import annotations

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import tracemalloc
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from factories import ct_series, dx, op, palette, sc, set_pixels, us_cine, write
from factories_enhanced import enhanced_mr
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLSLossless,
    RLELossless,
)

from adapters.codestream import CodestreamSize, codestream_size
from adapters.decode import check_pixels, decode_frame
from adapters.decoders import DECODERS
from adapters.errors import DecodeError
from adapters.source import read_source
from adapters.worker import decode_worker

ROOT = Path(__file__).parent.parent
ZOO = Path(os.environ.get("DICOM_ZOO", ROOT / "../shared/zoo")).resolve()
LIMIT = 10**7


def _zoo() -> list[dict[str, str]]:
    if not (ZOO / "zoo.csv").exists():
        return []
    with (ZOO / "zoo.csv").open(newline="") as table:
        return [row for row in csv.DictReader(table) if row["has_pixels"] == "True"]


def _read_by_others(row: dict[str, str]) -> bool:
    return any(v == "ok" for k, v in row.items() if k.startswith("decode_") and "GPL" not in k)


def _path(row: dict[str, str]) -> Path:
    return ZOO / row["file"].removeprefix("shared/")


def _compressed(ds: Dataset, syntax: str, frames: list[bytes]) -> Dataset:
    ds.PixelData = encapsulate(frames)
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    return ds


def _in_memory(ds: Dataset) -> Dataset:
    """Return a copy that pydicom may write in another byte order, as it was never read."""
    copy = Dataset()
    copy.file_meta = ds.file_meta
    copy.update(ds)
    return copy


@pytest.mark.shared
def test_zoo_counts_hold() -> None:
    """Of the zoo's 72 files with pixel data exactly those decode that another open decoder reads: 67."""
    rows = _zoo()
    if not rows:
        pytest.skip("DICOM_ZOO is not there")
    outcome = {}
    for row in rows:
        try:
            decode_frame(_path(row), max_frame_pixels=LIMIT)
            outcome[row["file"]] = True
        except DecodeError as error:
            assert len(str(error)) > 10
            outcome[row["file"]] = False
    assert outcome == {row["file"]: _read_by_others(row) for row in rows}
    if len(rows) == 72:
        assert sum(outcome.values()) == 67


@pytest.mark.shared
@pytest.mark.parametrize(
    "row", [r for r in _zoo() if r["shape"] and _read_by_others(r)], ids=lambda r: r["file"][7:60]
)
def test_zoo_values_equal_the_other_decoders(row: dict[str, str]) -> None:
    """All frames of a file have the shape, range and mean that the collection's own decoders found."""
    source = read_source(_path(row))
    frames = check_pixels(source, max_frame_pixels=LIMIT).frames
    pixels = np.stack([decode_frame(source, n + 1, max_frame_pixels=LIMIT) for n in range(frames)])
    pixels = pixels if frames > 1 or len(json.loads(row["shape"])) > pixels.ndim - 1 else pixels[0]
    if row["photometric"] == "PALETTE COLOR":
        # The table describes the indices, we return the colours.
        assert list(pixels.shape) == [*json.loads(row["shape"]), 3]
        return
    assert list(pixels.shape) == json.loads(row["shape"])
    # Lossy decoders differ by rounding where the table says that they do not agree.
    tolerance = 1e-3 if row["decoders_agree"] == "yes" else 0.05
    assert pixels.min() == pytest.approx(float(row["min"]), abs=1)
    assert pixels.max() == pytest.approx(float(row["max"]), abs=1)
    assert pixels.mean() == pytest.approx(float(row["mean"]), rel=1e-6, abs=tolerance)


def test_gpl_decoder_is_never_asked() -> None:
    """No transfer syntax of libjpeg lists pylibjpeg, whose plug-in for it is GPL."""
    libjpeg = [
        syntax for syntax in DECODERS if syntax.rsplit(".", 1)[-1] in ("50", "51", "57", "70", "80", "81")
    ]
    assert len(libjpeg) == 6
    assert all("pylibjpeg" not in DECODERS[syntax] for syntax in libjpeg)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint32])
def test_native_values_come_back(dtype: type[np.generic], tmp_path: Path) -> None:
    """Every integer type is returned as stored, in this machine's byte order."""
    info = np.iinfo(dtype)
    pixels = np.linspace(info.min, info.max, 7 * 5).astype(dtype).reshape(7, 5)
    path = write(sc(pixels=pixels), tmp_path / "a.dcm")
    decoded = decode_frame(path, max_frame_pixels=LIMIT)
    assert decoded.dtype == np.dtype(dtype) and np.array_equal(decoded, pixels)


def test_big_endian_bytes_in_words_come_back(tmp_path: Path) -> None:
    """8-bit frames of odd length in big endian words are put back in order, each of them."""
    pixels = np.arange(3 * 15, dtype=np.uint8).reshape(3, 3, 5)
    ds = sc(pixels=pixels)
    words = np.frombuffer(pixels.tobytes() + b"\0", ">u2").astype("<u2").tobytes()
    ds.PixelData = words
    ds["PixelData"].VR = "OW"
    ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    path = tmp_path / "a.dcm"
    dcmwrite(path, _in_memory(ds), enforce_file_format=True)
    assert dcmread(path).PixelData == words
    for n in range(3):
        assert np.array_equal(decode_frame(path, n + 1, max_frame_pixels=LIMIT), pixels[n])


def test_one_bit_frames_are_not_byte_aligned(tmp_path: Path) -> None:
    """Frames of 15 bits are cut out of the stream of bits where they lie (PS3.5 8.1.1)."""
    pixels = np.random.default_rng(0).integers(0, 2, (3, 3, 5), dtype=np.uint8)
    ds = sc(pixels=pixels)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 1, 1, 0
    ds.PixelData = np.packbits(pixels.ravel(), bitorder="little").tobytes()
    path = write(ds, tmp_path / "a.dcm")
    for n in range(3):
        assert np.array_equal(decode_frame(path, n + 1, max_frame_pixels=LIMIT), pixels[n])


def test_planar_colour_is_interleaved(tmp_path: Path) -> None:
    """Colour by plane comes back as (rows, columns, 3)."""
    ds = sc(6, 4)
    pixels = ds.pixel_array
    ds.PlanarConfiguration, ds.PixelData = 1, np.moveaxis(pixels, -1, 0).tobytes()
    assert np.array_equal(decode_frame(write(ds, tmp_path / "a.dcm"), max_frame_pixels=LIMIT), pixels)


def test_palette_becomes_colour() -> None:
    """An index is replaced by its colour."""
    pixels = decode_frame(palette(), max_frame_pixels=LIMIT)
    assert pixels.shape == (16, 16, 3)
    assert np.array_equal(pixels[0, 7] // 257, [7, 248, 248])


def test_overlay_in_high_bits_is_cleared() -> None:
    """An overlay plane in bit 15 of a 12-bit image is no brightness."""
    pixels = np.full((4, 4), 100, np.uint16)
    pixels[0, 0] |= 0x8000
    ds = sc(pixels=pixels, bits=12)
    ds.add_new(0x60000100, "US", 16)
    ds.add_new(0x60000102, "US", 15)
    assert decode_frame(ds, max_frame_pixels=LIMIT)[0, 0] == 100


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_lossless_round_trip(syntax: UID, tmp_path: Path) -> None:
    """Signed 16-bit frames survive each lossless syntax that pydicom itself can write."""
    ds = sc(pixels=np.random.default_rng(0).integers(-2000, 2000, (2, 64, 70)).astype(np.int16))
    pixels = ds.pixel_array
    ds.compress(syntax)
    path = write(ds, tmp_path / "a.dcm")
    for n in range(2):
        assert np.array_equal(decode_frame(path, n + 1, max_frame_pixels=LIMIT), pixels[n])


def test_jpeg_of_both_precisions_and_lossless_jpeg(tmp_path: Path) -> None:
    """8- and 12-bit JPEG come back nearly, lossless JPEG exactly, signed values included."""
    y, x = np.mgrid[:64, :48]
    eight, twelve = (y + x).astype(np.uint8), (30 * y + 20 * x).astype(np.uint16)
    cases = [
        (JPEGBaseline8Bit, eight, 8, imagecodecs.jpeg8_encode(eight, level=95), 4),
        (JPEGExtended12Bit, twelve, 12, imagecodecs.jpeg8_encode(twelve, level=95, bitspersample=12), 40),
        (JPEGLossless, twelve, 12, imagecodecs.ljpeg_encode(twelve, bitspersample=12), 0),
    ]
    for i, (syntax, pixels, bits, frame, error) in enumerate(cases):
        ds = _compressed(sc(pixels=pixels, bits=bits), syntax, [frame])
        decoded = decode_frame(write(ds, tmp_path / f"{i}.dcm"), max_frame_pixels=LIMIT)
        assert decoded.dtype == pixels.dtype
        assert np.abs(decoded.astype(int) - pixels).max() <= error


def test_newest_lossless_syntaxes(tmp_path: Path) -> None:
    """JPEG XL, deflated frames and, where it can be encoded here, HTJ2K come back exactly."""
    pixels = np.random.default_rng(0).integers(0, 4096, (32, 40)).astype(np.uint16)
    cases = {
        "1.2.840.10008.1.2.4.110": imagecodecs.jpegxl_encode(pixels, lossless=True),
        "1.2.840.10008.1.2.8.1": zlib.compress(pixels.tobytes(), wbits=-15),
    }
    if imagecodecs.HTJ2K.available:
        cases[HTJ2KLossless] = imagecodecs.htj2k_encode(pixels, reversible=True)
    for i, (syntax, frame) in enumerate(cases.items()):
        ds = _compressed(sc(pixels=pixels), syntax, [frame])
        assert np.array_equal(decode_frame(ds, max_frame_pixels=LIMIT), pixels)
        # pydicom does not write a syntax that it does not know: one of the same length stands in.
        stand_in = "1.2.840.10008.1.2.4.100" if len(syntax) == 23 else "1.2.840.10008.1.2.4.90"
        ds.file_meta.TransferSyntaxUID = UID(stand_in)
        path = write(ds, tmp_path / f"{i}.dcm")
        path.write_bytes(
            path.read_bytes().replace(stand_in.encode(), syntax.encode().ljust(len(stand_in), b"\0"))
        )
        assert read_source(path).transfer_syntax_uid == syntax
        assert np.array_equal(decode_frame(path, max_frame_pixels=LIMIT), pixels)


@pytest.mark.parametrize("table", ["basic", "none", "extended", "fragmented"])
def test_frames_are_found_with_any_offset_table(table: str, tmp_path: Path) -> None:
    """Frame k is found by a basic or extended table, by one fragment each, or by where codestreams start."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 20)).astype(np.uint8)
    frames = [imagecodecs.jpegls_encode(frame) for frame in pixels]
    frames = [frame + b"\0" * (len(frame) % 2) for frame in frames]
    ds = _compressed(sc(pixels=pixels), JPEGLSLossless, frames)
    if table == "fragmented":
        ds.PixelData = encapsulate(frames, fragments_per_frame=3, has_bot=False)
    elif table == "none":
        ds.PixelData = encapsulate(frames, has_bot=False)
    elif table == "extended":
        ds.PixelData, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended(frames)
    path = write(ds, tmp_path / "a.dcm")
    for n in range(3):
        assert np.array_equal(decode_frame(path, n + 1, max_frame_pixels=LIMIT), pixels[n])


def test_one_frame_of_a_big_object_is_read_alone(tmp_path: Path) -> None:
    """Decoding one frame of a 64 MB object takes memory for that frame, not for the object."""
    path = write(sc(pixels=np.zeros((128, 512, 512), np.uint16)), tmp_path / "a.dcm")
    tracemalloc.start()
    decode_frame(path, 100, max_frame_pixels=LIMIT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6


def test_codestream_size_of_each_family() -> None:
    """JPEG, JPEG-LS, JPEG 2000, boxed JPEG 2000 and JPEG XL tell their size before decoding."""
    pixels = np.zeros((30, 20, 3), np.uint8)
    for frame in (
        imagecodecs.jpeg8_encode(pixels),
        imagecodecs.jpegls_encode(pixels),
        imagecodecs.jpeg2k_encode(pixels, codecformat="j2k"),
        imagecodecs.jpeg2k_encode(pixels, codecformat="jp2"),
    ):
        assert codestream_size(frame) == CodestreamSize(30, 20, 3, 8)
    for rows, columns in ((32, 64), (30, 20), (1000, 1), (600, 800), (30, 40), (2000, 3000)):
        frame = imagecodecs.jpegxl_encode(np.zeros((rows, columns), np.uint8))
        assert codestream_size(frame) == CodestreamSize(rows, columns, 0, 0)
    assert codestream_size(b"\xff\xd8\xff\xc0") is None
    assert codestream_size(b"no image") is None


def test_frame_number_out_of_range_is_refused() -> None:
    """Frame 5 of 4, and frame 0, do not exist."""
    for number in (0, 5):
        with pytest.raises(DecodeError, match="does not exist"):
            decode_frame(us_cine(4), number, max_frame_pixels=LIMIT)


def _hostile(name: str, folder: Path) -> Path:
    ds = ct_series(1, 64, 64)[0]
    jpeg_ls = imagecodecs.jpegls_encode(
        np.random.default_rng(0).integers(0, 4096, (64, 64)).astype(np.uint16)
    )
    path = folder / f"{name}.dcm"
    if name == "huge":
        ds.Rows = ds.Columns = 65535
    elif name == "truncated":
        write(ds, path)
        path.write_bytes(path.read_bytes()[:-100])
        return path
    elif name == "no pixels":
        del ds.PixelData
    elif name == "list of rows":
        ds.Rows = [64, 64]
    elif name == "zero rows":
        ds.Rows = 0
    elif name == "many frames":
        ds.NumberOfFrames = 2**31 - 1
    elif name == "cut codestream":
        _compressed(ds, JPEGLSLossless, [jpeg_ls[:20]])
    elif name == "lying codestream":
        at = jpeg_ls.index(b"\xff\xf7")
        lie = jpeg_ls[: at + 5] + b"\xff\xff\xff\xff" + jpeg_ls[at + 9 :]
        _compressed(ds, JPEGLSLossless, [lie])
    elif name == "rubbish codestream":
        _compressed(ds, JPEG2000Lossless, [b"\x17" * 1000])
    elif name == "empty frame":
        _compressed(ds, RLELossless, [b"\0\0"])
    elif name == "rle bomb":
        _compressed(ds, RLELossless, [b"\2\0\0\0\x40\0\0\0\x50\0\0\0" + b"\0" * 52 + b"\x81\0" * 30000])
    elif name == "item beyond the end":
        write(_compressed(ds, JPEGLSLossless, [jpeg_ls]), path)
        data = path.read_bytes()
        at = data.rindex(b"\xfe\xff\x00\xe0")
        path.write_bytes(data[: at + 4] + b"\xfe\xff\xff\xff" + data[at + 8 :])
        return path
    elif name == "no delimiter":
        write(_compressed(ds, JPEGLSLossless, [jpeg_ls]), path)
        path.write_bytes(path.read_bytes()[: -len(jpeg_ls) - 20])
        return path
    elif name == "length beyond the end":
        write(ds, path)
        data = path.read_bytes()
        at = data.index(b"\x10\x00\x10\x00PN")
        path.write_bytes(data[:at] + b"\x10\x00\x10\x00UT\0\0\xf0\xff\xff\xff" + data[at + 8 :])
        return path
    elif name == "undefined length":
        write(ds, path)
        data = path.read_bytes()
        at = data.index(b"\x10\x00\x10\x00PN")
        path.write_bytes(data[:at] + b"\x10\x00\x10\x00UN\0\0\xff\xff\xff\xff" + data[at + 8 :])
        return path
    elif name == "nested":
        write(ds, path)
        path.write_bytes(_nested(path.read_bytes()))
        return path
    elif name == "many items":
        write(ds, path)
        data = path.read_bytes()
        at = data.index(b"\x10\x00\x10\x00PN")
        item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff\xfe\xff\x0d\xe0\0\0\0\0"
        path.write_bytes(data[:at] + b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + item * 2**20 + data[at:])
        return path
    elif name == "rle panic":
        # Found by fuzzing: a run that leaves its segment by one byte.
        _compressed(ds, RLELossless, [b"\2\0\0\0\x40\0\0\0\x44\0\0\0" + b"\0" * 52 + b"\x81\0\x81\0\x7f\1"])
    elif name == "many elements":
        write(ds, path)
        data = path.read_bytes()
        at = data.index(b"\x10\x00\x10\x00PN")
        extra = b"".join(b"\x09\x00" + n.to_bytes(2, "little") + b"LO\0\0" for n in range(0x1000, 0xFFFF))
        path.write_bytes(data[:at] + extra + data[at:])
        return path
    elif name == "zip bomb":
        ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        write(ds, path)
        data = path.read_bytes()
        start = 144 + dcmread(path).file_meta.FileMetaInformationGroupLength
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        bomb = packer.compress(b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100")
        bomb += b"".join(packer.compress(b"\0" * 2**20) for _ in range(300)) + packer.flush()
        path.write_bytes(data[:start] + bomb)
        return path
    elif name == "random":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
        return path
    elif name == "empty":
        path.write_bytes(b"")
        return path
    return write(ds, path)


def _nested(data: bytes) -> bytes:
    at = data.index(b"\x10\x00\x10\x00PN")
    level = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    return data[:at] + level * 100_000 + data[at:]


HOSTILE = (
    "huge", "truncated", "no pixels", "list of rows", "zero rows", "many frames", "cut codestream",
    "lying codestream", "rubbish codestream", "empty frame", "rle bomb", "rle panic", "many items",
    "item beyond the end", "no delimiter", "length beyond the end", "undefined length", "nested",
    "many elements", "zip bomb", "random", "empty",
)  # fmt: skip

_CHILD = """
import resource, sys
from pathlib import Path
from adapters.decode import decode_frame
from adapters.errors import DecodeError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode_frame(Path(sys.argv[1]), max_frame_pixels=10**7)
    print("decoded")
except DecodeError as error:
    print("refused", error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def _limited(path: Path) -> list[str]:
    """Decode in a process of at most 4 GB that must come to an end: the outcome, more kB than before."""
    limit = 4 * 2**30
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _CHILD, str(path)],
        capture_output=True, text=True, timeout=120, cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-500:]
    return run.stdout.splitlines()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_cheaply(name: str, tmp_path: Path) -> None:
    """A hostile file is refused with a reason: no crash, no endless work, under 300 MB more."""
    path = _hostile(name, tmp_path)
    outcome, more_kb = _limited(path)
    assert outcome.startswith("refused ")
    assert int(more_kb) < 300_000


def test_segmented_palette_bomb_is_refused() -> None:
    """A segmented palette whose few bytes unpack to millions of entries is refused."""
    ds = palette()
    for colour in ("Red", "Green", "Blue"):
        delattr(ds, f"{colour}PaletteColorLookupTableData")
        bomb = np.array([1, 65535, 7] * 5000, np.uint16).tobytes()
        setattr(ds, f"Segmented{colour}PaletteColorLookupTableData", bomb)
    with pytest.raises(DecodeError, match="palette"):
        decode_frame(ds, max_frame_pixels=LIMIT)


def test_limit_counts_samples() -> None:
    """The limit holds for rows × columns × samples, and names its setting."""
    decode_frame(op(10, 10), max_frame_pixels=300)
    with pytest.raises(DecodeError, match="max_frame_pixels"):
        decode_frame(op(10, 10), max_frame_pixels=299)


def test_messages_hold_no_patient_data(tmp_path: Path) -> None:
    """No reason names the patient or the file's path."""
    for name in (
        "huge",
        "truncated",
        "list of rows",
        "lying codestream",
        "rle panic",
        "no delimiter",
        "nested",
    ):
        with pytest.raises(DecodeError) as caught:
            decode_frame(_hostile(name, tmp_path), max_frame_pixels=LIMIT)
        assert "CANARY" not in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_data_set_in_memory_and_file_give_the_same(tmp_path: Path) -> None:
    """A frame decodes alike from a data set and from its file."""
    for i, ds in enumerate([dx(), op(), us_cine(), enhanced_mr()]):
        path = write(ds, tmp_path / f"{i}.dcm")
        assert np.array_equal(
            decode_frame(ds, max_frame_pixels=LIMIT), decode_frame(path, max_frame_pixels=LIMIT)
        )


def test_large_functional_groups_stay_readable(tmp_path: Path) -> None:
    """A header with more than a megabyte of functional groups, left on disk at first, is still read."""
    ds = enhanced_mr(2000, 4, 4)
    source = read_source(write(ds, tmp_path / "a.dcm"))
    assert len(source.header.PerFrameFunctionalGroupsSequence) == 2000
    assert decode_frame(source, 2000, max_frame_pixels=LIMIT).shape == (4, 4)


def test_changed_file_is_read_anew(tmp_path: Path) -> None:
    """The header kept for the next frame is dropped when the file changes."""
    path = write(sc(10, 10), tmp_path / "a.dcm")
    assert decode_frame(path, max_frame_pixels=LIMIT).shape == (10, 10, 3)
    ds = sc(10, 10)
    set_pixels(ds, np.zeros((20, 20), np.uint8))
    os.utime(write(ds, path), ns=(1, 1))
    assert decode_frame(path, max_frame_pixels=LIMIT).shape == (20, 20)


def test_dead_decoder_is_replaced() -> None:
    """When a frame ends the decoding process, that frame is refused and the next one decodes."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    ds = _compressed(sc(pixels=pixels), JPEGLSLossless, [imagecodecs.jpegls_encode(pixels)])
    worker = decode_worker()
    assert np.array_equal(decode_frame(ds, max_frame_pixels=LIMIT), pixels)
    child = worker._child
    assert child is not None
    os.kill(child.pid, signal.SIGSTOP)
    threading.Timer(0.3, os.kill, (child.pid, signal.SIGKILL)).start()
    with pytest.raises(DecodeError, match="crash"):
        decode_frame(ds, max_frame_pixels=LIMIT)
    assert np.array_equal(decode_frame(ds, max_frame_pixels=LIMIT), pixels)


def test_decoder_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that takes longer than the limit is refused."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    ds = _compressed(sc(pixels=pixels), JPEGLSLossless, [imagecodecs.jpegls_encode(pixels)])
    decode_frame(ds, max_frame_pixels=LIMIT)
    child = decode_worker()._child
    assert child is not None
    os.kill(child.pid, signal.SIGSTOP)
    monkeypatch.setattr("adapters.worker.TIME_LIMIT_S", 0.3)
    with pytest.raises(DecodeError, match="too long"):
        decode_frame(ds, max_frame_pixels=LIMIT)


def test_decoder_that_cannot_start_is_not_blamed_on_the_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no child can start, the reason says so and calls no frame damaged."""
    monkeypatch.setattr("adapters.worker.sys.executable", "/bin/false")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    ds = _compressed(sc(pixels=pixels), JPEGLSLossless, [imagecodecs.jpegls_encode(pixels)])
    decode_worker().close()
    with pytest.raises(DecodeError, match="does not start"):
        decode_frame(ds, max_frame_pixels=LIMIT)
    monkeypatch.undo()
    assert np.array_equal(decode_frame(ds, max_frame_pixels=LIMIT), pixels)


def test_compressed_frames_decode_under_a_memory_limit(tmp_path: Path) -> None:
    """A service that is itself limited to 4 GB of address space still decodes compressed frames."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    ds = _compressed(sc(pixels=pixels), JPEGLSLossless, [imagecodecs.jpegls_encode(pixels)])
    outcome = _limited(write(ds, tmp_path / "a.dcm"))
    assert outcome[0] == "decoded", outcome
