"""The spool: durable, idempotent, never over another file, rebuildable."""

import os
import resource
import stat
import threading
from pathlib import Path

import pydicom
import pytest
from factories import ct_series, scanned

from daemon.errors import DiskReserveError, SpoolError
from daemon.spool import Part, Spool, StoredInstance


def data_set(text: str = "", **uids: str) -> bytes:
    """Encode a small Explicit VR Little Endian data set."""
    ds = pydicom.Dataset()
    ds.SOPClassUID = uids.get("sop_class", "1.2.840.10008.5.1.4.1.1.2")
    ds.SOPInstanceUID = uids.get("sop", "1.2.3.4")
    ds.StudyInstanceUID = uids.get("study", "1.2")
    ds.SeriesInstanceUID = uids.get("series", "1.2.3")
    ds.ImageComments = text
    buffer = pydicom.filebase.DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    pydicom.filewriter.write_dataset(buffer, ds)
    return buffer.getvalue()


def begin(spool: Spool, sop: str = "1.2.3.4") -> Part:
    """Begin an instance from MODALITY."""
    return spool.begin("1.2.840.10008.5.1.4.1.1.2", sop, "1.2.840.10008.1.2.1", "MODALITY")


def store(spool: Spool, data: bytes, sop: str = "1.2.3.4", study: str = "1.2") -> StoredInstance:
    """Store one data set."""
    part = begin(spool, sop)
    part.write(data)
    return part.commit(study, "1.2.3")


def test_bytes_are_kept_as_received_behind_our_own_file_meta(tmp_path: Path) -> None:
    """A stored file is a valid Part 10 file whose data set is what came, byte for byte."""
    spool = Spool(tmp_path / "spool")
    data = data_set("as it came")
    stored = store(spool, data)
    file = spool.path(stored.path)
    assert file.read_bytes().endswith(data)
    assert file.stat().st_size == stored.size_bytes
    meta = pydicom.dcmread(file).file_meta
    assert meta.SourceApplicationEntityTitle == "MODALITY"
    assert meta.FileMetaInformationGroupLength + 144 + len(data) == stored.size_bytes


def test_nobody_else_may_read_the_spool(tmp_path: Path) -> None:
    """Files have mode 0600 and directories 0700, whatever the umask."""
    before = os.umask(0)
    try:
        spool = Spool(tmp_path / "spool")
        store(spool, data_set())
    finally:
        os.umask(before)
    for path in [spool.root, *spool.root.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_the_same_instance_again_changes_nothing(tmp_path: Path) -> None:
    """A repeat gives the instance that is there already, and no second file."""
    spool = Spool(tmp_path / "spool")
    first, second = store(spool, data_set("a")), store(spool, data_set("a"))
    assert (first.path, first.version) == (second.path, second.version)
    assert len(scanned(spool)) == 1


def test_other_bytes_under_the_same_uid_are_kept_as_a_new_version(tmp_path: Path) -> None:
    """A changed instance never replaces the earlier one, and each repeat finds its own version."""
    spool = Spool(tmp_path / "spool")
    versions = [store(spool, data_set(text)).version for text in ("a", "b", "a", "b", "c")]
    assert versions == [1, 2, 1, 2, 3]
    assert {stored.version for stored in scanned(spool)} == {1, 2, 3}


def test_parallel_stores_of_one_instance_leave_one_whole_file_each(tmp_path: Path) -> None:
    """Eight threads that store two contents under one UID end with exactly two whole versions."""
    spool = Spool(tmp_path / "spool")
    contents = [data_set("a" * 5_000), data_set("b" * 5_000)]
    results: list[StoredInstance] = []
    threads = [
        threading.Thread(target=lambda data=contents[n % 2]: results.append(store(spool, data)))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    on_disk = {spool.path(stored.path).read_bytes()[-len(contents[0]) :] for stored in scanned(spool)}
    assert on_disk == set(contents)
    assert not list((spool.root / "tmp").iterdir())


@pytest.mark.parametrize("uid", ["../../etc/passwd", "1.2/3", "", "1." * 40, "a.b", "1..2", "1.2\n"])
def test_a_uid_that_is_none_never_becomes_a_path(tmp_path: Path, uid: str) -> None:
    """Malformed UIDs are hashed into file names, so that no peer writes outside the spool."""
    spool = Spool(tmp_path / "spool")
    stored = store(spool, data_set(), sop=uid, study=uid)
    assert spool.path(stored.path).resolve().is_relative_to(spool.root.resolve())
    assert len(Path(stored.path).parts) == 4


def test_near_the_reserve_the_free_space_is_asked_for_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up is noticed with the next instance; what was free a moment ago does not count."""
    spool = Spool(tmp_path / "spool", reserve_bytes=1_000)
    left = iter([2_000, 999])
    monkeypatch.setattr(spool, "free_bytes", lambda: next(left))
    spool.check_reserve()
    with pytest.raises(DiskReserveError):
        spool.check_reserve()


def test_far_above_the_reserve_the_free_space_is_asked_for_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With terabytes free the kernel is not asked for every slice, and a raised reserve counts at once."""
    spool = Spool(tmp_path / "spool", reserve_bytes=1_000)
    asked: list[int] = []
    monkeypatch.setattr(spool, "free_bytes", lambda: asked.append(1) or 10**12)
    monkeypatch.setattr("daemon.spool.time.monotonic", lambda: 5.0)
    for _ in range(10):
        spool.check_reserve()
    assert len(asked) == 1
    spool.reserve_bytes = 2 * 10**12
    with pytest.raises(DiskReserveError):
        spool.check_reserve()


def test_below_the_reserve_nothing_is_taken(tmp_path: Path) -> None:
    """An instance is refused before its first byte when the disk is below its reserve."""
    spool = Spool(tmp_path / "spool", reserve_bytes=1 << 62)
    with pytest.raises(DiskReserveError):
        begin(spool)
    assert not list((spool.root / "tmp").iterdir())


def test_what_the_disk_cannot_take_leaves_nothing_behind(tmp_path: Path) -> None:
    """A write that the disk refuses is a SpoolError, and dropping the part then fails no second time."""
    spool = Spool(tmp_path)
    part = begin(spool)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(SpoolError):
            for _ in range(100):
                part.write(bytes(1000))
        part.discard()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_leftovers_are_removed_but_not_what_still_arrives(tmp_path: Path) -> None:
    """A start removes parts of dead receptions and leaves the one that a live process writes."""
    spool = Spool(tmp_path / "spool")
    (spool.root / "tmp" / "dead.part").write_bytes(b"x")
    os.utime(spool.root / "tmp" / "dead.part", (1, 1))
    live = begin(spool)
    assert spool.clean() == 1
    live.write(data_set())
    assert live.commit("1.2", "1.2.3").version == 1


def test_scan_gives_back_what_was_stored(tmp_path: Path) -> None:
    """Every field of every instance can be read from the disk alone."""
    spool = Spool(tmp_path / "spool")
    stored = {s.sop_instance_uid: s for s in (store(spool, data_set(sop=u), sop=u) for u in ("1.5", "1.6"))}
    for found in scanned(spool):
        expected = stored[found.sop_instance_uid]
        for name in ("path", "calling_ae", "version", "transfer_syntax_uid", "size_bytes"):
            assert getattr(found, name) == getattr(expected, name)
    known = {s.path for s in stored.values()}
    assert [found for study in spool.studies() for found in spool.scan(study, known)] == []


def test_a_result_has_one_content(tmp_path: Path) -> None:
    """Writing a result again is harmless, writing another one under its name is refused."""
    spool = Spool(tmp_path / "spool")
    path = spool.write_result("1.2", 1, "1.9.dcm", b"content")
    assert spool.write_result("1.2", 1, "1.9.dcm", b"content") == path
    with pytest.raises(SpoolError):
        spool.write_result("1.2", 1, "1.9.dcm", b"another")
    assert spool.path(path).read_bytes() == b"content"
    assert scanned(spool) == []


def test_the_header_is_found_without_the_pixels(tmp_path: Path) -> None:
    """The UIDs of an image are read although its pixel data never arrived."""
    ds = ct_series()[0]
    buffer = pydicom.filebase.DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    pydicom.filewriter.write_dataset(buffer, ds)
    part = begin(Spool(tmp_path / "spool"))
    part.write(buffer.getvalue()[:-100])
    header = part.header()
    part.discard()
    assert (header.study_instance_uid, header.sop_instance_uid) == (ds.StudyInstanceUID, ds.SOPInstanceUID)
