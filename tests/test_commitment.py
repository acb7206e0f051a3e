"""Storage commitment, asked and answered, with Orthanc on the other side, on one association or on two."""

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from factories import ct_series, write_all
from peers import OrthancPeer, free_port, orthanc
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_primitives import N_ACTION, N_EVENT_REPORT
from pynetdicom.pdu import P_DATA_TF
from sqlalchemy import select, text
from test_receiver import Node, running, wait_for

from daemon import commitment
from daemon.admission import Peer
from daemon.commitment import Reference, Report, judge
from daemon.incoming import IncomingProvider
from daemon.keeper import Keeper
from daemon.limits import Limits
from daemon.pledges import Asked, not_committed
from daemon.receiving import _peers
from daemon.records import ResultRecord
from daemon.requestor import Destination
from daemon.sections import CommitmentSettings
from daemon.sender import send
from daemon.settings import load_settings
from daemon.spool import Spool
from daemon.tables import DeliveryRow

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"

# What a modality needs to ask, and what a destination with commitment = true gets to answer.
ASKING = Peer("ct", "MODALITY", "127.0.0.1", frozenset({"store", "echo", "commit"}))
ANSWERING = Peer("pacs", "ORTHANC", "127.0.0.1", frozenset({"echo", "commit"}))


def here(node: Node) -> Destination:
    """The node as a destination of ours."""
    return Destination("self", "ANOMALYD", "127.0.0.1", node.port, calling_ae="MODALITY")


def stored(node: Node, folder: Path) -> list[Reference]:
    """Store a series and return its instances."""
    files = write_all(ct_series(), folder)
    assert all(outcome.ok for outcome in send(files, here(node)))
    return [Reference(CT, uid) for uid in node.instances()]


def peer_node(peer: Peer) -> Destination:
    """Where a peer listens."""
    return Destination(peer.name, peer.ae_title, peer.host, peer.port, calling_ae="ANOMALYD")


class Scu:
    """A modality that asks for commitment and keeps the reports it gets."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.types: list[int] = []
        self._taken: list[Report] = []

    def handlers(self) -> list[Any]:
        """What pynetdicom calls."""
        return [(evt.EVT_N_EVENT_REPORT, self.take), (evt.EVT_PDU_SENT, self.answered)]

    def take(self, event: evt.Event) -> tuple[int, Dataset | None]:
        """Read one report."""
        self.types.append(event.event_type)
        self._taken.append(commitment.decode(event.event_information))
        return 0, None

    def answered(self, event: evt.Event) -> None:
        """Keep what was read once its answer is out: a release before that would cut it off."""
        if isinstance(event.pdu, P_DATA_TF):
            self.reports += self._taken
            self._taken.clear()

    @contextmanager
    def asking(self, node: Node, transaction: str, references: list[Reference]) -> Iterator[int]:
        """Ask on an association that stays open for a while."""
        ae = AE(ae_title="MODALITY")
        ae.add_requested_context(commitment.SOP_CLASS)
        assoc = ae.associate("127.0.0.1", node.port, ae_title="ANOMALYD", evt_handlers=self.handlers())
        assert assoc.is_established
        connection = assoc.dul.socket.socket
        ds = commitment.request(transaction, references)
        status, _ = assoc.send_n_action(ds, 1, commitment.SOP_CLASS, commitment.SOP_INSTANCE)
        try:
            yield status.Status
        finally:
            assoc.release()
            assoc.join(10.0)
            connection.close()

    @contextmanager
    def listening(self, port: int) -> Iterator[None]:
        """Listen for reports on associations of the other side."""
        ae = AE(ae_title="MODALITY")
        ae.add_supported_context(commitment.SOP_CLASS, scu_role=False, scp_role=True)
        server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=self.handlers())
        try:
            yield
        finally:
            server.shutdown()


def test_a_report_survives_its_encoding() -> None:
    """What is encoded is decoded as the same report, with and without failures."""
    whole = Report("1.2.3", (Reference(CT, "1.1"),))
    partly = Report("1.2.3", (Reference(CT, "1.1"),), ((Reference(CT, "1.2"), 0x0112),))
    for report in (whole, partly):
        assert commitment.decode(commitment.encode(report)) == report
    assert (whole.event_type, partly.event_type) == (1, 2)
    assert "FailedSOPSequence" not in commitment.encode(whole)


def test_what_we_hold_is_committed_on_the_same_association(tmp_path: Path) -> None:
    """Every stored instance is reported as committed before the asking association ends."""
    scu = Scu()
    with running(tmp_path, peers=[ASKING]) as node:
        references = stored(node, tmp_path / "ct")
        with scu.asking(node, "1.2.3.4", references) as status:
            assert status == 0
            wait_for(lambda: bool(scu.reports))
    assert scu.types == [1]
    assert scu.reports[0].transaction_uid == "1.2.3.4"
    assert set(scu.reports[0].committed) == set(references)


def test_each_failure_has_its_reason(tmp_path: Path) -> None:
    """Unknown: 0x0112; of another class: 0x0119; lost from the disk: 0x0110; the rest is committed."""
    scu = Scu()
    with running(tmp_path, peers=[ASKING]) as node:
        first, second, third = stored(node, tmp_path / "ct")[:3]
        node.spool.path(node.instances()[second.sop_instance_uid].path).unlink()
        asked = [first, second, Reference(MR, third.sop_instance_uid), Reference(CT, "1.2.3")]
        with scu.asking(node, "1.2.3.5", asked) as status:
            assert status == 0
            wait_for(lambda: bool(scu.reports))
    assert scu.types == [2]
    assert scu.reports[0].committed == (first,)
    assert [reason for _, reason in scu.reports[0].failed] == [0x0110, 0x0119, 0x0112]


def test_too_many_at_once_are_a_resource_limitation(tmp_path: Path) -> None:
    """A request above the limit gets 0x0213 for every instance."""
    node = Node(tmp_path)
    asked = [Reference(CT, f"1.2.{number}") for number in range(3)]
    report = judge("1.2", asked, node.index.pledges, node.spool, maximum=2)
    node.index.close()
    assert [reason for _, reason in report.failed] == [0x0213] * 3


def test_a_peer_that_went_is_called_back(tmp_path: Path) -> None:
    """When the asking association is over, the report comes on a new one, to the port in [[peers]]."""
    scu = Scu()
    port = free_port()
    peer = replace(ASKING, port=port)
    with running(tmp_path, peers=[peer], peer_node=peer_node) as node, scu.listening(port):
        references = stored(node, tmp_path / "ct")
        # The answers on the asking association are lost: it ends while its report is on the way.
        reporter = node.receiver.commitment.reporter
        reporter._send = _gone_once(reporter._send)  # type: ignore[method-assign]
        with scu.asking(node, "1.2.3.6", references) as status:
            assert status == 0
        wait_for(lambda: bool(scu.reports))
    assert set(scu.reports[0].committed) == set(references)


def _gone_once(real: Any) -> Any:
    calls: list[int] = []

    def answer(assoc: Any, report: Report) -> str:
        calls.append(1)
        return "the association went" if len(calls) == 1 else str(real(assoc, report))

    return answer


def test_a_peer_without_the_right_is_not_authorised(tmp_path: Path) -> None:
    """A peer that may only store gets 0x0124 to its request."""
    peers = [Peer("ct", "MODALITY", "127.0.0.1", frozenset({"store"}))]
    with (
        running(tmp_path, peers=peers, accept_unknown_peers=False) as node,
        Scu().asking(node, "1.2", [Reference(CT, "1.2")]) as status,
    ):
        assert status == 0x0124


def test_an_unlisted_peer_gets_no_commitment(tmp_path: Path) -> None:
    """Whoever may store without being listed is not told to rely on us: 0x0124."""
    with running(tmp_path) as node:
        references = stored(node, tmp_path / "ct")
        with Scu().asking(node, "1.2.3.7", references) as status:
            assert status == 0x0124


@pytest.mark.parametrize(
    ("peer", "destination", "may"),
    [
        ("", "", {"store", "echo"}),
        ('may = ["store", "commit"]', "", {"store", "commit"}),
        ("", "commitment = true", {"store", "echo", "commit"}),
        ('may = ["store"]', "commitment = true", {"store"}),
    ],
)
def test_commitment_is_a_right_that_is_given(
    tmp_path: Path, peer: str, destination: str, may: set[str]
) -> None:
    """It is not in a peer's default, but for a destination that is asked to commit and has to answer."""
    node = 'name = "a"\nae_title = "A"\nhost = "127.0.0.1"\n'
    path = tmp_path / "settings.toml"
    path.write_text(f"[[peers]]\n{node}{peer}\n[[destinations]]\n{node}{destination}\n")
    found = _peers(load_settings(path))
    assert [known.may for known in found] == [may]


def test_a_request_between_report_and_answer_is_not_lost(tmp_path: Path) -> None:
    """A store that crosses our report is served all the same, and the report is answered."""
    scu = Scu()
    slow = threading.Event()

    def take(event: evt.Event) -> tuple[int, Dataset | None]:
        slow.wait(1.0)
        return scu.take(event)

    with running(tmp_path, peers=[ASKING]) as node:
        references = stored(node, tmp_path / "ct")
        ae = AE(ae_title="MODALITY")
        ae.add_requested_context(commitment.SOP_CLASS)
        ae.add_requested_context(CT)
        handlers = [(evt.EVT_N_EVENT_REPORT, take), (evt.EVT_PDU_SENT, scu.answered)]
        assoc = ae.associate("127.0.0.1", node.port, ae_title="ANOMALYD", evt_handlers=handlers)
        connection = assoc.dul.socket.socket
        ds = commitment.request("1.2.9", references)
        assoc.send_n_action(ds, 1, commitment.SOP_CLASS, commitment.SOP_INSTANCE)
        assert assoc.send_c_store(ct_series()[0]).Status == 0
        slow.set()
        wait_for(lambda: bool(scu.reports))
        assoc.release()
        assoc.join(10.0)
        connection.close()


# As SCU


def delivered(node: Node, destination: Destination, folder: Path) -> tuple[str, list[str]]:
    """Deliver two objects of a study as its results, and return study and their UIDs."""
    stored(node, folder)
    study = node.index.list_studies()[0].study_instance_uid
    node.index.open_revision(study, 1)
    paths = sorted(folder.iterdir())[:2]
    uids = [outcome.sop_instance_uid for outcome in send(paths, destination)]
    node.index.add_results(
        ResultRecord(study, 1, "SEG", CT, uid, f"{uid}.9", "results/x.dcm", "0" * 64) for uid in uids
    )
    node.index.plan_deliveries(study, 1, [destination.name], time.time() + 1000.0)
    for delivery in node.index.deliveries(study):
        node.index.update_delivery(delivery, "sent")
    return study, uids


def keeper(node: Node, destination: Destination, clock: Any = time.time, **changes: Any) -> Keeper:
    """A keeper for one destination."""
    settings = CommitmentSettings(**{"wait_s": 0.2, **changes})
    return Keeper(node.index.pledges, [destination], settings, b"key", clock)


def known_to(peer_port: int) -> dict[str, Any]:
    """Orthanc's entry for our node."""
    return {"DicomModalities": {"us": ["ANOMALYD", "127.0.0.1", peer_port]}, "DicomAlwaysAllowStore": True}


@pytest.mark.peer
def test_orthanc_commits_itself_to_what_it_got(tmp_path: Path) -> None:
    """Orthanc reports on a new association to our receiver, and each delivery gets its time."""
    with running(tmp_path, peers=[ANSWERING]) as node, orthanc(tmp_path, **known_to(node.port)) as pacs:
        target = pacs.destination(calling_ae="ANOMALYD")
        study, uids = delivered(node, target, tmp_path / "ct")
        assert keeper(node, target).tick() == 1
        wait_for(lambda: all(d.committed_at for d in node.index.deliveries(study)), 20.0)
        assert len(node.index.deliveries(study)) == len(uids)
        assert keeper(node, target).tick() == 0


@pytest.mark.peer
def test_what_orthanc_lost_is_sent_again(tmp_path: Path) -> None:
    """What Orthanc does not have is not committed: its delivery fails with the reason, the other is kept."""
    with running(tmp_path, peers=[ANSWERING]) as node, orthanc(tmp_path, **known_to(node.port)) as pacs:
        target = pacs.destination(calling_ae="ANOMALYD")
        study, uids = delivered(node, target, tmp_path / "ct")
        _delete(pacs, pacs.instances()[uids[0]])
        assert keeper(node, target).tick() == 1
        wait_for(lambda: any(d.committed_at for d in node.index.deliveries(study)), 20.0)
        by_uid = {d.sop_instance_uid: d for d in node.index.deliveries(study)}
        assert by_uid[uids[0]].state == "failed"
        assert "0x0112" in by_uid[uids[0]].last_error
        assert by_uid[uids[1]].state == "sent"


@pytest.mark.peer
def test_orthanc_gets_our_commitment(tmp_path: Path) -> None:
    """Orthanc sends us a series, asks for commitment and books success."""
    orthanc_port = free_port()
    peer = replace(ASKING, ae_title="ORTHANC", port=orthanc_port)
    with (
        running(tmp_path, peers=[peer], peer_node=peer_node) as node,
        orthanc(tmp_path, DicomPort=orthanc_port, **known_to(node.port)) as pacs,
    ):
        assert all(o.ok for o in send(write_all(ct_series(), tmp_path / "ct"), pacs.destination()))
        resources = list(pacs.instances().values())
        body = {"Resources": resources, "StorageCommitment": True, "Synchronous": True}
        answer = _post(pacs, "/modalities/us/store", body)
        report = f"/storage-commitment/{answer['StorageCommitmentTransactionUID']}"
        wait_for(lambda: pacs.get(report)["Status"] != "Pending", 20.0)
        assert pacs.get(report)["Status"] == "Success"


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[IncomingProvider, Any]]:
    """Somebody has sent a report on a peer's association, and waits for the answer."""
    monkeypatch.setattr(DIMSEServiceProvider, "send_msg", lambda *_: None)
    assoc: Any = SimpleNamespace(is_established=True)
    provider = IncomingProvider(assoc, Spool(tmp_path), Limits(), lambda _: None)
    provider.send_msg(N_EVENT_REPORT(), 1)
    with ThreadPoolExecutor(1) as somebody:
        yield provider, somebody.submit(provider.get_msg, True)


def test_an_answer_is_for_whoever_waits_for_it(waiting: tuple[IncomingProvider, Any]) -> None:
    """pynetdicom's own thread, which is not paused yet, takes no answer, and requests as before."""
    provider, found = waiting
    answer, request = N_EVENT_REPORT(), N_ACTION()
    answer.MessageIDBeingRespondedTo, request.MessageID = 1, 7
    provider.msg_queue.put((1, request))
    provider.msg_queue.put((1, answer))
    polled = []
    while not found.done() or provider.has_messages:
        polled.append(provider.get_msg()[1])
    assert found.result(10.0) == (1, answer)
    assert [message for message in polled if message is not None] == [request]


def test_nobody_waits_for_an_association_that_has_ended(waiting: tuple[IncomingProvider, Any]) -> None:
    """It ended as the report was sent: the report goes out anew at once, not after the timeout."""
    provider, found = waiting
    provider.assoc.is_established = False
    assert found.result(10.0) == (None, None)


@contextmanager
def archive(status: int) -> Iterator[Destination]:
    """A destination that answers each request with a status, and never reports."""
    port = free_port()
    ae = AE(ae_title="ARCHIVE")
    ae.add_supported_context(commitment.SOP_CLASS)
    handlers = [(evt.EVT_N_ACTION, lambda _: (status, None))]
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
    try:
        yield Destination("archive", "ARCHIVE", "127.0.0.1", port)
    finally:
        server.shutdown()


def also_at(node: Node, destination: Destination, folder: Path) -> str:
    """Deliver a study, note that this destination got its results as well, and return the study."""
    study, _ = delivered(node, here(node), folder)
    node.index.plan_deliveries(study, 1, [destination.name], 10_000.0)
    for delivery in node.index.deliveries(study, 1, destination.name):
        node.index.update_delivery(delivery, "sent")
    return study


def test_an_answer_that_does_not_come_is_asked_for_again(tmp_path: Path) -> None:
    """Not before the timeout, then again, not beyond the maximum of accepted ones; a person has it go on."""
    now = [1000.0]
    with running(tmp_path) as node, archive(0x0000) as silent:
        study = also_at(node, silent, tmp_path / "ct")
        asking = keeper(node, silent, lambda: now[0], timeout_s=60.0, maximum_requests=3, wait_s=0.0)

        def made(ticks: int) -> list[int]:
            found = []
            for _ in range(ticks):
                found.append(asking.tick())
                now[0] += 30.5
            return found

        assert made(8) == [1, 0, 1, 0, 1, 0, 0, 0]
        assert node.index.pledges.asked(study, 1, silent.name).accepted == 3
        assert node.index.pledges.ask_anew([silent.name], study) == 2
        assert made(2) == [1, 0]


def _made_at(asking: Keeper, now: list[float], hours: float) -> list[float]:
    """Tick every minute for a while and return at which minutes something was asked."""
    began, minutes = now[0], []
    while now[0] < began + hours * 3_600.0:
        if asking.tick():
            minutes.append((now[0] - began) / 60.0)
        now[0] += 60.0
    return minutes


def test_an_outage_is_outlasted(tmp_path: Path) -> None:
    """A destination that is away is asked for ever, ever more rarely, and none of that counts."""
    now = [1_000_000.0]
    away = Destination("away", "NOBODY", "127.0.0.1", free_port(), connect_timeout_s=0.5)
    with running(tmp_path) as node:
        study = also_at(node, away, tmp_path / "ct")
        asking = keeper(node, away, lambda: now[0], maximum_requests=2)
        assert _made_at(asking, now, 5.0) == [0, 10, 30, 70, 130, 190, 250]
        now[0] += 30 * 86_400.0
        assert asking.tick() == 1
        assert node.index.pledges.asked(study, 1, away.name).accepted == 0


def test_a_request_that_is_refused_does_not_count(tmp_path: Path) -> None:
    """A destination that takes no requests for now is asked again, however often it refused."""
    now = [1_000_000.0]
    with running(tmp_path) as node, archive(0x0213) as busy:
        study = also_at(node, busy, tmp_path / "ct")
        asking = keeper(node, busy, lambda: now[0], maximum_requests=2)
        assert _made_at(asking, now, 3.0) == [0, 10, 30, 70, 130]
        assert node.index.pledges.asked(study, 1, busy.name) == (Asked(0, 5, now[0] - 50 * 60.0))


def test_one_destination_that_is_away_is_asked_once_for_all_its_studies(tmp_path: Path) -> None:
    """Its other revisions are not tried in the same round: each try may take the whole timeout."""
    away = Destination("away", "NOBODY", "127.0.0.1", free_port(), connect_timeout_s=0.5)
    with running(tmp_path) as node:
        study = also_at(node, away, tmp_path / "ct")
        node.index.add_results(
            ResultRecord(study, 2, "SR", CT, uid, f"{uid}.9", "results/x.dcm", "0" * 64) for uid in ["1.2.7"]
        )
        node.index.plan_deliveries(study, 2, [away.name], 10_000.0)
        for delivery in node.index.deliveries(study, 2, away.name):
            node.index.update_delivery(delivery, "sent")
        assert keeper(node, away).tick() == 1


def test_an_outage_of_months_does_not_fill_the_table(tmp_path: Path) -> None:
    """Of the requests that nobody accepted the newest stay, for an answer that comes late."""
    with running(tmp_path) as node:
        study, _ = delivered(node, here(node), tmp_path / "ct")
        for number in range(50):
            node.index.pledges.ask(f"2.25.{number}", study, 1, "self", 1000.0 + number)
        assert node.index.pledges.asked(study, 1, "self").failed == 20
        assert node.index.pledges.settle("2.25.49", [], {}, 2000.0) is not None
        assert node.index.pledges.settle("2.25.0", [], {}, 2000.0) is None


def test_what_is_not_committed_is_found_by_an_index(tmp_path: Path) -> None:
    """The look every few seconds does not read every delivery that was ever made."""
    node = Node(tmp_path)
    with node.index._engine.connect() as connection:
        query = select(DeliveryRow.sop_instance_uid).where(not_committed(["pacs"]))
        sql = query.compile(connection, compile_kwargs={"literal_binds": True})
        plan = [row[3] for row in connection.execute(text(f"EXPLAIN QUERY PLAN {sql}"))]
    node.index.close()
    assert "ix_pacs_deliveries_commitment" in plan[0]


def test_a_report_that_nobody_asked_for_changes_nothing(tmp_path: Path) -> None:
    """A report with an unknown transaction commits no delivery."""
    with running(tmp_path) as node:
        study, uids = delivered(node, here(node), tmp_path / "ct")
        report = Report("1.2.3.99", tuple(Reference(CT, uid) for uid in uids))
        assert commitment.settle(report, node.index.pledges, time.time) is None
        assert {d.committed_at for d in node.index.deliveries(study)} == {None}


def _post(pacs: OrthancPeer, path: str, body: dict[str, Any]) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(f"http://127.0.0.1:{pacs.http_port}{path}", json.dumps(body).encode())
    with opener.open(request, timeout=30.0) as answer:
        return json.loads(answer.read())


def _delete(pacs: OrthancPeer, instance: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    url = f"http://127.0.0.1:{pacs.http_port}/instances/{instance}"
    opener.open(urllib.request.Request(url, method="DELETE"), timeout=30.0).close()
