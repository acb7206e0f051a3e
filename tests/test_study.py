"""Studies: what is grouped, in which order, and what is refused with which reason."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from factories import (
    AXIAL,
    OBLIQUE,
    base,
    ct_series,
    dx,
    localizer,
    mr_series,
    op,
    palette,
    sc,
    set_pixels,
    uid,
    us_cine,
    write,
    write_all,
)
from factories_enhanced import enhanced_ct, enhanced_mr
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from daemon.study import FrameGroup, Study, assemble

ZOO = Path(os.environ.get("DICOM_ZOO", Path(__file__).parent.parent / "../shared/zoo")).resolve()
STUDY = uid("study")


def _assemble(
    datasets: Sequence[Dataset],
    folder: Path,
    limit: int = 10_000,
    is_own: Callable[[Dataset], bool] | None = None,
) -> Study:
    own = {"is_own": is_own} if is_own else {}
    return assemble(
        STUDY, write_all(datasets, folder), max_frame_pixels=10**7, max_study_frames=limit, **own
    )  # fmt: skip


def _only(study: Study) -> FrameGroup:
    assert len(study.groups) == 1, [group.notes for group in study.groups]
    return study.groups[0]


def _numbers(group: FrameGroup, datasets: Sequence[Dataset]) -> list[int]:
    by_uid = {ds.SOPInstanceUID: i for i, ds in enumerate(datasets)}
    return [by_uid[frame.sop_instance_uid] for frame in group.frames]


@pytest.mark.parametrize("orientation", ["axial", "oblique"])
def test_slices_are_ordered_by_position(orientation: str, tmp_path: Path) -> None:
    """Slices come in order along the normal, not in order of number or file."""
    images = ct_series(6, orientation=orientation, spacing=(2.5, 0.7, 0.9))
    for number, ds in zip([4, 1, 6, 2, 5, 3], images, strict=True):
        ds.InstanceNumber = number
    group = _only(_assemble(images, tmp_path))
    assert _numbers(group, images) == [0, 1, 2, 3, 4, 5]
    assert group.is_volume and group.slice_spacing_mm == pytest.approx(2.5, abs=1e-3)
    assert group.pixel_spacing_mm == (0.7, 0.9) and not group.notes
    assert group.orientation == pytest.approx(AXIAL if orientation == "axial" else OBLIQUE)
    assert group.frames[0].position == pytest.approx((-50, -60, -70))


def test_order_of_files_changes_nothing(tmp_path: Path) -> None:
    """The same files in another order, or under other names, make the same study and keys."""
    images = [*ct_series(5), *mr_series(4), dx(), op(), us_cine(), localizer()]
    paths = write_all(images, tmp_path)
    first = assemble(STUDY, paths, max_frame_pixels=10**7, max_study_frames=100)
    random.Random(0).shuffle(paths)
    assert assemble(STUDY, paths, max_frame_pixels=10**7, max_study_frames=100) == first
    moved = [path.rename(path.with_name(f"{i:03}.dcm")) for i, path in enumerate(paths)]
    again = assemble(STUDY, moved, max_frame_pixels=10**7, max_study_frames=100)
    assert [group.key for group in again.groups] == [group.key for group in first.groups]
    assert len({group.key for group in first.groups}) == len(first.groups)


def test_attributes_of_a_group_are_the_series_own(tmp_path: Path) -> None:
    """A group tells modality, body part, frame of reference and size."""
    group = _only(_assemble(ct_series(2, 20, 30), tmp_path))
    assert (group.modality, group.body_part, group.rows, group.columns) == ("CT", "CHEST", 20, 30)
    assert group.frame_of_reference_uid == uid(STUDY, "frame")
    assert {frame.frame_number for frame in group.frames} == {1}


def test_orientations_of_one_series_are_split(tmp_path: Path) -> None:
    """A series of axial and oblique slices makes one group for each orientation."""
    images = ct_series(3)
    for i, ds in enumerate(ct_series(3, orientation="oblique")):
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid("oblique", i)
        ds.InstanceNumber = 10 + i
        images.append(ds)
    study = _assemble(images, tmp_path)
    assert [_numbers(group, images) for group in study.groups] == [[0, 1, 2], [3, 4, 5]]
    assert all("2 orientations" in group.notes[0] for group in study.groups)


def test_rounding_of_the_orientation_splits_nothing(tmp_path: Path) -> None:
    """Direction cosines that differ in the fifth digit are one orientation."""
    images = ct_series(4)
    images[2].ImageOrientationPatient = [0.99999, 0.00001, 0, 0, 1, 0]
    assert len(_only(_assemble(images, tmp_path)).frames) == 4


@pytest.mark.parametrize("keyword", ["FrameOfReferenceUID", "Rows", "PixelSpacing", "SeriesInstanceUID"])
def test_other_frame_of_reference_size_spacing_or_series_is_another_group(
    keyword: str, tmp_path: Path
) -> None:
    """Slices that cannot be one array in one space are not put into one group."""
    images = ct_series(4)
    for ds in images[2:]:
        if keyword == "Rows":
            set_pixels(ds, np.zeros((16, 32), np.uint16))
        else:
            setattr(ds, keyword, [2.0, 2.0] if keyword == "PixelSpacing" else uid("other"))
    assert [len(group.frames) for group in _assemble(images, tmp_path).groups] == [2, 2]


def test_missing_slices_are_counted(tmp_path: Path) -> None:
    """Two holes, of one and of two slices, are three missing slices."""
    images = ct_series(10)
    group = _only(_assemble([ds for i, ds in enumerate(images) if i not in (2, 5, 6)], tmp_path))
    assert group.notes == ("3 missing slices",)
    assert group.slice_spacing_mm == pytest.approx(2)


def test_uneven_distances_are_told(tmp_path: Path) -> None:
    """Distances that are no multiple of the usual one are named with their range."""
    images = ct_series(6)
    images[5].ImagePositionPatient[2] += 0.7
    assert _only(_assemble(images, tmp_path)).notes == ("uneven slice distances, 2.0 to 2.7 mm",)


def test_gantry_tilt_is_told(tmp_path: Path) -> None:
    """A stack whose slices slide by tan 12° of their distance has a gantry tilt of 12.0°."""
    images = ct_series(5)
    for i, ds in enumerate(images):
        ds.ImagePositionPatient[1] += i * 2 * np.tan(np.radians(12))
    assert _only(_assemble(images, tmp_path)).notes == ("gantry tilt 12.0°",)


def test_shifted_slices_are_told(tmp_path: Path) -> None:
    """A slice that lies beside its neighbours is no tilt."""
    images = ct_series(5)
    images[2].ImagePositionPatient[0] += 20
    assert _only(_assemble(images, tmp_path)).notes == ("slices are shifted against each other",)


@pytest.mark.parametrize("keyword", ["TemporalPositionIdentifier", "EchoTime", "AcquisitionNumber"])
def test_repeated_positions_are_split_by_phase(keyword: str, tmp_path: Path) -> None:
    """Two phases at the same positions make two groups, by the attribute that tells them apart."""
    images = mr_series(3)
    for i, ds in enumerate(mr_series(3)):
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid("late", i)
        images.append(ds)
    for i, ds in enumerate(images):
        setattr(ds, keyword, 1 + i // 3)
    study = _assemble(images, tmp_path)
    assert [_numbers(group, images) for group in study.groups] == [[0, 1, 2], [3, 4, 5]]
    assert all(group.notes == (f"repeated positions, split into 2 by {keyword}",) for group in study.groups)


def test_repeated_positions_without_a_phase_are_split_by_number(tmp_path: Path) -> None:
    """When nothing tells them apart, the first at each position are one group, the second another."""
    images = mr_series(3)
    for i, ds in enumerate(mr_series(2)):
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid("late", i)
        ds.InstanceNumber = 10 + i
        images.append(ds)
    study = _assemble(images, tmp_path)
    assert [_numbers(group, images) for group in study.groups] == [[0, 1, 2], [3, 4]]
    assert "by instance number" in study.groups[0].notes[0]


@pytest.mark.parametrize("make", [enhanced_ct, enhanced_mr])
def test_enhanced_frames_are_ordered_by_their_own_position(
    make: Callable[..., Dataset], tmp_path: Path
) -> None:
    """Frames of an enhanced object are ordered by the position in their functional group."""
    group = _only(_assemble([make(5, order=[4, 2, 0, 1, 3])], tmp_path))
    assert [frame.frame_number for frame in group.frames] == [3, 4, 2, 5, 1]
    assert group.is_volume and not group.notes
    assert group.pixel_spacing_mm == (1, 1)


def test_enhanced_phases_are_split(tmp_path: Path) -> None:
    """Two temporal positions in one enhanced object make two groups."""
    ds = enhanced_mr(4)
    frames = ds.PerFrameFunctionalGroupsSequence
    for i, frame in enumerate(frames):
        frame.PlanePositionSequence = frames[i % 2].PlanePositionSequence
        frame.FrameContentSequence[0].TemporalPositionIndex = 1 + i // 2
    groups = _assemble([ds], tmp_path).groups
    assert [[frame.frame_number for frame in group.frames] for group in groups] == [[1, 2], [3, 4]]


@pytest.mark.parametrize("make", [dx, op, sc, palette])
def test_projection_is_a_group_of_its_own(make: Callable[[], Dataset], tmp_path: Path) -> None:
    """An image without a position is one group, without geometry in space."""
    group = _only(_assemble([make()], tmp_path))
    assert not group.is_volume and group.orientation is None and group.slice_spacing_mm is None
    assert [frame.position for frame in group.frames] == [None]


def test_two_projections_of_one_series_are_two_groups(tmp_path: Path) -> None:
    """Two radiographs of one series are two pictures."""
    images = [dx(), dx(80, 60)]
    images[1].SOPInstanceUID = images[1].file_meta.MediaStorageSOPInstanceUID = uid("second")
    assert sorted(group.rows for group in _assemble(images, tmp_path).groups) == [64, 80]


def test_cine_without_geometry_is_no_volume(tmp_path: Path) -> None:
    """Frames of an ultrasound cine keep their order and are no slices in space."""
    group = _only(_assemble([us_cine(4)], tmp_path))
    assert [frame.frame_number for frame in group.frames] == [1, 2, 3, 4] and not group.is_volume
    assert group.notes == ("4 frames without a position, each by itself",)


def test_detector_spacing_is_told(tmp_path: Path) -> None:
    """A radiograph without PixelSpacing is measured at its detector, and says so."""
    ds = dx()
    del ds.PixelSpacing
    group = _only(_assemble([ds], tmp_path))
    assert group.pixel_spacing_mm == (0.2, 0.2) and "detector" in group.notes[0]


def test_impossible_geometry_makes_a_flat_image(tmp_path: Path) -> None:
    """An orientation that is no pair of directions is told and not used."""
    ds = ct_series(1)[0]
    ds.ImageOrientationPatient = [1, 0, 0, 1, 0, 0]
    group = _only(_assemble([ds], tmp_path))
    assert group.orientation is None and "perpendicular" in group.notes[0]


def test_private_image_class_is_scored(tmp_path: Path) -> None:
    """An image of a private SOP class is an image."""
    ds = ct_series(1)[0]
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.826.0.1.3680043.8.498.1"
    assert _only(_assemble([ds], tmp_path)).modality == "CT"


@pytest.mark.parametrize(
    ("sop_class", "words"),
    [
        ("1.2.840.10008.5.1.4.1.1.66.4", "segmentation"),
        ("1.2.840.10008.5.1.4.1.1.66.7", "label map"),
        ("1.2.840.10008.5.1.4.1.1.88.34", "structured report"),
        ("1.2.840.10008.5.1.4.1.1.88.59", "key object"),
        ("1.2.840.10008.5.1.4.1.1.11.1", "presentation state"),
        ("1.2.840.10008.5.1.4.1.1.9.1.1", "waveform"),
        ("1.2.840.10008.5.1.4.1.1.104.1", "document"),
        ("1.2.840.10008.5.1.4.1.1.481.2", "dose"),
        ("1.2.840.10008.5.1.4.1.1.481.3", "radiotherapy"),
        ("1.2.840.10008.5.1.4.1.1.30", "parametric map"),
        ("1.2.840.10008.5.1.4.1.1.77.1.6", "whole slide"),
        ("1.2.840.10008.5.1.4.1.1.66", "raw data"),
    ],
)
def test_other_objects_are_refused_by_name(sop_class: str, words: str, tmp_path: Path) -> None:
    """What is no image is refused, in words that say what it is."""
    ds = sc()
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = sop_class
    study = _assemble([ds], tmp_path)
    assert not study.groups and words in study.refusals[0].reason
    assert study.refusals[0].sop_instance_uid == ds.SOPInstanceUID


def test_private_segmentation_is_refused_by_modality(tmp_path: Path) -> None:
    """A private SOP class says by its modality that it is no image."""
    ds = sc()
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.826.0.1.3680043.8.498.1"
    ds.Modality = "SEG"
    assert "segmentation" in _assemble([ds], tmp_path).refusals[0].reason


def test_localizer_is_refused(tmp_path: Path) -> None:
    """A scout among the slices is told and does not disturb them."""
    study = _assemble([*ct_series(3), localizer()], tmp_path)
    assert len(_only(study).frames) == 3 and "localizer" in study.refusals[0].reason


def test_own_result_is_refused(tmp_path: Path) -> None:
    """An object that the daemon made is recognised and not scored."""
    ds = sc()
    ds.InstanceCreatorUID = uid("daemon")
    study = _assemble([ds], tmp_path, is_own=lambda ds: ds.get("InstanceCreatorUID") == uid("daemon"))
    assert not study.groups and "came back" in study.refusals[0].reason


def test_duplicate_is_kept_once(tmp_path: Path) -> None:
    """Of two files with one SOP Instance UID the first is used, the second is told."""
    paths = write_all(ct_series(3), tmp_path)
    shutil.copy(paths[0], tmp_path / "z.dcm")
    study = assemble(STUDY, [*paths, tmp_path / "z.dcm"], max_frame_pixels=10**7, max_study_frames=9)
    assert len(_only(study).frames) == 3 and "duplicate" in study.refusals[0].reason


@pytest.mark.parametrize(
    ("keyword", "value", "words"),
    [
        ("Rows", 0, "0 rows"),
        ("Rows", [32, 32], "Rows"),
        ("Rows", None, "Rows"),
        ("Columns", 65535, "cut off"),
        ("NumberOfFrames", 2**31 - 1, "cut off"),
        ("BitsAllocated", 13, "13 bits"),
        ("PixelData", None, "no pixel data"),
        ("SeriesInstanceUID", None, "Series Instance UID"),
        ("StudyInstanceUID", "1.2.3", "another study"),
    ],
)
def test_broken_image_is_refused(keyword: str, value: object, words: str, tmp_path: Path) -> None:
    """An image that cannot be read is refused with what is wrong, and its neighbours are scored."""
    images = ct_series(3)
    if value is None:
        delattr(images[1], keyword)
    else:
        setattr(images[1], keyword, value)
    study = _assemble(images, tmp_path)
    assert len(_only(study).frames) == 2
    assert words in study.refusals[0].reason and "CANARY" not in study.refusals[0].reason


def test_frame_over_the_limit_is_refused(tmp_path: Path) -> None:
    """65535 × 65535 is over the limit of a frame."""
    ds = ct_series(1)[0]
    ds.Rows = ds.Columns = 65535
    assert "max_frame_pixels" in _assemble([ds], tmp_path).refusals[0].reason


def test_rubbish_is_refused(tmp_path: Path) -> None:
    """A file that is no DICOM, an empty one, a cut one and a missing one each have a refusal."""
    (tmp_path / "a.dcm").write_bytes(b"hello" * 100)
    (tmp_path / "b.dcm").write_bytes(b"")
    cut = write(ct_series(1)[0], tmp_path / "c.dcm")
    cut.write_bytes(cut.read_bytes()[:300])
    paths = [tmp_path / f"{name}.dcm" for name in "abcd"]
    study = assemble(STUDY, paths, max_frame_pixels=10**7, max_study_frames=9)
    assert not study.groups and len(study.refusals) == 4
    assert all(refusal.reason and str(tmp_path) not in refusal.reason for refusal in study.refusals)


def test_study_limit_refuses_whole_groups(tmp_path: Path) -> None:
    """A group beyond the study's limit is refused as a whole: half a stack is not scored as all."""
    study = _assemble([*ct_series(5), *mr_series(4)], tmp_path, limit=7)
    assert len(study.groups) == 1
    assert len(study.groups[0].frames) + len(study.refusals) == 9
    assert all("max_study_frames" in refusal.reason for refusal in study.refusals)


def test_object_of_too_many_frames_is_refused_before_it_is_listed(tmp_path: Path) -> None:
    """An object with more frames than a study may have is refused at once."""
    ds = sc(pixels=np.zeros((500, 2, 2), np.uint8))
    assert "500 frames" in _assemble([ds], tmp_path, limit=100).refusals[0].reason


def test_pixel_data_is_not_read(tmp_path: Path) -> None:
    """Assembling opens headers: of slices of 512 KiB each, less than a tenth is read."""
    paths = write_all(ct_series(20, 512, 512), tmp_path)
    before = _bytes_read()
    study = assemble(STUDY, paths, max_frame_pixels=10**7, max_study_frames=1000)
    assert len(_only(study).frames) == 20
    assert _bytes_read() - before < 20 * 2**19 / 10


def _bytes_read() -> int:
    """Return how many bytes this process has read from files."""
    found = re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())
    assert found is not None
    return int(found[1])


@pytest.mark.shared
def test_every_zoo_file_is_scored_or_refused() -> None:
    """Each file of the zoo ends in a group or with a reason that names no value of its header."""
    paths = sorted(ZOO.rglob("*.dcm"))
    if not paths:
        pytest.skip("DICOM_ZOO is not there")
    scored = 0
    for path in paths:
        try:
            study_uid = str(dcmread(path, stop_before_pixels=True, force=True).get("StudyInstanceUID", ""))
        except (InvalidDicomError, OSError, ValueError, NotImplementedError):
            study_uid = ""
        study = assemble(study_uid, [path], max_frame_pixels=10**7, max_study_frames=1000)
        assert bool(study.groups) != bool(study.refusals)
        scored += bool(study.groups)
    assert scored >= 50


@pytest.mark.peer
@pytest.mark.parametrize(
    "make",
    [
        lambda: ct_series(1)[0],
        lambda: mr_series(1)[0],
        dx,
        op,
        sc,
        palette,
        us_cine,
        enhanced_ct,
        enhanced_mr,
    ],
)
def test_synthetic_objects_are_valid(make: Callable[[], Dataset], tmp_path: Path) -> None:
    """dciodvfy finds no error in the objects that these tests are made of."""
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    path = write(make(), tmp_path / "a.dcm")
    run = subprocess.run([program, str(path)], capture_output=True, text=True)
    assert [line for line in (run.stdout + run.stderr).splitlines() if line.startswith("Error")] == []


def test_object_without_pixels_of_an_image_class_is_refused(tmp_path: Path) -> None:
    """An image class without pixel data says so."""
    ds = base("1.2.840.10008.5.1.4.1.1.2", "CT")
    assert _assemble([ds], tmp_path).refusals[0].reason == "the object has no pixel data"


def test_a_uid_of_another_representation_is_refused(tmp_path: Path) -> None:
    """A SOP Instance UID that claims to be numbers of two bytes, an odd count of them, ends in a reason."""
    (ds,) = ct_series(1)
    (path,) = write_all([ds], tmp_path)
    uid = str(ds.SOPInstanceUID).encode()
    content = path.read_bytes()
    at = content.rindex(b"\x08\x00\x18\x00UI")
    damaged = content[: at + 4] + b"US" + (len(uid) | 1).to_bytes(2, "little") + content[at + 8 :]
    path.write_bytes(damaged)
    study = assemble(ds.StudyInstanceUID, [path], max_frame_pixels=10**8, max_study_frames=10**4)
    assert study.groups == () and len(study.refusals) == 1
