"""SEG: valid, on the right voxels, safe to display, the same bytes every time."""

from io import BytesIO

import highdicom as hd
import numpy as np
import pytest
import SimpleITK as sitk
from analyses import make_analysis, make_group, make_job, painted
from factories import ct_series, dx, mr_series, op, sc, us_cine, write
from factories_enhanced import enhanced_ct, enhanced_mr
from pydicom import dcmread
from validators import dcentvfy_errors, dciodvfy_errors

from daemon.errors import EncodeError
from daemon.profiles import Profile
from daemon.results import is_own
from daemon.seg import encode_seg

FIRST = (slice(0, 3), slice(4, 9), slice(5, 12))
SECOND = (slice(3, 4), slice(20, 24), slice(18, 30))
FLAT = (slice(0, 1), slice(4, 9), slice(5, 12))

SOURCES = {
    "ct": (lambda: ct_series(), [FIRST, SECOND]),
    "oblique-mr": (lambda: mr_series(), [FIRST, SECOND]),
    "enhanced-mr": (lambda: [enhanced_mr()], [FIRST, SECOND]),
    "enhanced-mr-shuffled": (lambda: [enhanced_mr(order=[3, 1, 4, 0, 2])], [FIRST, SECOND]),
    "enhanced-ct": (lambda: [enhanced_ct()], [FIRST]),
    "dx": (lambda: [dx()], [FLAT]),
    "op": (lambda: [op()], [FLAT]),
    "sc": (lambda: [sc()], [FLAT]),
    "us-cine": (lambda: [us_cine()], [FLAT, (slice(2, 3), slice(20, 24), slice(18, 30))]),
    "one-ct-slice": (lambda: ct_series(1), [FLAT]),
}


@pytest.fixture(params=SOURCES)
def case(request, tmp_path):
    """An analysis with findings for each kind of source, and its boxes."""
    make, boxes = SOURCES[request.param]
    return make_analysis(make_group(make(), tmp_path / "source"), boxes), boxes


def read(item):
    """Parse a result object."""
    return dcmread(BytesIO(item.content))


@pytest.mark.peer
def test_validators_find_no_error(case, tmp_path):
    """dciodvfy accepts each object, dcentvfy the objects beside their source."""
    analysis, _ = case
    paths = []
    for i, item in enumerate(encode_seg(analysis, make_job())):
        paths.append(tmp_path / f"{i}.dcm")
        paths[-1].write_bytes(item.content)
        assert dciodvfy_errors(paths[-1]) == []
    assert dcentvfy_errors([*paths, *{frame.path for frame in analysis.group.frames}]) == []


@pytest.mark.peer
def test_the_validator_notices_a_defect(tmp_path):
    """A SEG without its Type 1 device serial number is not accepted: the judge does judge."""
    analysis = make_analysis(make_group(ct_series(), tmp_path), [FIRST])
    ds = read(encode_seg(analysis, make_job())[0])
    del ds.DeviceSerialNumber
    assert dciodvfy_errors(write(ds, tmp_path / "broken.dcm"))


def test_a_repeat_gives_the_same_bytes(case):
    """Encoding the same job again makes the identical objects."""
    analysis, _ = case
    first, second = encode_seg(analysis, make_job()), encode_seg(analysis, make_job())
    assert [item.content for item in first] == [item.content for item in second]


def test_every_frame_names_its_source_frame(case):
    """Each filled frame references the instance, class and frame on which it lies, and that frame only."""
    analysis, boxes = case
    group = analysis.group
    mask = painted(group, boxes)
    multiframe = len({frame.sop_instance_uid for frame in group.frames}) < len(group.frames)
    index = {(frame.sop_instance_uid, frame.frame_number): i for i, frame in enumerate(group.frames)}
    seen = np.zeros_like(mask)
    for item in encode_seg(analysis, make_job()):
        ds = read(item)
        pixels = ds.pixel_array.reshape(-1, group.rows, group.columns)
        for plane, per_frame in zip(pixels, ds.PerFrameFunctionalGroupsSequence, strict=True):
            (image,) = per_frame.DerivationImageSequence[0].SourceImageSequence
            assert ("ReferencedFrameNumber" in image) == multiframe
            i = index[image.ReferencedSOPInstanceUID, int(image.get("ReferencedFrameNumber", 1))]
            assert image.ReferencedSOPClassUID == group.frames[i].sop_class_uid
            seen[i] |= plane > 0
    assert (seen == mask).all()


def test_series_reference_lists_each_instance_once(case):
    """ReferencedSeriesSequence names the source series and its instances, without frame numbers."""
    analysis, _ = case
    for item in encode_seg(analysis, make_job()):
        (series,) = read(item).ReferencedSeriesSequence
        assert series.SeriesInstanceUID == analysis.group.series_instance_uid
        instances = [ref.ReferencedSOPInstanceUID for ref in series.ReferencedInstanceSequence]
        assert len(instances) == len(set(instances))
        assert set(instances) <= {frame.sop_instance_uid for frame in analysis.group.frames}
        assert all("ReferencedFrameNumber" not in ref for ref in series.ReferencedInstanceSequence)


@pytest.mark.parametrize("kind", ["ct", "oblique-mr", "enhanced-mr", "enhanced-mr-shuffled"])
def test_round_trip_finds_the_mask_at_the_same_place_in_mm(kind, tmp_path):
    """highdicom and SimpleITK read the finding back at its voxels and at its centre in the patient."""
    make, boxes = SOURCES[kind]
    group = make_group(make(), tmp_path)
    (item,) = encode_seg(make_analysis(group, boxes), make_job())
    volume = hd.seg.segread(BytesIO(item.content)).get_volume(segment_numbers=[1], combine_segments=True)
    image = sitk.GetImageFromArray((volume.array > 0).astype(np.uint8))
    spacing, origin, direction = volume.spacing, volume.position, volume.direction
    image.SetSpacing(spacing[::-1])
    image.SetOrigin(origin)
    image.SetDirection(np.asarray(direction)[:, ::-1].ravel().tolist())
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.Execute(image)
    rows, columns = np.array(group.orientation[:3]), np.array(group.orientation[3:])
    z, y, x = (np.mean([s.start, s.stop - 1]) for s in FIRST)
    middle = np.array(group.frames[int(z)].position)
    dy, dx_ = group.pixel_spacing_mm
    expected = middle + x * dx_ * rows + y * dy * columns
    assert statistics.GetNumberOfPixels(1) == painted(group, [FIRST]).sum()
    assert np.allclose(statistics.GetCentroid(1), expected, atol=1e-3)


def test_no_finding_makes_no_seg(tmp_path):
    """An empty mask would be stored with all its frames; the SR alone says that nothing was found."""
    assert encode_seg(make_analysis(make_group(ct_series(), tmp_path), []), make_job()) == ()


def test_empty_frames_are_kept_until_there_are_too_many(tmp_path):
    """Few frames are all kept; a destination may omit the empty ones; over 400 they always are."""
    group = make_group(ct_series(), tmp_path / "few")
    analysis = make_analysis(group, [FIRST, SECOND])
    assert read(encode_seg(analysis, make_job())[0]).NumberOfFrames == 10
    (sparse,) = encode_seg(analysis, make_job(), profile=Profile(empty_frames="omit"))
    assert read(sparse).NumberOfFrames == 4
    many = make_group(ct_series(202, 16, 16), tmp_path / "many")
    boxes = [(slice(0, 3), slice(2, 4), slice(2, 4)), (slice(9, 11), slice(9, 11), slice(9, 11))]
    assert read(encode_seg(make_analysis(many, boxes), make_job())[0]).NumberOfFrames == 5


def test_unaligned_frames_can_be_fractional(tmp_path):
    """Where Rows × Columns is no multiple of 8 a destination may ask for FRACTIONAL with 0 and 1."""
    group = make_group(ct_series(5, 31, 33), tmp_path / "odd")
    analysis = make_analysis(group, [FIRST, SECOND])
    options = Profile(unaligned="fractional")
    ds = read(encode_seg(analysis, make_job(), profile=options)[0])
    assert ds.SegmentationType == "FRACTIONAL" and set(np.unique(ds.pixel_array)) == {0, 1}
    assert read(encode_seg(analysis, make_job())[0]).SegmentationType == "BINARY"
    even = make_analysis(make_group(ct_series(), tmp_path / "even"), [FIRST])
    assert read(encode_seg(even, make_job(), profile=options)[0]).SegmentationType == "BINARY"


def test_segments_carry_tracking_and_colour(tmp_path):
    """Each segment has the finding's tracking identifiers, a colour of its own, and says AUTOMATIC."""
    analysis = make_analysis(make_group(ct_series(), tmp_path), [FIRST, SECOND])
    ds = read(encode_seg(analysis, make_job())[0])
    assert [s.TrackingUID for s in ds.SegmentSequence] == [f.tracking_uid for f in analysis.findings]
    assert len({tuple(s.RecommendedDisplayCIELabValue) for s in ds.SegmentSequence}) == 2
    assert {s.SegmentAlgorithmType for s in ds.SegmentSequence} == {"AUTOMATIC"}
    assert ds.ContentQualification == "RESEARCH" and "(research)" in ds.SeriesDescription
    assert ds.FrameOfReferenceUID == analysis.group.frame_of_reference_uid


def test_own_results_are_recognised(tmp_path):
    """A SEG that comes back is ours, its source is not."""
    analysis = make_analysis(make_group(ct_series(), tmp_path), [FIRST])
    assert is_own(read(encode_seg(analysis, make_job())[0]))
    assert not is_own(dcmread(analysis.group.frames[0].path))


CHARACTER_SETS = {
    "japanese": (["", "ISO 2022 IR 87"], b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"),
    "korean": (["", "ISO 2022 IR 149"], b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7"),
    "utf-8": ("ISO_IR 192", "Müller^Jörg".encode()),
    "not-in-the-set": ("ISO_IR 6", b"M\xfcller^J\xf6rg"),
}


@pytest.mark.parametrize("kind", CHARACTER_SETS)
def test_patient_name_is_copied_byte_for_byte(kind, tmp_path):
    """Any character set, even a damaged one, reaches the SEG as it came."""
    character_set, name = CHARACTER_SETS[kind]
    ds = ct_series(1)[0]
    ds.SpecificCharacterSet = character_set
    name += b" " * (len(name) % 2)
    ds.PatientName = "X" * len(name)
    group = make_group([ds], tmp_path)
    path = group.frames[0].path
    path.write_bytes(path.read_bytes().replace(b"X" * len(name), name))
    (item,) = encode_seg(make_analysis(group, [FLAT]), make_job())
    assert name in item.content
    assert read(item).get("SpecificCharacterSet") == dcmread(path).get("SpecificCharacterSet")


def test_odd_attributes_are_kept(tmp_path):
    """PatientSex "U", a damaged date and a missing Type 2 attribute neither stop the SEG nor change."""
    ds = ct_series(1)[0]
    ds.PatientSex = "U"
    ds.StudyDate = "2026.01.02"
    del ds.StudyID
    group = make_group([ds], tmp_path)
    made = read(encode_seg(make_analysis(group, [FLAT]), make_job())[0])
    assert made.PatientSex == "U" and str(made.get_item("StudyDate").value.decode()) == "2026.01.02"
    assert made.StudyID in (None, "")


def test_private_sop_class_is_referenced_as_it_is(tmp_path):
    """A class that highdicom does not know is named truly in the references."""
    images = ct_series()
    for ds in images:
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.826.0.1.3680043.9.9999.1"
    group = make_group(images, tmp_path)
    made = read(encode_seg(make_analysis(group, [FIRST]), make_job())[0])
    image = made.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    assert image.ReferencedSOPClassUID == "1.2.826.0.1.3680043.9.9999.1"


def test_slice_thickness_is_never_missing_or_negative(tmp_path):
    """Without SliceThickness the distance between planes stands in."""
    images = ct_series(spacing=(2.5, 1.0, 1.0))
    for ds in images:
        del ds.SliceThickness
    made = read(encode_seg(make_analysis(make_group(images, tmp_path), [FIRST]), make_job())[0])
    measures = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert float(measures.SliceThickness) == 2.5 and float(measures.SpacingBetweenSlices) == 2.5


def test_times_are_in_the_time_zone_of_the_source(tmp_path):
    """Dates and times of the SEG follow TimezoneOffsetFromUTC."""
    ds = ct_series(1)[0]
    ds.TimezoneOffsetFromUTC = "+0530"
    made = read(encode_seg(make_analysis(make_group([ds], tmp_path), [FLAT]), make_job())[0])
    assert made.TimezoneOffsetFromUTC == "+0530" and made.ContentTime.startswith("154112")


def test_a_source_that_is_gone_is_a_clear_error(tmp_path):
    """A spooled file that was deleted is named as the reason, without its path."""
    analysis = make_analysis(make_group(ct_series(1), tmp_path), [FLAT])
    analysis.group.frames[0].path.unlink()
    with pytest.raises(EncodeError, match="spool"):
        encode_seg(analysis, make_job())
