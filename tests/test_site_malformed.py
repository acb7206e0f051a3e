"""Malformed site folders: each gives one clear message, and what is sound beside it is still used."""

# A builder's name says what is malformed, and the message beside it in the table what it must give.
# ruff: noqa: D103

from __future__ import annotations

import gzip
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import factories
import numpy as np
import pytest
import site_factories as make
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence

from adapters.slices import Normalisation
from training.errors import SiteDataError
from training.site import read_site, summary_rows

Build = Callable[[Path], object]
LIMIT = 1 << 20


def sound(root: Path) -> tuple[list[Dataset], make.Mask]:
    """A site that can be fitted on: a normal study, and one with a SEG; a third is returned, not written."""
    make.save(root / "normal", *make.study(101, lesion=False, n=3)[0])
    images, truth = make.study(102)
    make.save(root / "lesions", *images, make.seg(images, truth))
    return make.study(103)


def nothing(root: Path) -> None:
    """An empty folder."""


def hidden_only(root: Path) -> None:
    (root / ".DS_Store").write_bytes(b"x")


def no_images(root: Path) -> None:
    (root / "notes.txt").write_text("x")


def all_normal(root: Path) -> None:
    for number in (1, 2):
        make.save(root / "normal", *make.study(number, lesion=False, n=2)[0])


def all_abnormal(root: Path) -> None:
    for name in "ab":
        make.picture(root / f"abnormal/{name}.png", make.gradient())


def one_patient(root: Path) -> None:
    make.save(root / "normal", *make.study(1, lesion=False, n=2, patient="CANARY-1")[0])
    images, truth = make.study(2, patient="CANARY-1")
    make.save(root / "x", *images, make.seg(images, truth))


def unlabelled(root: Path) -> None:
    for number in (1, 2):
        make.save(root, *make.study(number, lesion=False, n=2)[0])


def masks_alone(root: Path) -> None:
    make.picture(root / "mask/a.png", make.spot())


def annotation_alone(root: Path) -> None:
    images, truth = make.study(1)
    make.save(root, make.seg(images, truth))


WHOLE: list[tuple[Build, str]] = [
    (nothing, "folder is empty"),
    (hidden_only, "folder is empty"),
    (no_images, "not a kind of file that holds images"),
    (all_normal, "all 4 usable images are normal; at least some abnormal ones are needed"),
    (all_abnormal, "all 2 usable images are abnormal; at least some normal ones are needed"),
    (one_patient, "every case is of one patient"),
    (unlabelled, "no image is labelled: add masks, a CSV of labels, or folders called normal and abnormal"),
    (masks_alone, "none of the"),
    (annotation_alone, "none of the"),
]


def seg_of_another_size(root: Path) -> None:
    images, truth = sound(root)
    larger = deepcopy(images)
    for ds in larger:
        factories.set_pixels(ds, np.zeros((64, 80), np.uint16), bits=12)
        ds.PixelSpacing = [0.5, 0.5]
    make.save(root / "x", *images, make.seg(larger, truth.repeat(2, axis=1).repeat(2, axis=2)))


def shifted_seg(root: Path) -> None:
    images, truth = sound(root)
    seg = make.seg(images, truth)
    for frame in seg.PerFrameFunctionalGroupsSequence:
        frame.PlanePositionSequence[0].ImagePositionPatient[0] += 0.5
    make.save(root / "x", *images, seg)


def seg_of_another_frame_of_reference(root: Path) -> None:
    images, truth = sound(root)
    seg = make.seg(images, truth)
    seg.FrameOfReferenceUID = factories.uid("elsewhere")
    make.save(root / "x", *images, seg)


def seg_of_absent_images(root: Path) -> None:
    images, truth = sound(root)
    make.save(root / "x", make.seg(images, truth))


def seg_of_nothing(root: Path) -> None:
    images, truth = sound(root)
    make.save(root / "x", *images, make.seg(images, truth & False, omit_empty_frames=False))


def seg_cut_off(root: Path) -> None:
    images, truth = sound(root)
    seg = make.seg(images, truth)
    seg.PixelData = seg.PixelData[:10]
    make.save(root / "x", *images, seg)


def seg_without_segments(root: Path) -> None:
    images, truth = sound(root)
    seg = make.seg(images, truth)
    del seg.SegmentSequence
    make.save(root / "x", *images, seg)


def contours_off_the_slices(root: Path) -> None:
    images, truth = sound(root)
    make.save(root / "x", *images, make.rtstruct(images, truth, shift_mm=0.9))


def contours_of_another_frame_of_reference(root: Path) -> None:
    images, truth = sound(root)
    make.save(
        root / "x", *images, make.rtstruct(images, truth, frame_of_reference=factories.uid("elsewhere"))
    )


def contours_of_absent_images(root: Path) -> None:
    images, truth = sound(root)
    make.save(root / "x", make.rtstruct(images, truth))


def contours_of_two_points(root: Path) -> None:
    images, truth = sound(root)
    ds = make.rtstruct(images, truth)
    ds.ROIContourSequence[0].ContourSequence[0].ContourData = ["1", "2", "3", "4", "5", "6"]
    make.save(root / "x", *images, ds)


def points_only(root: Path) -> None:
    images, truth = sound(root)
    make.save(root / "x", *images, make.rtstruct(images, truth, geometric="POINT"))


def body_outline_only(root: Path) -> None:
    images, truth = sound(root)
    make.save(root / "x", *images, make.rtstruct(images, truth, kind="EXTERNAL"))


def organs_only(root: Path) -> None:
    images, truth = sound(root)
    make.save(root / "x", *images, make.rtstruct(images, truth, kind="ORGAN"))


def seg_of_organs(root: Path) -> None:
    images, truth = sound(root)
    make.save(root / "x", *images, make.seg(images, truth, categories=[make.ANATOMY]))


def report_without_regions(root: Path) -> None:
    images, truth = sound(root)
    ds = make.report(images, make.regions(images[5:6], truth[5:6]))
    for item in ds.iterall():
        if item.keyword == "ContentSequence":
            item.value = [child for child in item.value if child.ValueType != "SCOORD"]
    make.save(root / "x", *images, ds)


def report_of_absent_images(root: Path) -> None:
    images, truth = sound(root)
    make.save(root / "x", make.report(images, make.regions(images[5:6], truth[5:6])))


def report_outside_the_image(root: Path) -> None:
    images, _ = sound(root)
    far = make.region(images[5], "CIRCLE", np.array([[90.0, 90.0], [95.0, 90.0]]))
    make.save(root / "x", *images, make.report(images, [far]))


def duplicate_uid(root: Path) -> None:
    images, _ = sound(root)
    other = deepcopy(images[0])
    other.PixelData = bytes(len(other.PixelData))
    make.save(root / "x", images[0])
    make.save(root / "y", other)


def copied_file(root: Path) -> None:
    sound(root)
    images = make.study(101, lesion=False, n=3)[0]
    make.save(root / "normal" / "again", images[0])


def normal_and_abnormal_copy(root: Path) -> None:
    sound(root)
    make.save(root / "abnormal", make.study(101, lesion=False, n=3)[0][0])


def no_dicom(root: Path) -> None:
    sound(root)
    (root / "IM0001").write_bytes(b"this is no image" * 40)


def cut_off_image(root: Path) -> None:
    sound(root)
    (path,) = make.save(root / "x", make.study(104, n=1)[0][0])
    path.write_bytes(path.read_bytes()[:-900])


def oversized_image(root: Path) -> None:
    sound(root)
    ds = make.study(104, n=1)[0][0]
    ds.Rows = ds.Columns = 60000
    make.save(root / "normal" / "x", ds)


def waveform(root: Path) -> None:
    sound(root)
    make.save(root / "x", factories.base("1.2.840.10008.5.1.4.1.1.9.1.1", "ECG"))


def dose(root: Path) -> None:
    sound(root)
    make.save(root / "x", factories.base("1.2.840.10008.5.1.4.1.1.481.2", "RTDOSE"))


def scout(root: Path) -> None:
    sound(root)
    make.save(root / "x", factories.localizer())


def declared_normal_but_outlined(root: Path) -> None:
    images, truth = sound(root)
    make.save(root / "normal" / "x", *images[5:6], make.seg(images[5:6], truth[5:6]))


def mask_of_another_size(root: Path) -> None:
    sound(root)
    make.picture(root / "abnormal/a.png", make.gradient())
    make.picture(root / "mask/a.png", make.spot(48, 60))


def mask_without_image(root: Path) -> None:
    sound(root)
    make.picture(root / "mask/a.png", make.spot())


def empty_mask(root: Path) -> None:
    sound(root)
    make.picture(root / "abnormal/a.png", make.gradient())
    make.picture(root / "mask/a.png", make.spot() * 0)


def damaged_picture(root: Path) -> None:
    sound(root)
    path = make.picture(root / "abnormal/a.png", make.gradient())
    path.write_bytes(path.read_bytes()[:60])


def damaged_volume(root: Path) -> None:
    sound(root)
    (root / "a.nii.gz").write_bytes(gzip.compress(b"no volume" * 99))


def csv_without_columns(root: Path) -> None:
    sound(root)
    (root / "a.csv").write_text("name,value\nx,1\n")


def csv_not_utf8(root: Path) -> None:
    sound(root)
    (root / "a.csv").write_bytes("file,label\nmäx,normal\n".encode("latin-1"))


def csv_of_unknown_files(root: Path) -> None:
    sound(root)
    (root / "a.csv").write_text("file,label\nx.png,normal\ny.png,abnormal\n")


def csv_of_other_words(root: Path) -> None:
    images, _ = sound(root)
    make.save(root / "normal" / "x", images[0])
    (root / "a.csv").write_text(f"study,label\n{images[0].StudyInstanceUID},maybe\n")


def csv_that_contradicts_itself(root: Path) -> None:
    images, _ = sound(root)
    make.save(root / "x", images[0])
    study = images[0].StudyInstanceUID
    (root / "a.csv").write_text(f"study,label\n{study},normal\n{study},abnormal\n")


def nested_report(root: Path) -> None:
    images, truth = sound(root)
    ds = make.report(images, make.regions(images[5:6], truth[5:6]))
    for _ in range(50):
        item = Dataset()
        item.ValueType, item.ContentSequence = "CONTAINER", ds.ContentSequence
        ds.ContentSequence = DicomSequence([item])
    make.save(root / "x", *images, ds)


PARTS: list[tuple[Build, str]] = [
    (seg_of_another_size, "the mask has 64 × 80 pixels but its image 32 × 40"),
    (shifted_seg, "the mask's grid in space is not the image's"),
    (seg_of_another_frame_of_reference, "its frame of reference is not that of the images"),
    (seg_of_absent_images, "it refers to images that are not in the folder"),
    (seg_of_nothing, "it outlines nothing"),
    (seg_cut_off, "the pixel data is cut off"),
    (seg_without_segments, "the SEG describes no segment"),
    (contours_off_the_slices, "contours lie off the slices that are in the folder"),
    (contours_of_another_frame_of_reference, "its frame of reference is not that of the images"),
    (contours_of_absent_images, "its images are not in the folder"),
    (contours_of_two_points, "a contour does not have three or more points"),
    (points_only, "the structure set has no closed contour"),
    (body_outline_only, "every ROI is an organ, a body outline"),
    (organs_only, "every ROI is an organ, a body outline"),
    (seg_of_organs, "every segment is plain anatomy"),
    (report_without_regions, "the report outlines no region of an image"),
    (report_of_absent_images, "it refers to images that are not in the folder"),
    (report_outside_the_image, "its coordinates lie outside the image"),
    (nested_report, "nested too deeply"),
    (duplicate_uid, "its SOP Instance UID is also that of"),
    (copied_file, "with the same SOP Instance UID: used once"),
    (normal_and_abnormal_copy, "in folders that declare it normal and abnormal"),
    (no_dicom, "DICOM"),
    (cut_off_image, "the pixel data is cut off"),
    (oversized_image, "over the limit of 1048576 pixel values"),
    (waveform, "not an image that can be trained on"),
    (dose, "not an image that can be trained on"),
    (scout, "a localizer (scout)"),
    (declared_normal_but_outlined, "declared normal but outlined as abnormal: not used"),
    (mask_of_another_size, "the mask has 48 × 60 pixels but its image 24 × 30"),
    (mask_without_image, "a mask without an image of its name"),
    (empty_mask, "the mask of an image declared abnormal is empty"),
    (damaged_picture, "the picture cannot be read"),
    (damaged_volume, "the NIfTI file is damaged"),
    (csv_without_columns, "the CSV needs a column study, series, instance or file"),
    (csv_not_utf8, "the CSV is not UTF-8"),
    (csv_of_unknown_files, "2 rows, the first in line 2: names no image"),
    (csv_of_other_words, "row 2: names nothing, or a label that is neither normal nor abnormal"),
    (csv_that_contradicts_itself, "labelled normal and abnormal: not used"),
]


@pytest.mark.parametrize(("build", "message"), WHOLE, ids=lambda v: getattr(v, "__name__", ""))
def test_a_folder_that_cannot_be_fitted_on_is_refused(tmp_path: Path, build: Build, message: str) -> None:
    """Nothing usable, one class or one patient: one message that says what is missing."""
    build(tmp_path)
    with pytest.raises(SiteDataError) as raised:
        read_site(tmp_path, Normalisation("full"), max_frame_pixels=LIMIT)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "CANARY" not in str(raised.value)


@pytest.mark.parametrize(("build", "message"), PARTS, ids=lambda v: getattr(v, "__name__", ""))
def test_a_part_that_cannot_be_used_is_named(tmp_path: Path, build: Build, message: str) -> None:
    """One message for what is malformed; the sound cases beside it are used, and it makes no normals."""
    build(tmp_path)
    site = read_site(tmp_path, Normalisation("full"), max_frame_pixels=LIMIT)
    found = [item.reason for item in site.skipped if message in item.reason]
    assert len(found) == 1
    assert len(site.skipped) <= 2
    assert sum(case.abnormal for case in site.cases) == 1
    # Six of the sound cases; the third study's far slices would make nine.
    normal = sum(shot.label == "normal" for case in site.cases for shot in case.shots)
    assert normal == {normal_and_abnormal_copy: 5, csv_of_other_words: 7}.get(build, 6)
    assert any(name == "skipped" and message in text for name, text in summary_rows(site))
    assert "CANARY" not in repr(site.skipped)
