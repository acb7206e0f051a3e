"""Site data: what is understood of a folder, what is not used, and why."""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import factories
import highdicom as hd
import numpy as np
import PIL.Image
import pytest
import SimpleITK as sitk
import site_factories as make
import test_seg
from analyses import make_analysis, make_group, make_job, painted
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset

from adapters.slices import Normalisation
from daemon.seg import encode_seg
from daemon.sr import encode_sr
from training.cases import Case, SiteData
from training.site import read_site, summary_rows

FULL = Normalisation("full")
LIMIT = 1 << 22
IMAGES = Path(os.environ.get("SITE_IMAGES", Path(__file__).parents[2] / "shared" / "images"))


def read(root: Path, *, check: bool = False, margin_slices: int = 2, lesions: Sequence[str] = ()) -> SiteData:
    """Read a folder with the limits of the tests."""
    return read_site(
        root, FULL, margin_slices=margin_slices, max_frame_pixels=LIMIT, check=check, lesions=lesions
    )


def masks_of(case: Case, slices: int) -> NDArray[np.bool_]:
    """The masks of a case's abnormal shots, in order, as many as expected."""
    found = [shot.mask for shot in case.shots if shot.mask is not None]
    assert len(found) == slices
    return np.stack(found)


def reasons(site: SiteData) -> str:
    """Every reason for skipping."""
    return "\n".join(item.reason for item in site.skipped)


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
@pytest.mark.parametrize("orientation", ["axial", "oblique"])
def test_a_seg_comes_back_as_its_masks(tmp_path: Path, kind: str, orientation: str) -> None:
    """Binary, fractional and label map SEGs give the very masks, on the slices that they refer to."""
    images, truth = make.study(1, orientation=orientation)
    make.save(tmp_path, *images, make.seg(images, truth, kind=kind))
    (case,) = read(tmp_path).cases
    assert np.array_equal(masks_of(case, 3), truth[truth.any(axis=(1, 2))])
    assert case.sources == ("SEG",)
    assert (case.modality, case.body_part) == ("CT", "CHEST")


def test_a_fraction_counts_from_one_half(tmp_path: Path) -> None:
    """Of a fractional SEG the pixels of at least one half are the mask."""
    images, truth = make.study(1)
    fractions = np.where(truth, 0.75, 0.25).astype(np.float32)
    fractions[~truth.any(axis=(1, 2))] = 0
    make.save(tmp_path, *images, make.seg(images, fractions, kind="FRACTIONAL"))
    (case,) = read(tmp_path).cases
    assert np.array_equal(masks_of(case, 3), truth[4:7])


@pytest.mark.parametrize("references", [True, False])
@pytest.mark.parametrize("orientation", ["axial", "oblique"])
def test_contours_are_filled_in_the_plane_of_the_image(
    tmp_path: Path, references: bool, orientation: str
) -> None:
    """Contours with holes give the masks, by the image referred to or by frame of reference alone."""
    images, truth = make.study(1, orientation=orientation)
    truth[5, 13:15, 16:18] = False
    make.save(tmp_path, *images, make.rtstruct(images, truth, references=references))
    (case,) = read(tmp_path).cases
    assert np.array_equal(masks_of(case, 3), truth[4:7])
    assert case.sources == ("RTSTRUCT",)


@pytest.mark.parametrize("space", [False, True])
def test_regions_of_a_report_are_filled(tmp_path: Path, space: bool) -> None:
    """SCOORD and SCOORD3D outlines of a TID 1500 report give the masks."""
    images, truth = make.study(1, orientation="oblique")
    make.save(tmp_path, *images, make.report(images, make.regions(images, truth, space=space)))
    (case,) = read(tmp_path).cases
    assert np.array_equal(masks_of(case, 3), truth[4:7])
    assert case.sources == ("SR",)


def test_circles_and_ellipses_have_an_area_and_points_have_none(tmp_path: Path) -> None:
    """A circle and an ellipse are filled; a point is named as what has no area."""
    images, _ = make.study(1)
    circle = make.region(images[2], "CIRCLE", np.array([[20.0, 15.0], [24.0, 15.0]]))
    corners = np.array([[14.0, 15.0], [26.0, 15.0], [20.0, 12.0], [20.0, 18.0]])
    ellipse = make.region(images[7], "ELLIPSE", corners)
    point = make.region(images[5], "POINT", np.array([[3.0, 3.0]]))
    make.save(tmp_path, *images, make.report(images, [circle, ellipse, point]))
    site = read(tmp_path)
    masks = masks_of(site.cases[0], 2)
    assert masks[0].sum() == pytest.approx(np.pi * 16, rel=0.06)
    assert masks[1].sum() == pytest.approx(np.pi * 18, rel=0.06)
    assert "1 points or open lines, which have no area" in reasons(site)


def test_a_report_may_refer_to_a_segment(tmp_path: Path) -> None:
    """A frame that a report names is used from the SEG in the folder, and makes no other slice normal."""
    images, truth = make.study(1)
    seg = make.seg(images, truth, categories=[make.ANATOMY])
    source = hd.sr.SourceImageForSegmentation(images[4].SOPClassUID, images[4].SOPInstanceUID)
    reference = hd.sr.ReferencedSegmentationFrame(seg.SOPClassUID, seg.SOPInstanceUID, 1, 1, source)
    make.save(tmp_path, *images, seg, make.report(images, [reference], [seg]))
    (case,) = read(tmp_path).cases
    assert case.sources == ("SR",)
    assert [shot.label for shot in case.shots] == ["abnormal"]


def test_anatomy_beside_a_lesion_is_no_anomaly(tmp_path: Path) -> None:
    """A SEG of an organ and a lesion gives the lesion alone."""
    images, truth = make.study(1)
    labels = truth.astype(np.uint8)
    labels[:, 25:28, 10:20] = 2
    make.save(tmp_path, *images, make.seg(images, labels, categories=[make.CATEGORY, make.ANATOMY]))
    site = read(tmp_path)
    assert np.array_equal(masks_of(site.cases[0], 3), truth[4:7])
    assert "1 segments of plain anatomy" in reasons(site)


@pytest.mark.parametrize("category", [make.ANATOMY, make.OLD_ANATOMY, make.TISSUE], ids=str)
def test_a_seg_of_organs_alone_outlines_no_lesion(tmp_path: Path, category: hd.sr.CodedConcept) -> None:
    """Neither abnormal images nor normal ones come of it, and the dry run says what to do."""
    images, truth = make.study(1)
    make.save(tmp_path, *images, make.seg(images, truth, categories=[category]))
    site = read(tmp_path)
    assert site.cases == ()
    assert "every segment is plain anatomy: not used; name those that are lesions with --lesion" in reasons(
        site
    )
    assert any(key == "skipped" and "--lesion" in text for key, text in summary_rows(site))


def test_tissue_of_no_kind_is_an_outline_like_any_other(tmp_path: Path) -> None:
    """3D Slicer calls a segment that nobody coded "tissue" of type "tissue"."""
    images, truth = make.study(1)
    seg = make.seg(images, truth, categories=[make.TISSUE])
    seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue = make.TISSUE.value
    make.save(tmp_path, *images, seg)
    assert np.array_equal(masks_of(read(tmp_path).cases[0], 3), truth[4:7])


@pytest.mark.parametrize("kind", ["ORGAN", "AVOIDANCE", "EXTERNAL"])
def test_a_structure_set_of_organs_alone_outlines_no_lesion(tmp_path: Path, kind: str) -> None:
    """Organs at risk are no anomaly, with or without a lesion beside them."""
    images, truth = make.study(1)
    make.save(tmp_path, *images, make.rtstruct(images, truth, kind=kind))
    site = read(tmp_path)
    assert site.cases == ()
    assert "name those that are lesions with --lesion (ROI Name)" in reasons(site)


@pytest.mark.parametrize("form", ["SEG", "RTSTRUCT"])
def test_lesions_may_be_named(tmp_path: Path, form: str) -> None:
    """A segment or ROI whose name matches is a lesion whatever its type says; no name is printed."""
    images, truth = make.study(1)
    organ = make.seg(images, truth, categories=[make.ANATOMY])
    organ.SegmentSequence[0].SegmentLabel = "CANARY ROI"
    other = organ if form == "SEG" else make.rtstruct(images, truth, kind="ORGAN")
    make.save(tmp_path, *images, other)
    assert read(tmp_path, lesions=["GTV*"]).cases == ()
    site = read(tmp_path, lesions=["GTV*", "canary *"])
    assert np.array_equal(masks_of(site.cases[0], 3), truth[4:7])
    assert site.skipped == ()


def test_beside_named_lesions_nothing_else_is_one(tmp_path: Path) -> None:
    """Of a SEG whose second segment is named the first one is not used."""
    images, truth = make.study(1)
    labels = truth.astype(np.uint8)
    labels[:, 25:28, 10:20] = 2
    make.save(tmp_path, *images, make.seg(images, labels, categories=[make.CATEGORY, make.ANATOMY]))
    site = read(tmp_path, lesions=["segment 2"])
    assert np.array_equal(masks_of(site.cases[0], len(images)), labels == 2)
    assert "1 segments beside those that --lesion names: not used" in reasons(site)


def test_only_slices_far_from_every_mask_are_normal(tmp_path: Path) -> None:
    """With a margin of two, slices 4 to 6 are abnormal, 0, 1 and 9 normal, the four between unused."""
    images, truth = make.study(1)
    make.save(tmp_path, *images, make.seg(images, truth))
    (case,) = read(tmp_path).cases
    assert [shot.label for shot in case.shots] == ["normal"] * 2 + ["abnormal"] * 3 + ["normal"]
    assert case.unused == 4
    (wide,) = read(tmp_path, margin_slices=9).cases
    assert {shot.label for shot in wide.shots} == {"abnormal"}


def test_a_report_of_one_slice_makes_no_other_slice_normal(tmp_path: Path) -> None:
    """An outline on one slice says nothing of how far the lesion reaches."""
    images, truth = make.study(1)
    make.save(tmp_path, *images, make.report(images, make.regions(images[5:6], truth[5:6])))
    (case,) = read(tmp_path).cases
    assert [shot.label for shot in case.shots] == ["abnormal"]
    assert case.unused == 9


def test_a_study_declared_normal_is_normal_and_an_unlabelled_one_is_not(tmp_path: Path) -> None:
    """A folder called normal labels its slices; a study that nothing labels is skipped by name."""
    normal, _ = make.study(1, lesion=False)
    unknown, _ = make.study(2, lesion=False)
    make.save(tmp_path / "x" / "normal" / "y", *normal)
    make.save(tmp_path / "other", *unknown)
    site = read(tmp_path)
    assert [len(case.shots) for case in site.cases] == [10]
    assert site.cases[0].sources == ("folder",)
    assert "no label or mask says which of this study's 10 images are normal" in reasons(site)


def test_a_folder_called_abnormal_labels_radiographs_but_not_each_slice_of_a_stack(tmp_path: Path) -> None:
    """A radiograph in abnormal/ is abnormal without a mask; of a stack it isn't known which slice is."""
    stack, _ = make.study(1)
    make.save(tmp_path / "abnormal", *stack, factories.dx(series="one"), factories.dx(series="two"))
    site = read(tmp_path)
    (case,) = site.cases
    assert [(shot.label, shot.mask) for shot in case.shots] == [("abnormal", None)] * 2
    assert "no label or mask says which of this study's 10 images" in reasons(site)


def test_contours_that_fail_make_no_slice_of_their_series_normal(tmp_path: Path) -> None:
    """Where one of two annotations can't be read, only what the other outlines is used."""
    images, truth = make.study(1)
    off = make.rtstruct(images[6:7], truth[6:7], shift_mm=0.9)
    make.save(tmp_path, *images, make.seg(images[:5], truth[:5]), off)
    (case,) = read(tmp_path).cases
    assert [shot.label for shot in case.shots] == ["abnormal"]


def test_patients_are_hashed_and_cases_of_one_patient_share_the_key(tmp_path: Path) -> None:
    """Two studies of one patient share a key; without a patient the case stands for itself."""
    for number, patient in ((1, "CANARY-A"), (2, "CANARY-A"), (3, "")):
        make.save(tmp_path / "normal", *make.study(number, lesion=False, n=2, patient=patient)[0])
    site = read(tmp_path)
    keys = [case.patient_key for case in site.cases]
    assert len(set(keys)) == 2
    assert "CANARY" not in repr(site)
    assert sum(case.patient_key == case.key for case in site.cases) == 1
    assert ("patient unknown", "1 cases, each counted as a patient of its own") in summary_rows(site)
    assert read(tmp_path).cases[0].key == site.cases[0].key


def test_csv_labels_studies_series_and_instances(tmp_path: Path) -> None:
    """The most specific row wins, and the patient column replaces the Patient ID."""
    (first, _), (second, _) = make.study(1, lesion=False, n=3), make.study(2, lesion=False, n=3)
    make.save(tmp_path / "a", *first, *second)
    rows = [
        "study;series;instance;label;patient",
        f"{first[0].StudyInstanceUID};;;normal;p1",
        f";;{first[1].SOPInstanceUID};abnormal;",
        f";{second[0].SeriesInstanceUID};;abnormal;p1",
        f";;{second[2].SOPInstanceUID};normal;",
        "1.2.3;;;normal;p9",
    ]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    site = read(tmp_path)
    labels = sorted([shot.label for shot in case.shots] for case in site.cases)
    assert labels == [["normal"], ["normal", "abnormal", "normal"]]
    assert len({case.patient_key for case in site.cases}) == 1
    assert "row 6: names no image" in reasons(site)


def test_pictures_and_masks_pair_by_name(tmp_path: Path) -> None:
    """x_mask.png, mask/x.png, masks/x.png and a mask folder beside abnormal/ all find their picture."""
    for image, mask in (
        ("a/one.png", "a/one_mask.png"),
        ("b/two.jpg", "b/mask/two.png"),
        ("c/three.png", "c/masks/three.png"),
        ("d/abnormal/four.png", "d/mask/four.png"),
        ("test/Ungood/img/five.png", "test/Ungood/label/five.png"),
    ):
        make.picture(tmp_path / image, make.gradient())
        make.picture(tmp_path / mask, make.spot())
    make.picture(tmp_path / "test/good/img/six.png", make.gradient())
    make.picture(tmp_path / "test/good/label/six.png", make.spot() * 0)
    make.picture(tmp_path / "train/good/six.png", np.stack([make.gradient()] * 3, axis=-1))
    make.picture(tmp_path / "d/normal/four16.png", make.gradient().astype(np.uint16) * 100)
    site = read(tmp_path, check=True)
    assert site.skipped == ()
    found = {case.key: case.shots[0] for case in site.cases}
    assert {k for k, shot in found.items() if shot.label == "normal"} == {
        "test/good/img/six.png", "train/good/six.png", "d/normal/four16.png",
    }  # fmt: skip
    for shot in found.values():
        assert shot.load().shape == (24, 30)
        if shot.label == "abnormal":
            assert shot.mask is not None
            assert np.array_equal(shot.mask, make.spot() > 0)


def nifti(path: Path, values: NDArray[np.generic], image: Dataset, *, flip: bool = False) -> None:
    """Write a volume on the grid of a DICOM series, stored with rows upwards if told to."""
    itk = sitk.GetImageFromArray(values)
    cosines = np.array(image.ImageOrientationPatient, dtype=np.float64)
    direction = np.stack([cosines[:3], cosines[3:], np.cross(cosines[:3], cosines[3:])], axis=1)
    itk.SetDirection(direction.ravel().tolist())
    itk.SetOrigin([float(v) for v in image.ImagePositionPatient])
    itk.SetSpacing([1.0, 1.0, 2.0])
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.Flip(itk, [False, True, False]) if flip else itk, str(path))


def test_nifti_masks_beside_volumes_and_dicom(tmp_path: Path) -> None:
    """A mask finds the volume of its name, and the DICOM series on its grid, whichever way it is stored."""
    images, truth = make.study(1)
    volume = np.random.default_rng(0).integers(0, 99, truth.shape).astype(np.int16)
    nifti(tmp_path / "v/scan_flair.nii.gz", volume, images[0])
    nifti(tmp_path / "v/scan_seg.nii.gz", truth.astype(np.uint8), images[0], flip=True)
    make.save(tmp_path / "d", *images)
    nifti(tmp_path / "d/labels/anything.nii", truth.astype(np.uint8), images[0], flip=True)
    site = read(tmp_path)
    assert len(site.cases) == 2
    for case in site.cases:
        assert case.sources == ("NIfTI",)
        assert np.array_equal(masks_of(case, 3), truth[4:7])
    volumes = next(case for case in site.cases if case.key.startswith("v/"))
    shown = volumes.shots[0].load()
    expected = (volume[0] - volume[0].min()) / np.ptp(volume[0])
    assert np.allclose(shown, expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["ct", "oblique-mr", "enhanced-mr", "enhanced-mr-shuffled", "dx", "us-cine"])
def test_our_own_results_count_only_when_a_person_corrected_them(tmp_path: Path, kind: str) -> None:
    """SEG and SR as the daemon sent them are skipped; corrected or verified they are annotations."""
    sources, boxes = test_seg.SOURCES[kind]
    group = make_group(sources(), tmp_path / "sent")
    analysis, job = make_analysis(group, boxes), make_job()
    segs = encode_seg(analysis, job)
    report = encode_sr([analysis], segs, job)
    corrected, verified = tmp_path / "corrected", tmp_path / "verified"
    for folder in (corrected, verified):
        make.save(folder, *{str(ds.SOPInstanceUID): ds for ds in sources()}.values())
    for item in segs:
        ds = dcmread(BytesIO(item.content))
        make.save(tmp_path / "sent", ds)
        for segment in ds.SegmentSequence:
            segment.SegmentAlgorithmType = "SEMIAUTOMATIC"
        make.save(corrected, ds)
    ds = dcmread(BytesIO(report.content))
    make.save(tmp_path / "sent", ds)
    ds.VerificationFlag = "VERIFIED"
    make.save(verified, ds)
    sent = reasons(read(tmp_path / "sent"))
    assert "that no person corrected" in sent
    assert "that no person verified" in sent
    drawn = painted(group, boxes)
    site = read(corrected)
    found = masks_of(site.cases[0], int(drawn.any(axis=(1, 2)).sum()))
    assert np.array_equal(found, drawn[drawn.any(axis=(1, 2))])
    assert site.cases[0].sources == ("SEG",)
    outlined = [shot.mask for shot in read(verified).cases[0].shots]
    assert outlined
    assert all(any(np.array_equal(mask, truth) for truth in drawn) for mask in outlined if mask is not None)


def picture_of(task: str, name: str, kind: str) -> NDArray[np.uint8]:
    """A real picture or mask of the shared tasks."""
    return np.asarray(PIL.Image.open(IMAGES / task / "train" / kind / name).convert("L"))


@pytest.mark.shared
@pytest.mark.parametrize("task", ["brain_tumour_mri", "breast_us"])
def test_annotations_of_real_images_read_back_as_they_were_drawn(tmp_path: Path, task: str) -> None:
    """SEG, RTSTRUCT and SR of real lesions, as oblique DICOM slices, give back the masks."""
    folder = IMAGES / task / "train"
    if not folder.is_dir():
        pytest.skip("the shared images are absent (SITE_IMAGES)")
    sized: dict[tuple[int, ...], list[str]] = {}
    for file in sorted((folder / "mask").glob("*.png")):
        if (folder / "abnormal" / file.name).exists():
            sized.setdefault(picture_of(task, file.name, "mask").shape, []).append(file.name)
    names = max(sized.values(), key=len)[:12]
    truth = np.stack([picture_of(task, name, "mask") > 127 for name in names])
    images = make.image_study(task, [picture_of(task, name, "abnormal") for name in names], "CANARY")
    make.save(tmp_path / "seg", *images, make.seg(images, truth))
    make.save(tmp_path / "label", *images, make.seg(images, truth, kind="LABELMAP"))
    make.save(tmp_path / "rt", *images, make.rtstruct(images, truth))
    make.save(tmp_path / "sr", *images, make.report(images, make.regions(images, truth)))
    make.save(tmp_path / "sr3", *images, make.report(images, make.regions(images, truth, space=True)))
    for kind in ("seg", "label", "rt", "sr", "sr3"):
        site = read(tmp_path / kind)
        assert site.skipped == ()
        found = masks_of(site.cases[0], len(names))
        if kind in ("seg", "label", "rt"):
            assert np.array_equal(found, truth), kind
            continue
        # An outline of a report knows no hole, so that it may fill one, and nothing else.
        whole = np.stack([filled(mask) for mask in truth])
        assert np.array_equal(found & truth, truth), kind
        assert not (found & ~whole).any(), kind
    shown = site.cases[0].shots[0].load()
    original = picture_of(task, names[0], "abnormal").astype(np.float32)
    assert np.allclose(shown, (original - original.min()) / np.ptp(original), atol=1e-6)


def filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask without its holes."""
    itk = sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8))
    holes_filled = sitk.BinaryFillhole(itk, foregroundValue=1)
    return np.asarray(sitk.GetArrayFromImage(holes_filled)[1:-1, 1:-1] > 0)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("task", "normal", "abnormal", "patients"),
    [("brain_tumour_mri", 63, 132, 2), ("breast_us", 26, 24, None), ("cxr_pneumonia_child", 64, 64, None)],
)
def test_real_folders_are_understood(
    tmp_path: Path, task: str, normal: int, abnormal: int, patients: int | None
) -> None:
    """The shared tasks' training folders with their manifest give every image, mask and patient."""
    if not (IMAGES / task).is_dir():
        pytest.skip("the shared images are absent (SITE_IMAGES)")
    for file in (IMAGES / task / "train").rglob("*.png"):
        link = tmp_path / "site" / file.relative_to(IMAGES / task)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    (tmp_path / "site" / "manifest.csv").symlink_to(IMAGES / task / "manifest.csv")
    site = read(tmp_path / "site", check=True)
    shots = [shot for case in site.cases for shot in case.shots]
    assert [sum(s.label == k for s in shots) for k in ("normal", "abnormal")] == [normal, abnormal]
    has_masks = task != "cxr_pneumonia_child"
    assert sum(shot.mask is not None for shot in shots) == (abnormal if has_masks else 0)
    if patients:
        assert len({case.patient_key for case in site.cases}) == patients
    assert all(case.patient_key != case.key for case in site.cases)
    assert "names no image" in reasons(site)
    assert len(site.skipped) == 1
