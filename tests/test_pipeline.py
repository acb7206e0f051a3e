"""analyse() on small studies of every shape: what it scores, what it says, and where findings lie."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import factories
import factories_enhanced
import highdicom as hd
import numpy as np
import pytest
from analyses import make_job
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless

from adapters.backbone import BackboneSpec, load_backbone
from adapters.bundle import AdapterBundle
from adapters.score import SliceScore
from adapters.scorer import Scorer
from adapters.slices import Normalisation, Slice, load_slice
from daemon import pipeline
from daemon.phantom import make_case, write_case
from daemon.pipeline import StudyResult, analyse, score_group
from daemon.results import ResultObject
from daemon.serving import OneBundle
from daemon.settings import Settings
from daemon.study import FrameGroup, assemble

SEG = "1.2.840.10008.5.1.4.1.1.66.4"
# Off centre along each axis, so that no flip and no reversed order maps it onto itself.
LESION = (1.0, 11.0, 21.0, 4.5)


class BrightnessScorer:
    """Scores what is brighter than the middle of a window, exactly: what is tested is where it ends up."""

    def __init__(self, bundle: AdapterBundle, low: float, high: float) -> None:
        window = Normalisation(kind="window", low=low, high=high, size_px=64)
        self.bundle = replace(bundle, normalisation=window, modality="")

    def score(self, slices: Iterator[Slice]) -> Iterator[SliceScore]:
        """Score 1 for the lesion, 0 for the rest."""
        for item in slices:
            bright = (item.pixels > 0.5).astype(np.float32)
            yield SliceScore(
                item.sop_instance_uid, item.frame_number, float(bright.max()), lambda m=bright: m
            )


# The factories' body is 40 and its lesion 200, in HU for CT and 1000 higher for MR.
CT_WINDOW, MR_WINDOW = (40.0, 200.0), (1040.0, 1200.0)


@pytest.fixture(scope="module")
def real_scorer(phantom_bundle: AdapterBundle) -> Scorer:
    """Backbone and adapters as the daemon has them."""
    return Scorer(load_backbone(BackboneSpec(), "cpu", "fp32"), phantom_bundle, batch_size=4)


def _analyse(datasets: Sequence[Dataset], folder: Path, scorer: object) -> StudyResult:
    paths = factories.write_all(datasets, folder)
    study = assemble(datasets[0].StudyInstanceUID, paths, max_frame_pixels=10**8, max_study_frames=10**4)
    return analyse(study, OneBundle(scorer), make_job(), Settings())  # type: ignore[arg-type]


def _groups(ds: Dataset, paths: Sequence[Path]) -> tuple[FrameGroup, ...]:
    """The frame groups of the study that this data set belongs to."""
    return assemble(ds.StudyInstanceUID, paths, max_frame_pixels=10**8, max_study_frames=10**4).groups


def _broken(ds: Dataset) -> Dataset:
    """The same image with a code stream that no decoder reads."""
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    ds.PixelData = encapsulate([b"no code stream at all " * 4])
    ds["PixelData"].VR = "OB"
    return ds


def _read(item: ResultObject) -> Dataset:
    return dcmread(BytesIO(item.content))


def _words(report: Dataset) -> str:
    """Every text and code meaning of an SR, in order."""
    found: list[str] = []
    todo = [report]
    while todo:
        item = todo.pop(0)
        found.append(str(item.get("TextValue", "")))
        found += [code.CodeMeaning for code in item.get("ConceptCodeSequence", [])]
        todo = [*item.get("ContentSequence", []), *todo]
    return "\n".join(found)


def _report(result: StudyResult) -> Dataset:
    return _read(result.objects[-1])


def _in_patient(indices: NDArray[np.int64], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((affine @ np.c_[indices, np.ones(len(indices))].T).T[:, :3])


def _seg_points_mm(result: StudyResult) -> NDArray[np.float64]:
    """Patient coordinates of every segmented voxel, from the SEG's own geometry alone."""
    (item,) = [item for item in result.objects if item.sop_class_uid == SEG]
    volume = hd.seg.segread(BytesIO(item.content)).get_volume(combine_segments=True)
    return _in_patient(np.argwhere(np.asarray(volume.array) > 0), np.asarray(volume.affine))


def _true_points_mm(
    n: int, rows: int, columns: int, orientation: str, spacing: tuple[float, float, float]
) -> NDArray[np.float64]:
    """Patient coordinates of every voxel of the lesion, by the plane formula (PS3.3 C.7.6.2.1.1)."""
    cosines = np.array(factories.cosines(orientation))
    origins = factories.positions(n, orientation, spacing[0])
    points = []
    for z in range(n):
        for y in range(rows):
            for x in range(columns):
                distance = np.array([z - LESION[0], y - LESION[1], x - LESION[2]]) * spacing
                if distance @ distance <= LESION[3] ** 2:
                    points.append(origins[z] + cosines[:3] * x * spacing[2] + cosines[3:] * y * spacing[1])
    return np.array(points)


def _same_place(found: NDArray[np.float64], truth: NDArray[np.float64]) -> None:
    """Each found voxel is a true one and the other way round, to a tenth of a millimetre."""
    distances = np.linalg.norm(found[:, None] - truth[None], axis=2)
    assert len(found) == len(truth)
    assert distances.min(axis=1).max() < 0.1
    assert distances.min(axis=0).max() < 0.1


@pytest.mark.parametrize("reverse", [False, True], ids=["numbered upwards", "numbered downwards"])
@pytest.mark.parametrize("make", ["ct", "mr", "oblique mr", "enhanced mr", "enhanced ct"])
def test_a_lesion_lies_in_the_patient_where_it_is(
    make: str, reverse: bool, tmp_path: Path, phantom_bundle: AdapterBundle
) -> None:
    """No axis swapped, flipped or reversed, voxel for voxel in mm, whatever the order of the slices."""
    n, rows, columns, spacing = 6, 32, 40, (3.0, 1.5, 1.0)
    orientation = "oblique" if make in ("oblique mr", "enhanced mr") else "axial"
    kwargs = {"orientation": orientation, "spacing": spacing, "lesion": LESION}
    if make.startswith("enhanced"):
        maker = factories_enhanced.enhanced_mr if "mr" in make else factories_enhanced.enhanced_ct
        datasets = [maker(n, rows, columns, **kwargs)]  # type: ignore[arg-type]
    else:
        maker = factories.ct_series if make == "ct" else factories.mr_series  # type: ignore[assignment]
        datasets = maker(n, rows, columns, **kwargs)  # type: ignore[arg-type, assignment]
    if reverse:
        for number, ds in enumerate(reversed(datasets), 1):
            ds.InstanceNumber = number
    window = MR_WINDOW if "mr" in make else CT_WINDOW
    result = _analyse(datasets[::-1], tmp_path, BrightnessScorer(phantom_bundle, *window))
    assert result.refusals == ()
    _same_place(_seg_points_mm(result), _true_points_mm(n, rows, columns, orientation, spacing))


def test_one_undecodable_slice_is_said_and_moves_nothing(
    tmp_path: Path, phantom_bundle: AdapterBundle
) -> None:
    """Five of six slices are scored; the SR says so, and the lesion stays where it is."""
    n, rows, columns, spacing = 6, 32, 40, (3.0, 1.5, 1.0)
    datasets = factories.ct_series(n, rows, columns, spacing=spacing, lesion=LESION)
    broken = _broken(datasets[4])
    result = _analyse(datasets, tmp_path, BrightnessScorer(phantom_bundle, *CT_WINDOW))
    (analysis,) = result.analyses
    assert (analysis.scored, analysis.total) == (5, 6)
    assert [score is None for score in analysis.slice_scores] == [False] * 4 + [True, False]
    assert [refusal.sop_instance_uid for refusal in result.refusals] == [broken.SOPInstanceUID]
    words = _words(_report(result))
    assert "5 of 6" in words
    assert result.refusals[0].reason.split(":")[0] in words
    _same_place(_seg_points_mm(result), _true_points_mm(n, rows, columns, "axial", spacing))


@pytest.mark.parametrize("decoders", [2, 4])
def test_reading_ahead_changes_no_bit(decoders: int, tmp_path: Path, real_scorer: Scorer) -> None:
    """Several decoders give the scores, maps and refusals of one, a file that fails among them."""
    datasets = [*factories.ct_series(9, 32, 40, lesion=LESION), factories_enhanced.enhanced_ct(5, 32, 40)]
    _broken(datasets[3])
    paths = factories.write_all(datasets, tmp_path)
    for group in (g for ds in (datasets[0], datasets[-1]) for g in _groups(ds, paths)):
        alone, several = (
            score_group(group, real_scorer, Settings.model_validate({"model": {"decoders": n}}))
            for n in (1, decoders)
        )
        assert len(alone[0]) in (5, 8)
        assert list(several[0]) == list(alone[0])
        assert several[1] == alone[1]
        for key, score in alone[0].items():
            assert several[0][key].score == score.score
            assert np.array_equal(several[0][key].map, score.map)


def test_frames_of_one_object_are_read_one_after_another(
    tmp_path: Path, real_scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share a header that is parsed as it is looked at; frames of different files are read at once."""
    together: dict[bool, int] = {}
    for one_object in (True, False):
        datasets = (
            [factories_enhanced.enhanced_ct(6, 32, 40)] if one_object else factories.ct_series(6, 32, 40)
        )
        (group,) = _groups(datasets[0], factories.write_all(datasets, tmp_path / str(one_object)))
        reading, most, lock = [0], [0], threading.Lock()

        def slowly(
            *args: Any, reading: list[int] = reading, most: list[int] = most, lock: Any = lock, **kwargs: Any
        ) -> Slice:
            with lock:
                reading[0] += 1
                most[0] = max(most[0], reading[0])
            time.sleep(0.02)
            try:
                return load_slice(*args, **kwargs)
            finally:
                with lock:
                    reading[0] -= 1

        monkeypatch.setattr(pipeline, "load_slice", slowly)
        scores, _ = score_group(group, real_scorer, Settings.model_validate({"model": {"decoders": 3}}))
        assert len(scores) == 6
        together[one_object] = most[0]
    assert together[True] == 1
    assert together[False] > 1


def test_nothing_decodable_gives_an_undetermined_report(tmp_path: Path, real_scorer: Scorer) -> None:
    """No slice can be decoded: no SEG, an SR that says undetermined and why, and no claim of normality."""
    result = _analyse([_broken(ds) for ds in factories.ct_series(3)], tmp_path, real_scorer)
    assert result.analyses == ()
    assert len(result.refusals) == 3
    (item,) = result.objects
    words = _words(_read(item)).lower()
    assert "undetermined" in words
    assert result.refusals[0].reason.lower().split(":")[0] in words
    assert "no abnormality" not in words and "absent" not in words


def test_a_study_without_images_gives_no_object_and_a_reason(tmp_path: Path, real_scorer: Scorer) -> None:
    """A scout alone: nothing to encode, and each instance has its reason."""
    result = _analyse([factories.localizer()], tmp_path, real_scorer)
    assert result.objects == () and result.analyses == ()
    assert len(result.refusals) == 1 and result.refusals[0].reason


def test_a_blank_study_is_scored_and_finds_nothing(tmp_path: Path, real_scorer: Scorer) -> None:
    """Images of one grey value: scored, no finding, finite scores, no warning of a division."""
    datasets = factories.ct_series(4)
    for ds in datasets:
        factories.set_pixels(ds, np.full((ds.Rows, ds.Columns), 1000, dtype=np.uint16), bits=12)
    result = _analyse(datasets, tmp_path, real_scorer)
    (analysis,) = result.analyses
    assert analysis.scored == 4 and analysis.findings == ()
    assert all(score is not None and np.isfinite(score) for score in analysis.slice_scores)
    assert [item.sop_class_uid == SEG for item in result.objects] == [False]
    assert "4 of 4" in _words(_report(result))


def test_normal_patients_are_flagged_no_more_often_than_calibrated(
    tmp_path: Path, real_scorer: Scorer
) -> None:
    """Of unseen normal cases no more have a finding than the slice threshold's rate makes likely."""
    alpha = 1 / (1 + len(real_scorer.bundle.normal_scores))
    count, flagged = 24, 0
    for number in range(count):
        case = make_case(700 + number, abnormal=False, slices=6, seed=5)
        paths = write_case(case, tmp_path / str(number))
        study = assemble(case.study_instance_uid, paths, max_frame_pixels=10**8, max_study_frames=10**4)
        result = analyse(study, OneBundle(real_scorer), make_job(), Settings())
        flagged += any(analysis.findings for analysis in result.analyses)
    # The rate that the few held-out normals support, and four standard deviations of a binomial draw.
    assert flagged <= count * alpha + 4 * (count * alpha * (1 - alpha)) ** 0.5


def test_a_projection_is_found_in_its_own_pixels(tmp_path: Path, phantom_bundle: AdapterBundle) -> None:
    """A DX image has no place in the patient: the SEG has its rows and columns, an area and no volume."""
    ds = factories.dx(64, 48)
    pixels = ds.pixel_array.copy()
    pixels[10:16, 30:40] = 4095
    factories.set_pixels(ds, pixels, bits=12, mono="MONOCHROME2")
    result = _analyse([ds], tmp_path, BrightnessScorer(phantom_bundle, 3900, 4096))
    (finding,) = result.analyses[0].findings
    assert finding.volume_mm3 is None
    assert finding.area_mm2 == pytest.approx(6 * 10 * 0.2 * 0.2, rel=0.01)
    seg = _read(result.objects[0])
    assert (seg.Rows, seg.Columns) == (64, 48)
    frames = seg.pixel_array.reshape(-1, 64, 48)
    truth = np.zeros((64, 48), dtype=bool)
    truth[10:16, 30:40] = True
    assert (frames.any(axis=0) == truth).all()
    source = seg.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    assert source.ReferencedSOPInstanceUID == ds.SOPInstanceUID


def test_the_same_job_makes_the_same_bytes(tmp_path: Path, phantom_bundle: AdapterBundle) -> None:
    """Scored again after a crash, a study gives the same objects, byte for byte."""
    datasets = factories.ct_series(6, 32, 40, spacing=(3.0, 1.5, 1.0), lesion=LESION)
    results = [
        _analyse(datasets, tmp_path / name, BrightnessScorer(phantom_bundle, *CT_WINDOW))
        for name in ("first", "again")
    ]
    first, again = ([item.content for item in result.objects] for result in results)
    assert len(first) == 2
    assert first == again
