"""No patient data anywhere but in the objects themselves: not in the log, the database, or an error."""

import re
import sqlite3
import stat
import urllib.request
from collections.abc import Callable
from pathlib import Path

import factories
import pytest
from audit_schema import check
from conftest import RunningDaemon
from peers import free_port, orthanc, storescu
from pydicom import dcmread
from pydicom.dataset import Dataset

from daemon.index import Index
from daemon.phantom import make_case, write_case

pytestmark = [pytest.mark.peer, pytest.mark.slow]

MARK = "CANARY"
# Ours to choose: a date and an age that nothing else in a log or a table looks like.
BIRTH, AGE = "18991231", "077Y"
WORDS = (MARK.encode(), MARK.lower().encode(), BIRTH.encode(), AGE.encode())


def _marked(ds: Dataset) -> Dataset:
    for keyword in (
        "PatientName", "PatientID", "AccessionNumber", "StudyID", "StudyDescription", "SeriesDescription",
        "ReferringPhysicianName", "InstitutionName", "OperatorsName", "ProtocolName", "PatientComments",
        "RequestedProcedureDescription", "StationName", "ImageComments", "OtherPatientIDs",
        "BodyPartExamined",
    ):  # fmt: skip
        setattr(ds, keyword, f"{MARK}{len(keyword)}")
    ds.PatientBirthDate, ds.PatientAge = BIRTH, AGE
    return ds


def _study(folder: Path, number: int) -> tuple[str, list[Path]]:
    case = make_case(number, abnormal=True, slices=6, seed=1)
    paths = list(write_case(case, folder))
    for path in paths:
        factories.write(_marked(dcmread(path)), path)
    return case.study_instance_uid, paths


def _undecodable(folder: Path) -> tuple[str, Path]:
    """A JPEG 2000 image whose code stream is made of our mark, after a header that parses."""
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEG2000Lossless

    ds = _marked(factories.ct_series(1, 32, 32, study="broken")[0])
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    ds.PixelData = encapsulate([(MARK * 50).encode()])
    ds["PixelData"].VR = "OB"
    folder.mkdir()
    return ds.StudyInstanceUID, factories.write(ds, folder / "broken.dcm")


def _odd(folder: Path) -> tuple[str, Path]:
    """An image whose numbers are words: every reader's error would like to quote them."""
    ds = _marked(factories.ct_series(1, 32, 32, study="odd")[0])
    path = factories.write(ds, folder / "odd.dcm")
    data = path.read_bytes()
    changed, count = re.subn(
        rb"\x28\x00\x53\x10DS(.)\x00[0-9. ]+", b"\x28\x00\x53\x10DS\x06\x00" + MARK.encode(), data
    )
    assert count == 1
    path.write_bytes(changed)
    return ds.StudyInstanceUID, path


def _rows(database: Path) -> bytes:
    """Every value of every table, as bytes; the raw file too, for what was deleted."""
    found = []
    with sqlite3.connect(database) as connection:
        tables = [name for (name,) in connection.execute("select name from sqlite_master where type='table'")]
        assert {"pacs_studies", "pacs_instances", "pacs_deliveries"} <= set(tables)
        assert any("workflow" in table for table in tables), "the queue is elsewhere"
        for table in tables:
            found += [str(row).encode() for row in connection.execute(f'select * from "{table}"')]
    connection.close()
    files = [file.read_bytes() for file in database.parent.glob(f"{database.name}*")]
    return b"\n".join(found + files)


def test_no_patient_data_in_log_database_or_errors(
    tmp_path: Path, start_daemon: Callable[..., RunningDaemon]
) -> None:
    """Marked studies, one good, one undecodable, one odd, with the PACS down and then up, leave no mark."""
    port = free_port()
    good, files = _study(tmp_path / "ct", 901)
    broken, broken_file = _undecodable(tmp_path / "broken")
    odd, odd_file = _odd(tmp_path / "broken")
    daemon = start_daemon(port, quiet_s=0.5, page=True)
    storescu(daemon.port, *map(str, files))
    storescu(daemon.port, "-xv", str(broken_file))
    storescu(daemon.port, str(odd_file))

    def failed(index: Index) -> bool:
        return any(d.last_error for d in index.deliveries(good))

    daemon.wait_for(failed)
    done = ("scored", "refused", "failed")
    daemon.wait_for(lambda index: all(index.get_study(uid).state in done for uid in (good, broken, odd)))
    with orthanc(tmp_path, DicomPort=port):
        daemon.wait_for(lambda index: all(d.state == "sent" for d in index.deliveries(good)))
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        open_pages = [
            opener.open(f"http://127.0.0.1:{daemon.settings.web.port}{path}", timeout=30.0).read()
            for path in ("/metrics", "/healthz", "/readyz", "/login")
        ]
        assert daemon.stop() == 0
    with daemon.index() as index:
        reasons = [study.state_reason for study in index.list_studies()]
        assert len(reasons) == 3
        assert index.get_study(good).state == "scored"
        assert index.get_study(broken).state_reason
    data = tmp_path / "daemon-0/data"
    everything = {
        "log": daemon.log.read_bytes(),
        "database": _rows(data / "daemon.sqlite"),
        "metrics, health and sign-in": b"".join(open_pages),
        "metrics' files": b"".join(file.read_bytes() for file in (data / "metrics").iterdir()),
    }
    for place, content in everything.items():
        assert [word for word in WORDS if word in content] == [], place
    # The audit trail alone names the patient, as PS3.15 A.5 wants it to.
    for role in ("receive", "send"):
        transferred = [
            root
            for line in (data / "audit" / f"{role}.log").read_text().splitlines()
            if (root := check(line)).find(".//EventID[@csd-code='110104']") is not None
        ]
        names = [
            root.findtext(".//ParticipantObjectIdentification[2]/ParticipantObjectName")
            for root in transferred
        ]
        assert f"{MARK}11" in names, role


def test_log_has_no_uid_of_a_study(tmp_path: Path, start_daemon: Callable[..., RunningDaemon]) -> None:
    """A study in the log is its keyed hash; files of the data folder are their owner's alone."""
    uid, files = _study(tmp_path / "ct", 902)
    with orthanc(tmp_path) as pacs:
        daemon = start_daemon(pacs.port, quiet_s=0.3, page=True)
        storescu(daemon.port, *map(str, files))
        daemon.wait_for(
            lambda index: (
                bool(found := index.deliveries(uid)) and all(delivery.state == "sent" for delivery in found)
            )
        )
        assert daemon.stop() == 0
    log = daemon.log.read_text()
    assert "event=delivery" in log
    assert uid not in log and str(dcmread(files[0]).SOPInstanceUID) not in log
    data = daemon.settings.service.data_dir
    # The bundle was put there by the test itself.
    paths = [data, *(path for path in data.rglob("*") if path.parent != daemon.settings.bundles_dir)]
    assert len(paths) > 10
    modes = {str(path.relative_to(data)): stat.S_IMODE(path.stat().st_mode) for path in paths}
    open_to_others = {name: oct(mode) for name, mode in modes.items() if mode & 0o077}
    assert open_to_others == {}
