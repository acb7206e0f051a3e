"""Feedback: from a verdict, a drawing or a corrected object to cases that training understands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import commands
import factories
import numpy as np
import pytest
import site_factories
from analyses import Box, make_analysis, make_group, make_job, painted
from conftest import daemons
from page_site import PageSite
from peers import dcmsend, storescp, storescu, wait_for_port
from phantoms import two_lesions
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid

from adapters.bundle import AdapterBundle
from adapters.slices import Normalisation
from daemon.annotate import accepted_segments, drawn_report
from daemon.assessments import Region, assess, own_regions
from daemon.part import uid_name
from daemon.phantom import PhantomCase, make_case, write_case
from daemon.profiles import Profile
from daemon.results import Analysis
from daemon.seg import encode_seg
from daemon.sr import encode_sr
from training.cases import SiteData
from training.site import read_site

FIRST: Box = (slice(0, 3), slice(4, 9), slice(5, 12))
SECOND: Box = (slice(3, 4), slice(20, 24), slice(18, 30))
WHOLE = Normalisation(kind="full", size_px=32)


def _read(folder: Path) -> SiteData:
    return read_site(folder, WHOLE, max_frame_pixels=1 << 20, check=False)


def _masks(site: SiteData) -> np.ndarray:
    """The masks of the one case's shots, where there is one."""
    (case,) = site.cases
    return np.stack([s.mask for s in case.shots if s.mask is not None])


@pytest.mark.parametrize("kept", [0, 1])
def test_an_accepted_segment_is_read_as_its_mask(tmp_path: Path, kept: int) -> None:
    """Of two segments the accepted one alone is kept, on its voxels, and training takes it."""
    group = make_group(factories.ct_series(), tmp_path / "case")
    analysis = make_analysis(group, [FIRST, SECOND])
    seg = tmp_path / "seg.dcm"
    seg.write_bytes(encode_seg(analysis, make_job())[0].content)
    _put(accepted_segments([seg], {analysis.findings[kept].tracking_uid}), tmp_path / "case")
    truth = painted(group, [(FIRST, SECOND)[kept]])
    assert np.array_equal(_masks(_read(tmp_path / "case")), truth[truth.any(axis=(1, 2))])


def _put(contents: list[bytes] | None, case: Path) -> None:
    """Write accepted segments into a case."""
    assert contents
    for number, content in enumerate(contents):
        (case / f"accepted-{number}.dcm").write_bytes(content)


def _encoded(analysis: Analysis, folder: Path, profile: Profile = Profile()) -> list[Path]:
    """Our SEGs of an analysis as files."""
    folder.mkdir()
    for item in encode_seg(analysis, make_job(), profile=profile):
        (folder / f"{item.sop_instance_uid}.dcm").write_bytes(item.content)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("empty_frames", ["keep", "omit"])
@pytest.mark.parametrize("kept", [0, 1])
def test_an_accepted_label_is_read_as_its_mask(
    tmp_path: Path, kept: int, empty_frames: Literal["keep", "omit"]
) -> None:
    """A label map has no frame of one segment: the accepted label alone is kept, by its pixel values."""
    group = make_group(factories.ct_series(), tmp_path / "case")
    analysis = make_analysis(group, [FIRST, SECOND])
    segs = _encoded(analysis, tmp_path / "segs", Profile(seg="labelmap", empty_frames=empty_frames))
    _put(accepted_segments(segs, {analysis.findings[kept].tracking_uid}), tmp_path / "case")
    truth = painted(group, [(FIRST, SECOND)[kept]])
    assert np.array_equal(_masks(_read(tmp_path / "case")), truth[truth.any(axis=(1, 2))])


@pytest.mark.parametrize("unaligned", ["binary", "fractional", "labelmap"])
def test_each_accepted_frame_of_a_cine_loop_is_exported(
    tmp_path: Path, unaligned: Literal["binary", "fractional", "labelmap"]
) -> None:
    """A loop has a SEG per frame with findings: those of every accepted finding are taken."""
    group = make_group([factories.us_cine(frames=8, rows=33, cols=41)], tmp_path / "case")
    boxes = [(slice(i, i + 1), slice(i, i + 5), slice(5, 12)) for i in (3, 5, 7)]
    analysis = make_analysis(group, boxes)
    segs = _encoded(analysis, tmp_path / "segs", Profile(unaligned=unaligned))
    assert len(segs) == 3
    accepted = {finding.tracking_uid for finding in analysis.findings if finding.origin[0] != 5}
    _put(accepted_segments(segs, accepted), tmp_path / "case")
    truth = painted(group, [boxes[0], boxes[2]])
    assert np.array_equal(_masks(_read(tmp_path / "case")), truth[truth.any(axis=(1, 2))])


def test_a_finding_is_taken_from_one_of_its_segs(tmp_path: Path) -> None:
    """Two destinations with SEGs of different forms: each accepted finding is exported once."""
    analysis = make_analysis(make_group(factories.ct_series(), tmp_path / "case"), [FIRST])
    segs = _encoded(analysis, tmp_path / "segs") + _encoded(analysis, tmp_path / "l", Profile(seg="labelmap"))
    assert len(accepted_segments(segs, {analysis.findings[0].tracking_uid}) or ()) == 1


def test_no_segment_of_another_finding_is_taken(tmp_path: Path) -> None:
    """A SEG without the accepted finding gives nothing, and so does one that is gone."""
    group = make_group(factories.ct_series(), tmp_path / "case")
    seg = tmp_path / "seg.dcm"
    seg.write_bytes(encode_seg(make_analysis(group, [FIRST]), make_job())[0].content)
    assert accepted_segments([seg, tmp_path / "gone.dcm"], {"1.2.3"}) is None


def test_a_drawn_outline_is_read_as_its_area(tmp_path: Path) -> None:
    """A rectangle drawn on the second slice is a mask of that slice, pixel for pixel."""
    group = make_group(factories.ct_series(), tmp_path / "case")
    frames = [(frame.path, frame.frame_number) for frame in group.frames]
    loop = [[5.0, 4.0], [12.0, 4.0], [12.0, 9.0], [5.0, 9.0]]
    (tmp_path / "case" / "drawn.dcm").write_bytes(drawn_report(frames, [{"1": [loop]}], "seed"))
    truth = painted(group, [(slice(1, 2), slice(4, 9), slice(5, 12))])
    assert np.array_equal(_masks(_read(tmp_path / "case")), truth[1:2])


def _ours(folder: Path) -> tuple[Dataset, list[str], frozenset[Region]]:
    """Our SR of two findings as a copy, their tracking UIDs, and the regions that we sent."""
    analysis = make_analysis(make_group(factories.ct_series(), folder / "case"), [FIRST, SECOND])
    report = encode_sr([analysis], encode_seg(analysis, make_job()), make_job())
    (folder / "ours.dcm").write_bytes(report.content)
    ds = dcmread(folder / "ours.dcm")
    return ds, [finding.tracking_uid for finding in analysis.findings], own_regions([folder / "ours.dcm"])


def test_a_copy_of_our_report_says_nothing_until_a_person_verified_it(tmp_path: Path) -> None:
    """What a router sends back unchanged is nobody's verdict; verified, it accepts every finding."""
    ds, tracking, regions = _ours(tmp_path)
    assert assess(factories.write(ds, tmp_path / "copy.dcm"), regions).verdicts == {}
    ds.VerificationFlag = "VERIFIED"
    said = assess(factories.write(ds, tmp_path / "verified.dcm"), regions)
    assert {uid: said.verdicts[uid] for uid in tracking} == dict.fromkeys(tracking, "accept")
    assert not said.outlines


def test_a_moved_outline_corrects_and_an_absent_lesion_rejects(tmp_path: Path) -> None:
    """Of two findings one is drawn elsewhere and one said to be absent: training takes the first alone."""
    ds, tracking, regions = _ours(tmp_path)
    for group in _groups(ds, tracking[0]):
        for item in group.ContentSequence:
            if item.ValueType == "SCOORD":
                item.GraphicData = [5, 10, 12, 10, 12, 15, 5, 15, 5, 10]
    _reject(ds, tracking[1])
    ds.VerificationFlag = "VERIFIED"
    said = assess(factories.write(ds, tmp_path / "case" / "edited.dcm"), regions)
    assert [said.verdicts[uid] for uid in tracking] == ["correct", "reject"]
    assert said.outlines
    masks = _masks(_read(tmp_path / "case"))
    assert masks.shape[0] == 1 and np.array_equal(masks[0], np.asarray(_box_mask(masks.shape[1:])))


def _box_mask(shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[10:15, 5:12] = True
    return mask


# With a running daemon


def _daemon(site: PageSite, *arguments: str) -> str:
    done = commands.run(*arguments, "--settings", site.daemon.settings_path)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _corrected(site: PageSite, uid: str, path: Path) -> str:
    """The delivered SEG as a person's workstation would send it back: another object, drawn by hand."""
    with site.daemon.index() as index:
        result = next(r for r in index.results_of(uid) if r.kind == "SEG")
    ds = dcmread(site.daemon.settings.spool_dir / result.path)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = factories.uid("corrected", uid)
    ds.SeriesInstanceUID = factories.uid("corrected series", uid)
    ds.InstanceCreatorUID = factories.uid("workstation")
    for segment in ds.SegmentSequence:
        segment.SegmentAlgorithmType = "MANUAL"
    factories.write(ds, path)
    return str(ds.SegmentSequence[0].TrackingUID)


@pytest.mark.peer
@pytest.mark.slow
def test_a_corrected_seg_sent_back_becomes_a_case(page_site: PageSite, tmp_path: Path) -> None:
    """C-STORE of a corrected SEG: matched to study and finding, nothing scored anew, offered to training."""
    uid = page_site.scored[1]
    tracking = _corrected(page_site, uid, tmp_path / "corrected.dcm")
    with page_site.daemon.index() as index:
        before = (index.get_study(uid).revision, len(index.results_of(uid)))
    dcmsend(page_site.daemon.port, str(tmp_path / "corrected.dcm"), calling="WORKSTATION")
    page_site.daemon.wait_for(lambda index: index.get_study(uid).revision > before[0])
    page_site.rest()
    with page_site.daemon.index() as index:
        assert len(index.results_of(uid)) == before[1]
    (came,) = page_site.ask("/api/corrections", "vera").json()
    assert (came["study_instance_uid"], came["kind"], came["calling_ae"]) == (uid, "SEG", "WORKSTATION")
    study = page_site.ask(f"/api/studies/{uid}", "vera").json()
    assert {f["verdict"] for f in study["findings"] if f["tracking_uid"] == tracking} == {"correct"}
    assert any("came back from WORKSTATION" in event["what"] for event in study["timeline"])
    with page_site.daemon.index() as index:
        assert uid not in {item.study_instance_uid for item in index.prunable()}
    cases = tmp_path / "cases"
    assert "1 annotations" in _daemon(page_site, "feedback", "export", str(cases))
    assert len(list(cases.rglob("images/*.dcm"))) == 12
    understood = _daemon(page_site, "train", "--dry-run", "--site-data", str(cases), "--name", "again")
    assert "1: 1 abnormal" in understood and "SEG" in understood


@pytest.mark.peer
@pytest.mark.slow
def test_verdicts_of_the_page_become_cases(page_site: PageSite, tmp_path: Path) -> None:
    """One finding accepted, one drawn anew, one rejected: SEG and outline are exported."""
    uid = page_site.scored[0]
    study = page_site.ask(f"/api/studies/{uid}", "vera").json()
    findings, score = study["findings"], study["series"][0]["scores"][0]
    assert len(findings) >= 2
    loop = [[40, 40], [60, 40], [60, 60], [40, 60]]
    for number, finding in enumerate(findings):
        verdict = ("accept", "correct", "reject")[min(number, 2)]
        order = {"revision": score["revision"], "group_key": finding["group_key"],
                 "tracking_uid": finding["tracking_uid"], "verdict": verdict}  # fmt: skip
        if verdict == "correct":
            order["correction"] = {str(finding["largest"]): [loop]}
        assert page_site.ask(f"/api/studies/{uid}/verdicts", "otto", body=order).status == 200
        if number == 0 and len(findings) > 1:
            _daemon(page_site, "feedback", "export", str(tmp_path / "early"))
            assert not list((tmp_path / "early" / uid).glob("accepted-*.dcm"))
    _daemon(page_site, "feedback", "export", str(tmp_path / "cases"))
    folder = tmp_path / "cases" / uid
    assert len(list(folder.glob("corrected-*.dcm"))) == 1
    site = _read(folder)
    assert {"SEG", "SR"} <= set(site.cases[0].sources)
    report = dcmread(next(folder.glob("accepted-*.dcm")), stop_before_pixels=True)
    assert [str(s.TrackingUID) for s in report.SegmentSequence] == [findings[0]["tracking_uid"]]


# Reports and structure sets of a workstation, to a daemon of their own


@dataclass
class Reading:
    """Studies in a daemon, and the workstation that reads them."""

    site: PageSite
    cases: dict[str, PhantomCase]
    sent: dict[str, list[Path]]

    def study(self, number: int) -> tuple[str, list[str]]:
        """Study Instance UID and tracking UIDs of its findings, the strongest first."""
        uid = list(self.cases)[number]
        return uid, [
            f["tracking_uid"] for f in self.site.ask(f"/api/studies/{uid}", "vera").json()["findings"]
        ]

    def report(self, uid: str) -> Dataset:
        """The delivered SR as a workstation opens it to edit and save it under a UID of its own."""
        with self.site.daemon.index() as index:
            result = next(r for r in index.results_of(uid) if r.kind == "SR")
        ds = dcmread(self.site.daemon.settings.spool_dir / result.path)
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.SeriesInstanceUID, ds.InstanceCreatorUID = generate_uid(), factories.uid("workstation")
        return ds

    def send_back(self, ds: Dataset, path: Path) -> None:
        """C-STORE over an association, and wait until the study is at rest again."""
        daemon, uid = self.site.daemon, str(ds.StudyInstanceUID)
        with daemon.index() as index:
            before = index.get_study(uid).revision
        factories.write(ds, path)
        dcmsend(daemon.port, str(path), calling="WORKSTATION")
        daemon.wait_for(
            lambda index: (study := index.get_study(uid)).revision > before and study.state == "scored"
        )

    def verdicts(self, uid: str) -> list[str | None]:
        """What the API says of each finding, the strongest first."""
        return [f["verdict"] for f in self.site.ask(f"/api/studies/{uid}", "vera").json()["findings"]]

    def exported(self, uid: str, folder: Path) -> Path:
        """The study as a case, exported anew."""
        _daemon(self.site, "feedback", "export", str(folder))
        return folder / uid_name(uid)

    def understood(self, cases: Path) -> str:
        """What ``daemon train --dry-run`` says of a folder of cases."""
        return _daemon(self.site, "train", "--dry-run", "--site-data", str(cases), "--name", "again")


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory, phantom_bundle: AdapterBundle) -> Iterator[Reading]:
    """Three studies with findings, delivered."""
    folder = tmp_path_factory.mktemp("reading")
    with storescp(folder) as pacs, daemons(folder, phantom_bundle) as start:
        site = PageSite(
            start(pacs.port, pacs.ae_title, quiet_s=0.5, page=True), folder, ("", ""), "", "", "", ""
        )
        wait_for_port(site.daemon.settings.web.port, site.daemon.process, 90.0)
        site.add_user("vera", "viewer")
        found = [two_lesions(903)]
        found += [make_case(901 + i, abnormal=True, slices=12, seed=1) for i in range(2)]
        cases = {case.study_instance_uid: case for case in found}
        sent = {uid: write_case(case, folder / "sent" / str(case.number)) for uid, case in cases.items()}
        for files in sent.values():
            storescu(site.daemon.port, *map(str, files), calling="CT1")
        site.daemon.wait_for(
            lambda index: (
                len(index.list_studies(["scored"])) == len(cases)
                and not index.deliveries(states=["pending", "failed"])
            )
        )
        yield Reading(site, cases, sent)


def _groups(ds: Dataset, tracking: str) -> list[Dataset]:
    """Measurement groups of a finding (PS3.16 TID 1410, TID 1411)."""
    return [
        group
        for container in ds.ContentSequence
        for group in container.get("ContentSequence") or ()
        if any(item.get("UID") == tracking for item in group.get("ContentSequence") or ())
    ]


def _reject(ds: Dataset, tracking: str) -> None:
    """Say in each group of a finding that the lesion is absent (CID 240)."""
    for group in _groups(ds, tracking):
        item = Dataset()
        item.RelationshipType, item.ValueType = "CONTAINS", "CODE"
        item.ConceptNameCodeSequence = factories.code("52988006", "SCT", "Lesion")
        item.ConceptCodeSequence = factories.code("272519000", "SCT", "Absent")
        group.ContentSequence.append(item)


@pytest.mark.peer
@pytest.mark.slow
def test_a_report_sent_back_accepts_and_rejects(reading: Reading, tmp_path: Path) -> None:
    """An edited copy of our SR: the finding left as it is counts as accepted, the others as rejected."""
    uid, tracking = reading.study(0)
    assert len(tracking) >= 2
    ds = reading.report(uid)
    for other in tracking[1:]:
        _reject(ds, other)
    reading.send_back(ds, tmp_path / "sr.dcm")
    assert reading.verdicts(uid) == ["accept"] + ["reject"] * (len(tracking) - 1)
    page = reading.site.ask("/feedback", "vera").content.decode()
    assert "WORKSTATION" in page and f"/studies/{uid}" in page
    case = reading.exported(uid, tmp_path / "cases")
    (accepted,) = case.glob("*.dcm")
    segments = dcmread(accepted, stop_before_pixels=True).SegmentSequence
    assert [str(segment.TrackingUID) for segment in segments] == tracking[:1]
    assert "1 abnormal" in reading.understood(tmp_path / "cases")
    # The reader looks again and finds none of them.
    ds = reading.report(uid)
    for one in tracking:
        _reject(ds, one)
    reading.send_back(ds, tmp_path / "again.dcm")
    assert set(reading.verdicts(uid)) == {"reject"}
    case = reading.exported(uid, tmp_path / "cases")
    assert list(case.glob("*.dcm")) == []
    assert reading.cases[uid].series_instance_uid in (tmp_path / "cases" / "labels.csv").read_text()


@pytest.mark.peer
@pytest.mark.slow
def test_a_region_drawn_in_a_report_becomes_a_case(reading: Reading, tmp_path: Path) -> None:
    """A TID 1500 report with another outline for our finding: a correction, read on its pixels."""
    uid, tracking = reading.study(1)
    images = [dcmread(path) for path in reading.sent[uid]]
    masks = reading.cases[uid].lesion
    ds = site_factories.report(images, site_factories.regions(images, masks))
    for container in ds.ContentSequence[-1].ContentSequence:
        for item in container.ContentSequence:
            if item.ValueType == "UIDREF":
                item.UID = tracking[0]
    reading.send_back(ds, tmp_path / "sr.dcm")
    assert reading.verdicts(uid)[0] == "correct"
    case = reading.exported(uid, tmp_path / "cases")
    (came,) = case.glob("*.dcm")
    assert dcmread(came) == dcmread(tmp_path / "sr.dcm")
    assert np.array_equal(_masks(_read(case)), masks[masks.any(axis=(1, 2))])
    assert "1 abnormal" in (said := reading.understood(case)) and "SR" in said


@pytest.mark.peer
@pytest.mark.slow
def test_a_structure_set_sent_back_becomes_a_case(reading: Reading, tmp_path: Path) -> None:
    """An RTSTRUCT on the source series is matched to its study and read on its pixels."""
    uid, tracking = reading.study(2)
    images = [dcmread(path) for path in reading.sent[uid]]
    masks = reading.cases[uid].lesion
    reading.send_back(site_factories.rtstruct(images, masks), tmp_path / "rtstruct.dcm")
    # It names no finding: what it says is of the study.
    assert reading.verdicts(uid) == [None] * len(tracking)
    came = [one for one in reading.site.ask("/api/corrections", "vera").json() if one["kind"] == "RTSTRUCT"]
    assert [(one["study_instance_uid"], one["calling_ae"]) for one in came] == [(uid, "WORKSTATION")]
    study = reading.site.ask(f"/api/studies/{uid}", "vera").json()
    assert any("RTSTRUCT by a person came back" in event["what"] for event in study["timeline"])
    case = reading.exported(uid, tmp_path / "cases")
    assert np.array_equal(_masks(_read(case)), masks[masks.any(axis=(1, 2))])
    assert "1 abnormal" in (said := reading.understood(case)) and "RTSTRUCT" in said
