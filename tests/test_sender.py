"""The sender, with Orthanc and storescp: a status for each object, and reasons a person understands."""

import socket
import time
from pathlib import Path
from typing import Any

import pydicom
import pytest
from factories import ct_series, write_all
from peers import free_port, orthanc, storescp
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import Verification

from daemon.dimse import storage_sop_classes
from daemon.errors import SendError
from daemon.requestor import associate
from daemon.sender import Destination, echo, probe, send

CT = "1.2.840.10008.5.1.4.1.1.2"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Give a small CT series."""
    return write_all(ct_series(), tmp_path / "ct")


def here(port: int, **changes: Any) -> Destination:
    """Return a destination on loopback."""
    return Destination(**{"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": port, **changes})


@pytest.mark.peer
def test_orthanc_gets_every_object_unchanged(tmp_path: Path, files: list[Path]) -> None:
    """Each object is in Orthanc afterwards with the data set that we sent; a repeat is fine, too."""
    with orthanc(tmp_path) as peer:
        assert echo(peer.destination()).ok
        for _ in range(2):
            outcomes = send(files, peer.destination())
            assert [(outcome.ok, outcome.status) for outcome in outcomes] == [(True, 0)] * len(files)
        stored = peer.instances()
        assert set(stored) == {outcome.sop_instance_uid for outcome in outcomes}
        for file, outcome in zip(files, outcomes, strict=True):
            copy = tmp_path / "copy.dcm"
            copy.write_bytes(peer.download(f"/instances/{stored[outcome.sop_instance_uid]}/file"))
            assert pydicom.dcmread(copy) == pydicom.dcmread(file)


@pytest.mark.peer
def test_a_wrong_ae_title_is_named_as_the_likely_cause(tmp_path: Path, files: list[Path]) -> None:
    """A rejected association says so, with both AE titles, for every object."""
    with orthanc(tmp_path) as peer:
        outcomes = send(files[:2], peer.destination(ae_title="WRONG"))
    assert [outcome.ok for outcome in outcomes] == [False, False]
    assert "WRONG" in outcomes[0].reason and "rejected" in outcomes[0].reason


@pytest.mark.peer
def test_storescp_gets_compressed_bytes_as_they_are(tmp_path: Path, files: list[Path]) -> None:
    """An encapsulated object arrives bit for bit, beside native ones on the same association."""
    ds = pydicom.dcmread(files[0])
    ds.compress(RLELossless, generate_instance_uid=False)
    ds.save_as(tmp_path / "rle.dcm", enforce_file_format=True)
    with storescp(tmp_path, "+xa", "+B") as peer:
        outcomes = send([tmp_path / "rle.dcm", files[1]], peer.destination())
        assert [outcome.status for outcome in outcomes] == [0, 0]
        received = {pydicom.dcmread(file).SOPInstanceUID: pydicom.dcmread(file) for file in peer.files()}
    assert received[ds.SOPInstanceUID].file_meta.TransferSyntaxUID == RLELossless
    assert received[ds.SOPInstanceUID].PixelData == ds.PixelData


@pytest.mark.peer
def test_what_is_not_accepted_is_named_and_the_rest_is_sent(tmp_path: Path, files: list[Path]) -> None:
    """A peer without RLE gets the native object, and the compressed one fails with its reason."""
    ds = pydicom.dcmread(files[0])
    ds.compress(RLELossless, generate_instance_uid=False)
    ds.save_as(tmp_path / "rle.dcm", enforce_file_format=True)
    with storescp(tmp_path, "+x=") as peer:
        bad, good = send([tmp_path / "rle.dcm", files[1]], peer.destination())
    assert good.ok
    assert not bad.ok and bad.status is None and "RLE" in bad.reason


@pytest.mark.peer
def test_a_peer_with_implicit_vr_only_gets_a_converted_object(tmp_path: Path, files: list[Path]) -> None:
    """Explicit VR becomes Implicit VR for a peer that knows nothing else; values stay."""
    with storescp(tmp_path, "+xi") as peer:
        assert send(files[:1], peer.destination())[0].ok
        received = pydicom.dcmread(peer.files()[0])
    assert received.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    assert received == pydicom.dcmread(files[0])


@pytest.mark.peer
def test_more_classes_than_one_association_holds_are_split(tmp_path: Path, files: list[Path]) -> None:
    """Objects of 70 SOP classes need 140 contexts and all arrive."""
    many = []
    for number, uid in enumerate(sorted(storage_sop_classes())[:70]):
        ds = pydicom.dcmread(files[0])
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = uid
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
        many.append(tmp_path / f"{number}.dcm")
        ds.save_as(many[-1])
    with orthanc(tmp_path) as peer:
        assert all(outcome.ok for outcome in send(many, peer.destination()))
        assert len(peer.instances()) == 70


@pytest.mark.peer
def test_probing_tells_what_a_peer_accepts(tmp_path: Path) -> None:
    """A probe lists accepted transfer syntaxes by SOP class and stores nothing."""
    with storescp(tmp_path, "+x=") as peer:
        found = probe(peer.destination(), [CT, "1.2.3.4"], [ExplicitVRLittleEndian, RLELossless])
        assert peer.files() == []
    assert found == {CT: (ExplicitVRLittleEndian,), "1.2.3.4": ()}


@pytest.mark.parametrize(
    ("status", "ok"),
    [
        (0x0000, True),
        (0x0111, True),
        (0xB000, True),
        (0xB006, True),
        (0xB007, True),
        (0xA700, False),
        (0xA900, False),
        (0xC123, False),
        (0x0110, False),
        (0x0122, False),
    ],
)
def test_each_status_is_taken_for_what_it_means(files: list[Path], status: int, ok: bool) -> None:
    """Duplicates and warnings count as delivered, failures do not, and both are named."""

    def answer(_event: evt.Event) -> int:
        return status

    ae = AE(ae_title="PACS")
    ae.add_supported_context(CT)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, answer)])
    outcome = send(files[:1], here(server.server_address[1]))[0]
    server.shutdown()
    assert (outcome.status, outcome.ok) == (status, ok)
    assert (f"0x{status:04X}" in outcome.reason) == (status != 0)


def test_a_dead_port_is_an_outcome_not_an_exception(files: list[Path]) -> None:
    """Nobody listens: each object fails with host and port in the reason."""
    port = free_port()
    outcome = send(files[:1], here(port))[0]
    assert not outcome.ok and outcome.status is None
    assert f"127.0.0.1:{port}" in outcome.reason
    assert not echo(here(port)).ok


def test_a_quick_rejection_is_not_taken_for_a_peer_that_is_away() -> None:
    """A peer rejects and closes before our thread comes round to its answer: it still counts as rejected."""

    def dawdle(_: evt.Event) -> None:
        time.sleep(0.5)

    ae = AE(ae_title="PACS")
    ae.add_supported_context(Verification)
    ae.require_called_aet = True
    server = ae.start_server(("127.0.0.1", 0), block=False)
    attempt = associate(
        here(server.server_address[1], ae_title="WRONG"),
        [(Verification, (ImplicitVRLittleEndian,))],
        [(evt.EVT_REQUESTED, dawdle)],
    )
    with pytest.raises(SendError, match=r"rejected .*ANOMALYD \(ours\) and WRONG \(theirs\)"), attempt:
        pass
    server.shutdown()


def test_an_unknown_host_is_named() -> None:
    """A host name that does not resolve is said to be unknown."""
    assert "unknown" in echo(here(104, host="no-such-host.invalid")).reason


def test_a_silent_peer_costs_no_more_than_its_timeout(files: list[Path]) -> None:
    """A peer that takes the connection and says nothing is given up after the ACSE timeout."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        started = time.monotonic()
        outcome = send(files[:1], here(server.getsockname()[1], acse_timeout_s=1.0))[0]
    assert not outcome.ok
    assert time.monotonic() - started < 10.0


def test_files_that_are_no_dicom_do_not_stop_the_others(tmp_path: Path, files: list[Path]) -> None:
    """A missing and a foreign file fail by themselves, and the good one arrives."""
    (tmp_path / "letter.txt").write_text("Dear Sir or Madam")
    received: list[Dataset] = []

    def keep(event: evt.Event) -> int:
        received.append(event.dataset)
        return 0

    ae = AE(ae_title="PACS")
    ae.add_supported_context(CT)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    paths = [tmp_path / "missing.dcm", tmp_path / "letter.txt", files[0]]
    outcomes = send(paths, here(server.server_address[1]))
    server.shutdown()
    assert [outcome.ok for outcome in outcomes] == [False, False, True]
    assert all(outcome.reason for outcome in outcomes[:2])
    assert len(received) == 1


def test_a_lost_association_fails_what_was_not_answered(files: list[Path]) -> None:
    """Objects answered before a peer goes down are sent, the others are not."""

    def once(event: evt.Event) -> int:
        if event.request.MessageID and len(seen) == 1:
            event.assoc.abort()
        seen.append(1)
        return 0

    seen: list[int] = []
    ae = AE(ae_title="PACS")
    ae.add_supported_context(build_context(CT).abstract_syntax or CT)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, once)])
    outcomes = send(files[:3], here(server.server_address[1], dimse_timeout_s=5.0))
    server.shutdown()
    assert [outcome.ok for outcome in outcomes] == [True, False, False]
