"""Destination profiles: each destination gets its own form of the results, each valid and made once."""

from io import BytesIO

import highdicom as hd
import numpy as np
import pytest
from analyses import make_analysis, make_group, make_job, painted
from factories import ct_series, dx, mr_series, op, us_cine
from factories_enhanced import enhanced_mr
from pydicom import dcmread
from validators import dcentvfy_errors, dciodvfy_errors, pixelmed_errors

from daemon.companions import encode_capture, encode_map
from daemon.index import Index
from daemon.profiles import PROFILES, Profile
from daemon.records import ResultRecord
from daemon.results import Predecessor
from daemon.seg import encode_seg
from daemon.settings import load_settings
from daemon.spool import StoredInstance
from daemon.variants import encode_companions, encode_results

BOXES = [(slice(0, 3), slice(4, 9), slice(5, 12)), (slice(3, 4), slice(20, 24), slice(18, 30))]
FLAT = [(slice(0, 1), slice(4, 9), slice(5, 12))]
SPACED = {
    "ct": lambda: ct_series(),
    "oblique-mr": lambda: mr_series(),
    "enhanced-mr": lambda: [enhanced_mr()],
    "unaligned-ct": lambda: ct_series(5, 31, 33),
}
LABEL_MAP = Profile(seg="labelmap")
PLAIN = Profile(coordinates="omit")


def read(item):
    """Parse a result object."""
    return dcmread(BytesIO(item.content))


def score_maps(group):
    """A slope of scores, different on every frame."""
    size = group.rows * group.columns
    return [
        (np.arange(size, dtype=np.float32).reshape(group.rows, group.columns) / size + i / 7) % 1
        for i in range(len(group.frames))
    ]


def write_all(items, folder):
    """Write result objects as files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, item in enumerate(items):
        paths.append(folder / f"{i}.dcm")
        paths[-1].write_bytes(item.content)
    return paths


@pytest.mark.peer
@pytest.mark.parametrize("form", ["integer", "float"])
@pytest.mark.parametrize("kind", SPACED)
def test_parametric_map_is_valid_and_holds_the_scores(kind, form, tmp_path):
    """dciodvfy accepts the map; each frame has its own scores; a repeat gives the same bytes."""
    group = make_group(SPACED[kind](), tmp_path / "source")
    analysis, maps = make_analysis(group, BOXES), score_maps(group)
    item = encode_map(analysis, maps, make_job(), form=form)
    assert item.content == encode_map(analysis, maps, make_job(), form=form).content
    (path,) = write_all([item], tmp_path / "out")
    assert dciodvfy_errors(path) == []
    assert dcentvfy_errors([path, *{frame.path for frame in group.frames}]) == []
    ds = read(item)
    planes = hd.pm.ParametricMap.from_dataset(ds).get_frames(apply_real_world_transform=True)
    order = {(f.sop_instance_uid, f.frame_number): i for i, f in enumerate(group.frames)}
    for plane, per_frame in zip(planes, ds.PerFrameFunctionalGroupsSequence, strict=True):
        (image,) = per_frame.DerivationImageSequence[0].SourceImageSequence
        i = order[image.ReferencedSOPInstanceUID, int(image.get("ReferencedFrameNumber", 1))]
        assert np.abs(plane - maps[i]).max() < 1e-5 + (1 / 65535 if form == "integer" else 0)


def test_no_parametric_map_without_a_frame_of_reference(tmp_path):
    """The IOD needs a frame of reference, which a radiograph lacks."""
    group = make_group([dx()], tmp_path)
    assert encode_map(make_analysis(group, FLAT), score_maps(group), make_job(), form="float") is None


@pytest.mark.peer
@pytest.mark.parametrize("source", [ct_series, lambda: [dx()]])
def test_secondary_capture_is_valid_and_shows_the_picture(source, tmp_path):
    """dciodvfy accepts the capture; its pixels are the picture; it has no spacing to measure with."""
    group = make_group(source(), tmp_path / "source")
    picture = np.random.default_rng(1).integers(0, 255, (60, 80, 3)).astype(np.uint8)
    item = encode_capture(make_analysis(group, FLAT), picture, make_job())
    assert item.content == encode_capture(make_analysis(group, FLAT), picture, make_job()).content
    (path,) = write_all([item], tmp_path / "out")
    assert dciodvfy_errors(path) == []
    assert dcentvfy_errors([path, *{frame.path for frame in group.frames}]) == []
    ds = read(item)
    assert (ds.pixel_array == picture).all()
    assert "PixelSpacing" not in ds and "FrameOfReferenceUID" not in ds


@pytest.mark.peer
@pytest.mark.parametrize(
    ("profile", "boxes", "source"),
    [
        (PLAIN, BOXES, ct_series),
        (PLAIN, [], ct_series),
        (PROFILES["classic"], BOXES, ct_series),
        (Profile(seg="none", coordinates="omit"), BOXES, ct_series),
        (Profile(seg="none", coordinates="omit"), FLAT, lambda: [dx()]),
        (PLAIN, FLAT, lambda: [dx()]),
        (LABEL_MAP, BOXES, ct_series),
    ],
)
def test_every_form_of_the_sr_is_valid(profile, boxes, source, tmp_path):
    """dciodvfy accepts the SR without coordinates, without SEG, without both, and beside a label map."""
    group = make_group(source(), tmp_path / "source")
    segs, (report,) = encode_results([make_analysis(group, boxes)], make_job(), {profile: ()})
    (path,) = write_all([report], tmp_path / "out")
    # The tool knows no label maps.
    known = "not segmentation" if profile.seg == "labelmap" else "nothing"
    errors = [error for error in dciodvfy_errors(path) if known not in error]
    assert errors == []
    text = str(read(report))
    assert ("SCOORD" in text) == (profile.coordinates == "keep")
    assert bool(segs) == (profile.seg != "none" and bool(boxes))
    assert all(seg.sop_instance_uid in text for seg in segs)


@pytest.mark.peer
@pytest.mark.slow
def test_the_barest_sr_follows_its_template(tmp_path):
    """PixelMed finds the SR that has neither coordinates nor segments right."""
    group = make_group(ct_series(), tmp_path / "source")
    profile = Profile(seg="none", coordinates="omit")
    _, (report,) = encode_results([make_analysis(group, BOXES)], make_job(), {profile: ()})
    (path,) = write_all([report], tmp_path / "out")
    assert pixelmed_errors(path) == []


def test_label_map_has_the_findings_and_no_segment_for_the_background(tmp_path):
    """The label map's pixels are the segment numbers; its segments are the findings alone."""
    group = make_group(ct_series(5, 31, 33), tmp_path)
    (item,) = encode_seg(make_analysis(group, BOXES), make_job(), profile=LABEL_MAP)
    ds = read(item)
    assert [s.SegmentNumber for s in ds.SegmentSequence] == [1, 2]
    planes = ds.pixel_array.reshape(-1, group.rows, group.columns)
    order = {f.sop_instance_uid: i for i, f in enumerate(group.frames)}
    wanted = painted(group, BOXES[:1]) * 1 + painted(group, BOXES[1:]) * 2
    for plane, per_frame in zip(planes, ds.PerFrameFunctionalGroupsSequence, strict=True):
        (image,) = per_frame.DerivationImageSequence[0].SourceImageSequence
        assert (plane == wanted[order[image.ReferencedSOPInstanceUID]]).all()
    assert [len(segment.frame_numbers) for segment in item.segments] == [3, 1]


@pytest.mark.peer
@pytest.mark.parametrize("source", [dx, op, us_cine])
def test_an_image_without_a_place_gets_an_assumed_plane(source, tmp_path):
    """For OHIF its SEG has a valid plane in a frame of reference of its own, and the same pixels."""
    group = make_group([source()], tmp_path / "source")
    analysis = make_analysis(group, FLAT)
    (plain,) = encode_seg(analysis, make_job())
    (item,) = encode_seg(analysis, make_job(), profile=PROFILES["ohif"])
    assert item.content == encode_seg(analysis, make_job(), profile=PROFILES["ohif"])[0].content
    (path,) = write_all([item], tmp_path / "out")
    assert dciodvfy_errors(path) == []
    assert dcentvfy_errors([path, *{frame.path for frame in group.frames}]) == []
    ds, bare = read(item), read(plain)
    shared = ds.SharedFunctionalGroupsSequence[0]
    assert list(shared.PlaneOrientationSequence[0].ImageOrientationPatient) == [1, 0, 0, 0, 1, 0]
    spacing = list(shared.PixelMeasuresSequence[0].PixelSpacing)
    assert spacing == list(group.pixel_spacing_mm or (1, 1))
    assert ds.FrameOfReferenceUID not in (None, group.frame_of_reference_uid)
    assert "FrameOfReferenceUID" not in bare and ds.SOPInstanceUID != bare.SOPInstanceUID
    assert (ds.pixel_array == bare.pixel_array).all()
    assert str(ds.ReferencedSeriesSequence) == str(bare.ReferencedSeriesSequence)


def test_assumed_planes_share_no_space(tmp_path):
    """Each frame of a cine loop has a SEG of its own, in a frame of reference of its own."""
    group = make_group([us_cine()], tmp_path)
    boxes = [FLAT[0], (slice(2, 3), slice(4, 9), slice(5, 12))]
    objects = [
        read(item) for item in encode_seg(make_analysis(group, boxes), make_job(), profile=PROFILES["ohif"])
    ]
    assert len({ds.FrameOfReferenceUID for ds in objects}) == len({ds.SOPInstanceUID for ds in objects}) == 2
    assert all(ds.NumberOfFrames == 1 for ds in objects)


def test_destinations_share_what_is_the_same(tmp_path):
    """On an aligned size one SEG and one SR serve standard and OHIF; on an unaligned one each has its own."""
    audience = {PROFILES["standard"]: ("archive",), PROFILES["ohif"]: ("viewer",)}
    aligned = make_analysis(make_group(ct_series(), tmp_path / "a"), BOXES)
    segs, reports = encode_results([aligned], make_job(), audience)
    assert [item.destinations for item in (*segs, *reports)] == [("archive", "viewer")] * 2
    odd = make_analysis(make_group(ct_series(5, 31, 33), tmp_path / "b"), BOXES)
    segs, reports = encode_results([odd], make_job(), audience)
    assert {str(read(s).SegmentationType): s.destinations for s in segs} == {
        "BINARY": ("archive",),
        "FRACTIONAL": ("viewer",),
    }
    assert sorted(item.destinations for item in reports) == [("archive",), ("viewer",)]
    assert len({item.sop_instance_uid for item in (*segs, *reports)}) == 4
    assert len({item.series_instance_uid for item in (*segs, *reports)}) == 4


def test_an_sr_refers_to_the_seg_of_its_own_destination(tmp_path):
    """No destination gets an SR whose SEG went to another one only."""
    audience = {profile: (name,) for name, profile in PROFILES.items()}
    analysis = make_analysis(make_group(ct_series(5, 31, 33), tmp_path), BOXES)
    segs, reports = encode_results([analysis], make_job(), audience)
    for name in PROFILES:
        (report,) = [item for item in reports if name in item.destinations]
        own = {item.sop_instance_uid for item in segs if name in item.destinations}
        others = {item.sop_instance_uid for item in segs} - own
        text = str(read(report))
        assert len(own) == (name != "classic")
        assert all(uid in text for uid in own) and not any(uid in text for uid in others)


def test_the_default_profile_keeps_its_uids_beside_others(tmp_path):
    """What a site's destination gets does not change its identity when another destination joins."""
    analysis = make_analysis(make_group(ct_series(5, 31, 33), tmp_path), BOXES)
    alone = encode_results([analysis], make_job(), {PROFILES["standard"]: ("a",)})
    audience = {profile: (name,) for name, profile in PROFILES.items()}
    both = encode_results([analysis], make_job(), audience)
    for kind in (0, 1):
        assert alone[kind][0].content in [item.content for item in both[kind]]


def test_companions_go_to_those_who_want_them(tmp_path):
    """A map for the one who asked, a capture for the one who asked; no picture is drawn for nobody."""
    group = make_group(ct_series(), tmp_path)
    analysis, maps = make_analysis(group, BOXES), score_maps(group)

    def nobody():
        raise AssertionError("drawn for nobody")

    assert encode_companions(analysis, maps, nobody, make_job(), {PROFILES["standard"]: ("a",)}) == []
    picture = np.zeros((8, 8, 3), dtype=np.uint8)
    audience = {
        PROFILES["slicer"]: ("s",),
        PROFILES["classic"]: ("c",),
        Profile(parametric_map="integer"): ("i",),
    }
    made = encode_companions(analysis, maps, lambda: picture, make_job(), audience)
    assert [(item.kind, item.destinations) for item in made] == [
        ("PM", ("i",)),
        ("PM", ("s",)),
        ("SC", ("c",)),
    ]


def test_predecessors_are_those_that_the_destination_has(tmp_path):
    """An SR of a second revision names the SR that its own destination got of the first."""
    sr = "1.2.840.10008.5.1.4.1.1.88.34"
    first = (
        Predecessor(sr, "1.2.3.1", "1.2.3.9", "archive"),
        Predecessor(sr, "1.2.3.2", "1.2.3.8", "viewer"),
    )
    analysis = make_analysis(make_group(ct_series(5, 31, 33), tmp_path), BOXES)
    audience = {PROFILES["standard"]: ("archive",), PROFILES["ohif"]: ("viewer",)}
    _, reports = encode_results([analysis], make_job(revision=2, predecessors=first), audience)
    found = {item.destinations: "1.2.3.1" in str(read(item)) for item in reports}
    assert found == {("archive",): True, ("viewer",): False}


def test_each_destination_is_sent_its_own(tmp_path):
    """Deliveries are planned of what is meant for a destination, and of what is meant for all."""
    index = Index(f"sqlite:///{tmp_path / 'index.sqlite'}")
    index.add_instance(StoredInstance("1.2", "1.2.1", "1.2.1.1", "1", "1", "p", 1, 1.0, "AE", 1))
    for uid, names in {"1": "archive", "2": "viewer", "3": "archive viewer", "4": ""}.items():
        index.add_results(
            [ResultRecord("1.2", 1, "SEG", "1.2", f"1.2.9.{uid}", "1.2.9", "p", "0" * 64, names)]
        )
    index.plan_deliveries("1.2", 1, ["archive", "viewer", "late"], 1e9)
    planned = {
        name: sorted(d.sop_instance_uid[-1] for d in index.deliveries("1.2", 1, name))
        for name in ("archive", "viewer", "late")
    }
    assert planned == {"archive": ["1", "3", "4"], "viewer": ["2", "3", "4"], "late": ["1", "3", "4"]}
    index.close()


def test_options_of_a_destination_override_its_profile(tmp_path):
    """A destination has the profile of [results] or its own, changed by single options."""
    path = tmp_path / "settings.toml"
    path.write_text(
        '[results]\nprofile = "weasis"\n'
        '[[destinations]]\nname = "a"\nae_title = "A"\nhost = "h"\n'
        '[[destinations]]\nname = "b"\nae_title = "B"\nhost = "h"\n'
        'profile = "ohif"\nparametric_map = "integer"\n'
        '[[destinations]]\nname = "c"\nae_title = "C"\nhost = "h"\n'
    )
    audience = load_settings(path).audience
    assert audience == {
        PROFILES["weasis"]: ("a", "c"),
        Profile(unaligned="fractional", projection="plane", parametric_map="integer"): ("b",),
    }


@pytest.mark.parametrize(
    ("name", "kinds"), [("standard", "SEG SR"), ("classic", "SR SC"), ("slicer", "SEG SR PM")]
)
def test_a_profile_knows_what_its_node_must_accept(name, kinds):
    """``daemon check`` asks for these SOP classes and no other."""
    assert set(PROFILES[name].sop_classes.values()) == set(kinds.split())
