"""SR: valid, complete, says what was and what was not scored, the same bytes every time."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from analyses import make_analysis, make_group, make_job
from factories import ct_series, dx, mr_series, op, sc, us_cine
from factories_enhanced import enhanced_mr
from pydicom import dcmread
from validators import dcentvfy_errors, dciodvfy_errors, pixelmed_errors

from daemon.errors import EncodeError
from daemon.findings import find
from daemon.results import RESEARCH_USE, Predecessor, is_own
from daemon.seg import encode_seg
from daemon.sr import encode_sr
from daemon.study import Refusal

THREE = [
    (slice(0, 3), slice(4, 9), slice(5, 12)),
    (slice(3, 4), slice(20, 24), slice(18, 30)),
    (slice(4, 5), slice(4, 9), slice(20, 26)),
]
FLAT = [(slice(0, 1), *box[1:]) for box in THREE]

SOURCES = {
    "ct-0": (lambda: ct_series(), []),
    "ct-1": (lambda: ct_series(), THREE[:1]),
    "ct-3": (lambda: ct_series(), THREE),
    "oblique-mr-3": (lambda: mr_series(), THREE),
    "enhanced-mr-1": (lambda: [enhanced_mr()], THREE[:1]),
    "dx-0": (lambda: [dx()], []),
    "dx-1": (lambda: [dx()], FLAT[:1]),
    "op-1": (lambda: [op()], FLAT[:1]),
    "sc-3": (lambda: [sc()], FLAT),
    "us-cine-1": (lambda: [us_cine()], [(slice(2, 3), slice(4, 9), slice(5, 12))]),
}
# Each run of PixelMed takes ten seconds: one of every kind of content.
PIXELMED = ("ct-0", "ct-3", "dx-1")


def made(name, folder, **job):
    """Return the analysis, the SEGs and the SR of a source."""
    make, boxes = SOURCES[name]
    analysis = make_analysis(make_group(make(), folder), boxes)
    segs = encode_seg(analysis, make_job(**job))
    return analysis, segs, encode_sr([analysis], segs, make_job(**job))


def read(item):
    """Parse a result object."""
    return dcmread(BytesIO(item.content))


def items(ds, meaning):
    """Return every content item whose concept name has this meaning, anywhere in the tree."""
    here = []
    for item in ds.get("ContentSequence", ()):
        if "ConceptNameCodeSequence" in item and item.ConceptNameCodeSequence[0].CodeMeaning == meaning:
            here.append(item)
        here.extend(items(item, meaning))
    return here


def value(ds, meaning):
    """Return the code value of the first item with this meaning."""
    return items(ds, meaning)[0].ConceptCodeSequence[0].CodeValue


@pytest.mark.peer
@pytest.mark.parametrize("name", SOURCES)
def test_dicom3tools_find_no_error(name, tmp_path):
    """dciodvfy accepts the SR, dcentvfy the SR beside SEG and source."""
    analysis, segs, item = made(name, tmp_path / "source")
    paths = []
    for i, one in enumerate((item, *segs)):
        paths.append(tmp_path / f"{i}.dcm")
        paths[-1].write_bytes(one.content)
    assert dciodvfy_errors(paths[0]) == []
    assert dcentvfy_errors([*paths, *{frame.path for frame in analysis.group.frames}]) == []


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize("name", PIXELMED)
def test_pixelmed_finds_no_error(name, tmp_path):
    """PixelMed's validator accepts the content tree against TID 1500."""
    path = tmp_path / "sr.dcm"
    path.write_bytes(made(name, tmp_path / "source")[2].content)
    assert pixelmed_errors(path) == []


@pytest.mark.parametrize("name", SOURCES)
def test_a_repeat_gives_the_same_bytes(name, tmp_path):
    """Encoding the same job again makes the identical object."""
    analysis, segs, item = made(name, tmp_path)
    assert encode_sr([analysis], segs, make_job()).content == item.content


@pytest.mark.parametrize("name", SOURCES)
def test_every_measurement_group_has_coordinates_of_its_own_or_of_its_finding(name, tmp_path):
    """Groups joined by tracking UID, as OHIF joins them, each have an SCOORD with SourceImageForRegion."""
    ds = read(made(name, tmp_path)[2])
    joined = {}
    for group in items(ds, "Measurement Group"):
        uid = items(group, "Tracking Unique Identifier")[0].UID
        joined.setdefault(uid, []).extend(group.ContentSequence)
    for content in joined.values():
        outlines = [item for item in content if item.ValueType == "SCOORD"]
        outlines += [
            child
            for item in content
            for child in item.get("ContentSequence", ())
            if child.ValueType == "SCOORD"
        ]
        assert outlines
        for outline in outlines:
            assert outline.ContentSequence[0].RelationshipType == "SELECTED FROM"
            assert list(outline.GraphicData[:2]) == list(outline.GraphicData[-2:])


@pytest.mark.parametrize("name", SOURCES)
def test_the_series_has_a_mark_in_the_corner_not_the_outline_of_a_finding(name, tmp_path):
    """Viewers write a text beside each outline: two on one outline would cover each other."""
    analysis, _, item = made(name, tmp_path)
    ds = read(item)
    series = items(ds, "Measurement Group")[0]
    (mark,) = [
        child
        for measurement in series.ContentSequence
        for child in measurement.get("ContentSequence", ())
        if child.ValueType == "SCOORD"
    ]
    x, y = list(mark.GraphicData)[::2], list(mark.GraphicData)[1::2]
    assert (min(x), min(y)) == (0, 0)
    assert 1 <= max(x) <= analysis.group.columns / 16 and 1 <= max(y) <= analysis.group.rows / 8
    outlines = [list(region.GraphicData) for region in items(ds, "Image Region")]
    assert list(mark.GraphicData) not in outlines


@pytest.mark.parametrize(
    ("name", "lesion", "normality"), [("ct-0", "272519000", "17621005"), ("ct-3", "52101004", "263654008")]
)
def test_presence_and_normality_follow_from_the_findings(name, lesion, normality, tmp_path):
    """No finding is Absent and Normal, findings are Present and Abnormal; both count images."""
    ds = read(made(name, tmp_path)[2])
    assert (value(ds, "Lesion"), value(ds, "Normality")) == (lesion, normality)
    assert "Scored 5 of 5 images" in items(ds, "Comment")[0].TextValue


def test_a_group_without_scores_is_undetermined(tmp_path):
    """Images that could not be scored are neither normal nor abnormal."""
    analysis = make_analysis(make_group(ct_series(), tmp_path), [], scored=False)
    ds = read(encode_sr([analysis], [], make_job()))
    assert (value(ds, "Lesion"), value(ds, "Normality")) == ("373068000", "371934000")


@pytest.mark.peer
def test_a_study_without_scorable_images_is_undetermined_with_its_reasons(tmp_path):
    """The SR of a study of which nothing was scored counts the reasons."""
    group = make_group(ct_series(2), tmp_path / "source")
    refusals = [Refusal(frame.sop_instance_uid, "a localizer") for frame in group.frames]
    item = encode_sr([], [], make_job(), refusals=refusals, template=group.frames[0].path)
    ds = read(item)
    assert value(ds, "Lesion") == "373068000"
    assert "Not scored: 2 x a localizer" in items(ds, "Comment")[0].TextValue
    path = tmp_path / "sr.dcm"
    path.write_bytes(item.content)
    assert dciodvfy_errors(path) == []


def test_a_study_without_any_source_is_refused():
    """Without an image there is no patient to name."""
    with pytest.raises(EncodeError, match="template"):
        encode_sr([], [], make_job())


def test_research_use_is_stated_once(tmp_path):
    """Two series and five findings, one statement."""
    first, segs, _ = made("ct-3", tmp_path / "a")
    second = make_analysis(make_group(mr_series(), tmp_path / "b"), THREE[:2])
    segs = (*segs, *encode_seg(second, make_job()))
    item = encode_sr([first, second], segs, make_job())
    assert item.content.count(RESEARCH_USE.encode()) == 1
    assert len(items(read(item), "Image Library Group")) == 2


def test_findings_refer_to_the_segments_of_the_seg(tmp_path):
    """Tracking UID, segment number and SEG instance agree between SEG and SR."""
    _, (seg,), item = made("ct-3", tmp_path)
    segments = {s.TrackingUID: s.SegmentNumber for s in read(seg).SegmentSequence}
    found = {}
    for group in items(read(item), "Measurement Group"):
        for reference in items(group, "Referenced Segment"):
            sop = reference.ReferencedSOPSequence[0]
            assert sop.ReferencedSOPInstanceUID == seg.sop_instance_uid
            found[items(group, "Tracking Unique Identifier")[0].UID] = sop.ReferencedSegmentNumber
    assert found == segments


def test_cine_findings_refer_to_their_frame(tmp_path):
    """The outline of a finding in frame 3 of a cine names frame 3."""
    _, _, item = made("us-cine-1", tmp_path)
    path = tmp_path / "sr.dcm"
    path.write_bytes(item.content)
    (region,) = items(read(item), "Image Region")
    assert region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedFrameNumber == 3


def test_outline_and_measurements_are_those_of_the_finding(tmp_path):
    """The region is drawn around the box, the numbers are in mm, mm2 and mm3."""
    _, _, item = made("ct-1", tmp_path)
    ds = read(item)
    points = list(items(ds, "Image Region")[0].GraphicData)
    assert (min(points[::2]), max(points[::2])) == (5, 12) and (min(points[1::2]), max(points[1::2])) == (
        4,
        9,
    )
    numbers = {
        meaning: float(items(ds, meaning)[0].MeasuredValueSequence[0].NumericValue)
        for meaning in ("Volume", "Area", "Diameter")
    }
    assert numbers == pytest.approx({"Volume": 210.0, "Area": 35.0, "Diameter": 74**0.5}, rel=1e-4)


def test_finding_without_a_seg_is_described_by_its_outline(tmp_path):
    """A destination that takes no SEG still gets region and all measurements."""
    analysis, _, _ = made("ct-1", tmp_path)
    ds = read(encode_sr([analysis], [], make_job()))
    assert items(ds, "Image Region") and items(ds, "Volume") and not items(ds, "Referenced Segment")


def test_a_revision_names_its_predecessor(tmp_path):
    """The SR of revision 2 has new UIDs and names the SR, not the SEG, of revision 1."""
    analysis, (seg,), old = made("ct-1", tmp_path)
    predecessors = tuple(
        Predecessor(o.sop_class_uid, o.sop_instance_uid, o.series_instance_uid) for o in (old, seg)
    )
    job = make_job(revision=2, predecessors=predecessors)
    new = read(encode_sr([analysis], encode_seg(analysis, job), job))
    (study,) = new.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    assert [ref.ReferencedSOPInstanceUID for ref in series.ReferencedSOPSequence] == [old.sop_instance_uid]
    assert new.SOPInstanceUID != old.sop_instance_uid
    assert new.SeriesInstanceUID != old.series_instance_uid


def test_a_series_scored_in_part_is_not_called_normal(tmp_path):
    """Nothing found in what was scored says nothing of the frames that could not be: Undetermined."""
    analysis = replace(make_analysis(make_group(ct_series(), tmp_path), []), scored=1)
    ds = read(encode_sr([analysis], [], make_job()))
    assert (value(ds, "Lesion"), value(ds, "Normality")) == ("373068000", "371934000")


def test_an_outline_of_too_many_corners_is_made_coarser(tmp_path):
    """A ragged region that Graphic Data could not hold keeps a valid outline around all of it."""
    comb = np.zeros((8_300, 8), dtype=bool)
    comb[:, :4] = True
    comb[::2] = True
    group = make_group([dx(rows=8_400, cols=64)], tmp_path)
    maps = np.zeros((1, 8_400, 64), dtype=np.float32)
    maps[0, 40:8_340, 20:28][comb] = 0.9
    options = {"threshold": 0.5, "minimum_voxels": 2, "minimum_volume_mm3": 0}
    findings = find(maps, group, **options, uid_for=lambda number: f"1.2.{number}")
    analysis = replace(make_analysis(group, []), findings=findings)
    item = encode_sr([analysis], encode_seg(analysis, make_job()), make_job())
    path = tmp_path / "sr.dcm"
    path.write_bytes(item.content)
    (region,) = items(read(item), "Image Region")
    corners = np.reshape(region.GraphicData, (-1, 2))
    assert len(corners) <= 8_191
    assert corners.min(axis=0).tolist() == [20, 40] and corners.max(axis=0).tolist() == [28, 8_340]
    assert dciodvfy_errors(path) == []


def test_flags_and_marker(tmp_path):
    """The SR is complete, not verified, preliminary, for research, and recognisably ours."""
    ds = read(made("ct-0", tmp_path)[2])
    flags = (ds.CompletionFlag, ds.VerificationFlag, ds.PreliminaryFlag, ds.ContentQualification)
    assert flags == ("COMPLETE", "UNVERIFIED", "PRELIMINARY", "RESEARCH") and is_own(ds)


def test_equipment_agrees_with_the_observer(tmp_path):
    """AIR: observer, algorithm and Contributing Equipment name the same maker, model, version and device."""
    ds = read(made("ct-1", tmp_path)[2])
    (equipment,) = [e for e in ds.ContributingEquipmentSequence if e.Manufacturer == ds.Manufacturer]
    assert equipment.DeviceUID == items(ds, "Device Observer UID")[0].UID
    assert items(ds, "Device Observer Model Name")[0].TextValue == equipment.ManufacturerModelName
    assert items(ds, "Algorithm Name")[0].TextValue == equipment.ManufacturerModelName
    assert items(ds, "Algorithm Version")[0].TextValue == equipment.SoftwareVersions == ds.SoftwareVersions


def test_comments_are_ascii(tmp_path):
    """Own text is right in any character set of the source."""
    group = make_group(ct_series(1), tmp_path)
    refusals = [Refusal("1.2.3", "gantry tilt 12.0° × 2")]
    ds = read(encode_sr([make_analysis(group, [])], [], make_job(), refusals=refusals))
    assert "gantry tilt 12.0 degrees ? 2" in items(ds, "Comment")[0].TextValue


def test_private_sop_class_is_referenced_as_it_is(tmp_path):
    """Evidence, image library and outline name a class that highdicom does not know truly."""
    images = ct_series()
    for ds in images:
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.826.0.1.3680043.9.9999.1"
    analysis = make_analysis(make_group(images, tmp_path), THREE[:1])
    item = encode_sr([analysis], encode_seg(analysis, make_job()), make_job())
    assert b"1.2.840.10008.5.1.4.1.1.7\x00" not in item.content
    assert item.content.count(b"1.2.826.0.1.3680043.9.9999.1") >= 11
