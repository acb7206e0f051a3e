"""The whole sentence with real peers: DCMTK as the modality, the daemon, Orthanc as the PACS."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import RunningDaemon
from peers import OrthancPeer, dcmsend, dcmtk, orthanc, storescu, wait_for_port
from pydicom import dcmread

from daemon.index import Index
from daemon.phantom import make_case, write_case

pytestmark = [pytest.mark.peer, pytest.mark.slow]

ZOO = Path(os.environ.get("DICOM_ZOO", Path(__file__).parent.parent / "../shared/zoo"))
SEG, SR = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.88.34"
Start = Callable[..., RunningDaemon]


def _delivered(study: str) -> Callable[[Index], bool]:
    def done(index: Index) -> bool:
        deliveries = index.deliveries(study)
        return bool(deliveries) and all(d.state == "sent" for d in deliveries)

    return done


def _fetch(pacs: OrthancPeer, folder: Path) -> dict[str, list[Path]]:
    """Files of every instance at the PACS by SOP class."""
    folder.mkdir(exist_ok=True)
    found: dict[str, list[Path]] = {}
    for uid, identifier in pacs.instances().items():
        path = folder / f"{uid}.dcm"
        path.write_bytes(pacs.download(f"/instances/{identifier}/file"))
        found.setdefault(str(dcmread(path, stop_before_pixels=True).SOPClassUID), []).append(path)
    return found


def _seg_volume(path: Path, like: sitk.Image) -> sitk.Image:
    """The SEG's segments as one mask on the grid of the source, placed by the SEG's own geometry."""
    volume = hd.seg.segread(path).get_volume(combine_segments=True)
    direction = np.asarray(volume.direction)[:, ::-1]
    image = sitk.GetImageFromArray((np.asarray(volume.array) > 0).astype(np.uint8))
    image.SetOrigin(list(volume.position))
    image.SetSpacing(list(volume.spacing)[::-1])
    image.SetDirection(direction.flatten().tolist())
    return sitk.Resample(image, like, sitk.Transform(), sitk.sitkNearestNeighbor, 0)


def test_a_study_comes_back_as_seg_and_sr_on_the_lesion(tmp_path: Path, start_daemon: Start) -> None:
    """A phantom sent by storescu ends in Orthanc as one SEG and one SR, the SEG where the lesion is."""
    case = make_case(901, abnormal=True, seed=1)
    files = write_case(case, tmp_path / "ct")
    with orthanc(tmp_path, DicomAlwaysAllowFind=True) as pacs:
        daemon = start_daemon(pacs.port)
        storescu(daemon.port, *map(str, files))
        daemon.wait_for(_delivered(case.study_instance_uid))
        assert daemon.stop() == 0
        arrived = _fetch(pacs, tmp_path / "arrived")
        answer = dcmtk(
            "findscu", "-S", "-aec", pacs.ae_title, "127.0.0.1", str(pacs.port),
            "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={case.study_instance_uid}",
            "-k", "ModalitiesInStudy",
        )  # fmt: skip
    assert {kind: len(paths) for kind, paths in arrived.items()} == {SEG: 1, SR: 1}
    assert "SEG" in answer.stdout + answer.stderr
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(f) for f in files])
    source = reader.Execute()
    truth = sitk.GetImageFromArray(case.lesion.astype(np.uint8))
    truth.CopyInformation(source)
    found = _seg_volume(arrived[SEG][0], truth)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(truth, found)
    assert overlap.GetDiceCoefficient() > 0.4
    centres = []
    for image in (truth, found):
        statistics = sitk.LabelShapeStatisticsImageFilter()
        statistics.Execute(image)
        centres.append(np.array(statistics.GetCentroid(1)))
    assert np.linalg.norm(centres[0] - centres[1]) < 8.0


def test_results_that_come_back_are_not_scored(tmp_path: Path, start_daemon: Start) -> None:
    """Our own SEG and SR, sent back to us, make no new results."""
    case = make_case(901, abnormal=True, seed=1)
    files = write_case(case, tmp_path / "ct")
    with orthanc(tmp_path) as pacs:
        daemon = start_daemon(pacs.port)
        storescu(daemon.port, *map(str, files))
        daemon.wait_for(_delivered(case.study_instance_uid))
        arrived = _fetch(pacs, tmp_path / "arrived")
        dcmsend(daemon.port, *[str(path) for paths in arrived.values() for path in paths])
        daemon.wait_for(lambda index: index.get_study(case.study_instance_uid).revision == 2)
        daemon.wait_for(lambda index: index.get_study(case.study_instance_uid).state == "scored")
        with daemon.index() as index:
            assert {result.revision for result in index.results_of(case.study_instance_uid)} == {1}
        assert len(pacs.instances()) == 2


def test_a_late_instance_makes_a_revision_that_names_its_predecessor(
    tmp_path: Path, start_daemon: Start
) -> None:
    """A slice that comes after the results gives new results, and the new SR names the old one."""
    case = make_case(901, abnormal=True, seed=1)
    files = write_case(case, tmp_path / "ct")
    with orthanc(tmp_path) as pacs:
        daemon = start_daemon(pacs.port)
        storescu(daemon.port, *map(str, files[:-1]))
        daemon.wait_for(_delivered(case.study_instance_uid))
        first = set(pacs.instances())
        storescu(daemon.port, str(files[-1]))
        daemon.wait_for(lambda index: index.get_study(case.study_instance_uid).revision == 2)
        daemon.wait_for(
            lambda index: (
                any(d.revision == 2 for d in index.deliveries(case.study_instance_uid))
                and _delivered(case.study_instance_uid)(index)
            )
        )
        reports = [dcmread(path) for path in _fetch(pacs, tmp_path / "arrived")[SR]]
    new = next(report for report in reports if report.SOPInstanceUID not in first)
    named = new.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert str(named.ReferencedSOPInstanceUID) in first


def test_kill_9_between_any_two_steps_loses_and_doubles_nothing(tmp_path: Path, start_daemon: Start) -> None:
    """Killed again and again while studies are in work, every study's results reach the PACS once."""
    cases = [make_case(910 + number, abnormal=number % 2 == 0, slices=6, seed=1) for number in range(4)]
    sent = {case.study_instance_uid: write_case(case, tmp_path / str(case.number)) for case in cases}
    with orthanc(tmp_path) as pacs:
        daemon = start_daemon(pacs.port, quiet_s=0.3)
        for files in sent.values():
            storescu(daemon.port, *map(str, files))
        for moment in (0.0, 0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8):
            time.sleep(moment)
            daemon.kill()
            daemon.start_again()
        daemon.wait_for(lambda index: all(_delivered(study)(index) for study in sent), timeout_s=180)
        wait_for_port(daemon.port, daemon.process)
        assert daemon.stop() == 0
        arrived = _fetch(pacs, tmp_path / "arrived")
        with daemon.index() as index:
            for study, files in sent.items():
                assert len(index.instances_of(study)) == len(files)
                assert {result.revision for result in index.results_of(study)} == {1}
    by_study: dict[str, int] = {}
    for path in arrived[SR]:
        uid = str(dcmread(path, stop_before_pixels=True).StudyInstanceUID)
        by_study[uid] = by_study.get(uid, 0) + 1
    assert by_study == dict.fromkeys(sent, 1)


@pytest.mark.shared
@pytest.mark.skipif(not ZOO.is_dir(), reason="the DICOM zoo is not here (DICOM_ZOO)")
def test_every_study_of_the_zoo_ends_scored_or_refused_with_a_reason(
    tmp_path: Path, start_daemon: Start
) -> None:
    """Every zoo file that DCMTK can send ends scored or refused with a reason, and the daemon is alive."""
    with orthanc(tmp_path) as pacs:
        daemon = start_daemon(pacs.port, page=True)
        for file in sorted(ZOO.rglob("*.dcm")):
            dcmtk(
                "dcmsend", "-aec", "ANOMALYD", "-aet", "ZOO", "+dls", "127.0.0.1", str(daemon.port), str(file)
            )
        daemon.wait_for(
            lambda index: (
                all(s.state in ("scored", "refused", "failed") for s in index.list_studies())
                and not index.deliveries(states=["pending"])
            ),
            timeout_s=240,
        )
        with daemon.index() as index:
            studies = index.list_studies()
        assert len(studies) > 40
        assert [s.state_reason for s in studies if s.state == "failed"] == []
        assert all(s.state_reason for s in studies if s.state == "refused")
        assert sum(s.state == "scored" for s in studies) > 25
        assert len(daemon.children()) == 4
        case = make_case(930, abnormal=False, slices=3, seed=1)
        storescu(daemon.port, *map(str, write_case(case, tmp_path / "after")))
        daemon.wait_for(_delivered(case.study_instance_uid))
        log = daemon.log.read_text()
    assert "died" not in log
