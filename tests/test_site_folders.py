"""Several site folders read as one: copies, contradictions, names that occur twice."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import site_factories as make

from adapters.slices import Normalisation
from training.cases import SiteData
from training.errors import SiteDataError
from training.site import read_site


def read(*roots: Path) -> SiteData:
    """Read folders without asking whether they suffice for a fit."""
    return read_site(roots, Normalisation("full"), max_frame_pixels=1 << 22, check=False)


def labels(site: SiteData) -> list[list[str]]:
    """The labels of each case's shots."""
    return [[shot.label for shot in case.shots] for case in site.cases]


def reasons(site: SiteData) -> Sequence[str]:
    """Every reason for skipping, each once."""
    return sorted({item.reason for item in site.skipped})


def test_a_study_in_two_folders_is_one_case(tmp_path: Path) -> None:
    """Images of both and annotations of both make one case; each image is used once."""
    images, truth = make.study(1)
    make.save(tmp_path / "first", *images, make.seg(images, truth))
    make.save(tmp_path / "feedback", *images)
    site = read(tmp_path / "first", tmp_path / "feedback")
    assert labels(site) == [["normal"] * 2 + ["abnormal"] * 3 + ["normal"]]
    assert len(site.skipped) == len(images)
    assert all("with the same SOP Instance UID: used once" in reason for reason in reasons(site))
    assert {item.path.split("/")[0] for item in site.skipped} == {"2-feedback"}


def test_an_annotation_finds_its_images_in_another_folder(tmp_path: Path) -> None:
    """A SEG of the second folder outlines the images of the first one."""
    images, truth = make.study(1)
    make.save(tmp_path / "first", *images)
    make.save(tmp_path / "second", make.seg(images, truth))
    (case,) = read(tmp_path / "first", tmp_path / "second").cases
    assert sum(shot.mask is not None for shot in case.shots) == 3


def test_what_two_folders_outline_of_a_study_counts_together(tmp_path: Path) -> None:
    """A slice that the first folder leaves far from its masks is not normal if the second outlines it."""
    images, truth = make.study(1)
    other = np.zeros_like(truth)
    other[0, 5:9, 5:9] = True
    make.save(tmp_path / "first", *images, make.seg(images, truth))
    make.save(tmp_path / "second", *images, make.seg(images, other))
    (case,) = read(tmp_path / "first", tmp_path / "second").cases
    assert [shot.label for shot in case.shots] == ["abnormal"] * 4 + ["normal"]
    assert len({shot.key for shot in case.shots}) == len(case.shots)


def test_normal_in_one_folder_and_outlined_in_another_is_not_used(tmp_path: Path) -> None:
    """A contradiction of two folders is named, and its slices serve neither class."""
    images, truth = make.study(1)
    make.save(tmp_path / "first", *images, make.seg(images, truth))
    make.save(tmp_path / "feedback" / "normal", *images)
    site = read(tmp_path / "first", tmp_path / "feedback")
    assert labels(site) == [["normal"] * 7]
    assert "declared normal but outlined as abnormal: not used" in reasons(site)


def test_normal_in_one_folder_and_abnormal_in_another_is_not_used(tmp_path: Path) -> None:
    """Folders that declare one image normal and abnormal are told so."""
    images = make.study(1, lesion=False, n=2)[0]
    make.save(tmp_path / "a" / "normal", *images)
    make.save(tmp_path / "b" / "abnormal", images[0])
    site = read(tmp_path / "a", tmp_path / "b")
    assert labels(site) == [["normal"]]
    assert "in folders that declare it normal and abnormal: neither is used" in " ".join(reasons(site))


def test_an_image_exported_by_two_systems_is_a_copy(tmp_path: Path) -> None:
    """Other bytes around the same pixels are no other image, and other pixels are one."""
    images = make.study(1, lesion=False, n=2)[0]
    again = [deepcopy(image) for image in images]
    again[0].StationName = "elsewhere"
    again[1].PixelData = bytes(len(again[1].PixelData))
    make.save(tmp_path / "a", *images)
    make.save(tmp_path / "b" / "normal", *again)
    site = read(tmp_path / "a", tmp_path / "b")
    assert labels(site) == [["normal"]]
    found = " ".join(reasons(site))
    assert "used once" in found and "which has other content: neither is used" in found


def test_pictures_of_the_same_name_stay_apart(tmp_path: Path) -> None:
    """normal/1.png of two folders are two cases of two patients, each with its own mask."""
    for name in ("a", "b"):
        make.picture(tmp_path / name / "normal" / "1.png", make.gradient())
        make.picture(tmp_path / name / "abnormal" / "2.png", make.gradient())
        make.picture(tmp_path / name / "mask" / "2.png", make.spot())
    site = read(tmp_path / "a", tmp_path / "b")
    assert site.skipped == ()
    assert [case.key for case in site.cases] == [
        "1-a/abnormal/2.png", "1-a/normal/1.png", "2-b/abnormal/2.png", "2-b/normal/1.png",
    ]  # fmt: skip
    assert len({case.patient_key for case in site.cases}) == 4
    assert sum(shot.mask is not None for case in site.cases for shot in case.shots) == 2


def test_a_csv_names_files_of_its_own_folder(tmp_path: Path) -> None:
    """1.png of a CSV is the file beside it, not that of another folder."""
    for name, label in (("a", "normal"), ("b", "abnormal")):
        make.picture(tmp_path / name / "1.png", make.gradient())
        (tmp_path / name / "labels.csv").write_text(f"file,label,patient\n1.png,{label},p\n")
    site = read(tmp_path / "a", tmp_path / "b")
    assert labels(site) == [["normal"], ["abnormal"]]
    assert len({case.patient_key for case in site.cases}) == 1
    assert site.skipped == ()


def test_the_name_of_a_site_folder_labels_nothing(tmp_path: Path) -> None:
    """As with one folder, only what lies below a site folder says what its images are."""
    for name in ("normal", "mask"):
        make.picture(tmp_path / name / "1.png", make.gradient())
    site = read(tmp_path / "normal", tmp_path / "mask")
    assert site.cases == ()
    assert len(site.skipped) == 2


@pytest.mark.parametrize("second", ["a", "a/b", "absent", "empty"])
def test_a_folder_given_twice_absent_or_empty_is_refused(tmp_path: Path, second: str) -> None:
    """The same folder, one inside another, none or nothing in it: one message that names it."""
    make.picture(tmp_path / "a" / "b" / "1.png", make.gradient())
    (tmp_path / "empty").mkdir()
    with pytest.raises(SiteDataError, match=r"given twice|lies inside|does not exist|is empty") as raised:
        read(tmp_path / "a", tmp_path / second)
    assert str(raised.value).startswith(second.rsplit("/", maxsplit=1)[-1] + ": ")
