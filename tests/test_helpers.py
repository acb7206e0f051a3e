"""Several processes receive behind one port: bounds and releases hold for all, and they end in order."""

import contextlib
import errno
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import SERVER, Command, Done
from factories import ct_series
from peers import children, dcmtk, free_port, need
from pydicom.dataset import Dataset
from pynetdicom import AE, build_context
from test_receiver import CT, EXPLICIT, wait_for

from daemon import helpers
from daemon.fellows import Fellow, Fellows
from daemon.index import Index
from daemon.requestor import AnswersOnly
from daemon.settings import Settings, load_settings
from daemon.try_ca import make_test_ca

pytestmark = pytest.mark.slow

# An association's line and audit come a moment before its connection counts no more.
_END_S = 0.5
FORK = multiprocessing.get_context("fork")


@dataclass(slots=True)
class Role:
    """``daemon run --role receive`` with its processes."""

    settings: Settings
    command: Command
    done: Done | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.settings.receiver.port

    def end(self, timeout_s: float = 30.0) -> Done:
        """Wait for its end."""
        self.done = self.done or self.command.finish(timeout_s)
        return self.done

    def helpers(self) -> list[int]:
        """Its further processes."""
        return children(self.command.pid)

    def index(self) -> "contextlib.closing[Index]":
        """Its index, opened beside it."""
        return contextlib.closing(Index(self.settings.database_url))

    def count(self) -> int:
        """How many instances the index has."""
        with self.index() as index:
            return sum(study.instance_count for study in index.list_studies())

    def received_by(self, process: int) -> int:
        """How many transfers a process has audited (DICOM Instances Transferred)."""
        name = f"receive-{process}.log" if process else "receive.log"
        path = self.settings.service.data_dir / "audit" / name
        return path.read_text().count("110104") if path.exists() else 0


@contextlib.contextmanager
def running(folder: Path, processes: int = 3, receiver: str = "", extra: str = "") -> Iterator[Role]:
    """Run the role for a while; it ends with 0 unless the test has ended it."""
    path = folder / "settings.toml"
    path.write_text(
        f'[service]\ndata_dir = "data"\nstop_timeout_s = 10.0\n[receiver]\nport = {free_port()}\n'
        f"reserve_bytes = 0\nprocesses = {processes}\n{receiver}\n[engine]\npoll_s = 0.1\n{extra}\n"
    )
    settings = load_settings(path)
    words = ("run", "--role", "receive", "--settings", str(path))
    command = Command(words, folder, dict(os.environ))
    role = Role(settings, command)
    try:
        wait_until_it_listens(settings, command)
        yield role
    finally:
        if command.poll() is None:
            command.send_signal(signal.SIGTERM)
        role.end()


def wait_until_it_listens(settings: Settings, command: Command) -> None:
    """Connect once, which counts as a connection until it has ended."""

    def connects() -> bool:
        assert command.poll() is None, command.finish().stderr
        with contextlib.suppress(OSError), socket.create_connection((receiver.host, receiver.port), 1.0):
            return True
        return False

    receiver = settings.receiver
    wait_for(connects, 30.0)
    wait_for(lambda: "closed before an association request" in command.errors())
    time.sleep(_END_S)


def associate(role: Role) -> Any:
    """Ask for an association."""
    ae = AE(ae_title="MODALITY")
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 10
    assoc = ae.associate(
        role.settings.receiver.host, role.port, [build_context(CT, EXPLICIT)], ae_title="ANOMALYD"
    )
    if assoc.is_established:
        assoc.dimse = AnswersOnly(assoc)
    return assoc


@contextlib.contextmanager
def associations(role: Role, count: int) -> Iterator[list[Any]]:
    """Hold associations open; the least busy process gets each, so that they are spread."""
    opened = [associate(role) for _ in range(count)]
    assert all(assoc.is_established for assoc in opened)
    connections = [assoc.dul.socket.socket for assoc in opened]
    try:
        yield opened
    finally:
        for assoc, connection in zip(opened, connections, strict=True):
            if assoc.is_established:
                assoc.release()
            # pynetdicom leaves a socket open whose peer went first.
            assoc.join(10.0)
            connection.close()


def test_associations_at_one_time_are_spread(tmp_path: Path) -> None:
    """Of six associations each of three processes has two; everything that was answered is indexed."""
    series = ct_series(6)
    with running(tmp_path) as role:
        assert len(role.helpers()) == 2
        with associations(role, 6) as opened:
            for assoc, ds in zip(opened, series, strict=False):
                assert assoc.send_c_store(ds).Status == 0
        wait_for(lambda: [role.received_by(n) for n in range(3)] == [2, 2, 2])
        assert role.count() == 6


def test_one_association_after_another_stays_with_the_process_that_listens(tmp_path: Path) -> None:
    """Nothing is handed over as long as nobody is busy."""
    with running(tmp_path) as role:
        for number, ds in enumerate(ct_series()[:3], 1):
            with associations(role, 1) as (assoc,):
                assert assoc.send_c_store(ds).Status == 0
            wait_for(lambda sent=number: [role.received_by(n) for n in range(3)] == [sent, 0, 0])
            time.sleep(_END_S)


def test_the_limit_of_associations_holds_for_all_processes(tmp_path: Path) -> None:
    """Of two allowed the third is told to come again, whichever process it comes to; then there is room."""
    with running(tmp_path, receiver="maximum_associations = 2") as role:
        with associations(role, 2):
            for _ in range(3):
                third = associate(role)
                assert third.is_rejected and third.acceptor.primitive.result == 0x02
        wait_for(lambda: associate_and_release(role))


def associate_and_release(role: Role) -> bool:
    """Whether there is room for an association."""
    assoc = associate(role)
    if assoc.is_established:
        assoc.release()
        return True
    return False


def test_a_release_waits_for_associations_of_other_processes(tmp_path: Path) -> None:
    """With close_at_release a study is due when the last association that sends it is released."""
    series = ct_series()
    extra = "[study]\nclose_at_release = true\nquiet_s = 600.0"
    with running(tmp_path, extra=extra) as role, role.index() as index:
        study = str(series[0].StudyInstanceUID)
        with associations(role, 3) as (first, second, third):
            for assoc, ds in zip((first, second, third), series, strict=False):
                assert assoc.send_c_store(ds).Status == 0
            for assoc, audited in ((second, 1), (first, 0)):
                assoc.release()
                wait_for(lambda process=audited: role.received_by(process) == 1)
                time.sleep(0.3)
                assert index.get_study(study).revision == 0
        # The dispatcher of the role opens what is due.
        wait_for(lambda: index.get_study(study).revision == 1)


def test_a_stop_lets_associations_of_every_process_finish(tmp_path: Path) -> None:
    """After SIGTERM nobody new is let in; what open associations still send is stored, and the end is 0."""
    series = ct_series()
    with running(tmp_path) as role:
        others = role.helpers()
        with associations(role, 3) as opened:
            role.command.send_signal(signal.SIGTERM)
            wait_for(lambda: not listens(role.port))
            for assoc, ds in zip(opened, series, strict=False):
                assert assoc.send_c_store(ds).Status == 0
        done = role.end()
        assert done.returncode == 0 and "killed" not in done.stderr, done.stderr
        assert [pid for pid in others if Path(f"/proc/{pid}").exists()] == []
        assert role.count() == 3


def listens(port: int) -> bool:
    """Whether somebody takes connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_without_a_helper_the_others_go_on_until_nobody_is_connected(tmp_path: Path) -> None:
    """Its place is free again, what it answered is not lost; the exit code lets the supervisor start anew."""
    series = ct_series(7)
    with running(tmp_path, receiver="maximum_associations = 3") as role:
        with associations(role, 3) as opened:
            for assoc, ds in zip(opened, series, strict=False):
                assert assoc.send_c_store(ds).Status == 0
            os.kill(role.helpers()[0], signal.SIGKILL)
            with waiting_for_room(role) as fourth:
                statuses = [store(assoc, ds) for assoc, ds in zip([*opened, fourth], series[3:], strict=True)]
            assert sorted(statuses, key=str) == [0, 0, 0, None]
        done = role.end()
        assert done.returncode == 1
        assert "receiving process died" in done.stderr and "the role starts anew" in done.stderr
    with running(tmp_path) as role:
        wait_for(lambda: role.count() == 6)


@contextlib.contextmanager
def waiting_for_room(role: Role) -> Iterator[Any]:
    """Ask for an association until there is one."""
    opened: list[Any] = []
    wait_for(lambda: opened.append(associate(role)) or opened[-1].is_established)
    connection = opened[-1].dul.socket.socket
    try:
        yield opened[-1]
    finally:
        opened[-1].release()
        opened[-1].join(10.0)
        connection.close()


def test_helpers_end_with_the_process_that_listens(tmp_path: Path) -> None:
    """kill -9 of it: they finish the associations that they have, index what they answered, and go."""
    series = ct_series()
    with running(tmp_path) as role:
        others = role.helpers()
        with associations(role, 3) as opened:
            os.kill(role.command.pid, signal.SIGKILL)
            statuses = [store(assoc, ds) for assoc, ds in zip(opened, series, strict=False)]
        assert sorted(statuses, key=str) == [0, 0, None]
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in others), 20.0)
        assert role.count() == 2


def store(assoc: Any, ds: Dataset) -> int | None:
    """Store one instance; None when there is no answer."""
    try:
        return getattr(assoc.send_c_store(ds), "Status", None)
    except RuntimeError:
        return None


def test_connections_over_ipv6_are_handed_over_with_their_addresses(tmp_path: Path) -> None:
    """Both processes receive from ::1, and say so in their lines."""
    with running(tmp_path, 2, receiver='host = "::1"') as role:
        with associations(role, 2) as opened:
            for assoc, ds in zip(opened, ct_series(), strict=False):
                assert assoc.send_c_store(ds).Status == 0
        wait_for(lambda: [role.received_by(n) for n in range(2)] == [1, 1])
        lines = [line for line in role.command.errors().splitlines() if "instances=1" in line]
        assert len(lines) == 2 and all("address=::1" in line for line in lines)


@pytest.mark.parametrize(("end", "starts_anew"), [("kill", True), ("error", False), ("no fork", False)])
def test_only_a_helper_that_was_killed_is_worth_a_new_start(end: str, starts_anew: bool) -> None:
    """An error of its own, or a fork that is refused, would be met again: the others do without it."""
    process = SERVER.Process(target=_lose_a_helper, args=(end, starts_anew))
    process.start()
    process.join(30.0)
    assert process.exitcode == 0


def _lose_a_helper(end: str, starts_anew: bool) -> None:
    def work(_fellow: Fellow, _channel: helpers.Channel) -> None:
        if end == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError

    def refuse() -> int:
        raise OSError(errno.EAGAIN, "no more processes")

    if end == "no fork":
        os.fork = refuse
    found = helpers.Helpers(Fellows(2), work)
    wait_for(lambda: found.look_after() == starts_anew and not found._channels)
    time.sleep(0.2)
    assert found.look_after() == starts_anew
    with socket.socket() as connection:
        assert not found.hand_over(connection, ("127.0.0.1", 1), encrypted=False)


@pytest.mark.peer
def test_encrypted_associations_are_handed_over_before_their_handshake(tmp_path: Path) -> None:
    """DCMTK speaks TLS with whichever process it comes to."""
    need("echoscu")
    ca, port = tmp_path / "ca", free_port()
    make_test_ca(ca, ("localhost", "127.0.0.1"))
    keys = ("+tls", str(ca / "client.key"), str(ca / "client.crt"), "+cf", str(ca / "ca.crt"))
    tls = '[tls]\ncertificate = "ca/server.crt"\nkey = "ca/server.key"\nca = "ca/ca.crt"'
    with running(tmp_path, receiver=f"tls_port = {port}", extra=tls) as role, associations(role, 2):
        # Two processes have an association each: the third takes the first of these.
        answers = [dcmtk("echoscu", *keys, "-aec", "ANOMALYD", "127.0.0.1", str(port)) for _ in range(3)]
        assert [answer.returncode for answer in answers] == [0, 0, 0], answers[0].stderr


# The table


def test_a_connection_counts_for_its_process_until_it_has_ended() -> None:
    """What a process that has died said of itself counts no more."""
    fellows = Fellows(3)
    for number in (0, 1, 2, 2):
        fellows.took(number)
    assert fellows.connections() == [1, 1, 2]
    third = Fellow(fellows, 2)
    third.ended()
    assert fellows.connections() == [1, 1, 1]
    assert third.enter(1) and not Fellow(fellows).enter(1)
    third.begins("1.2.3")
    fellows.forget(2)
    assert fellows.connections() == [1, 1, 0]
    assert Fellow(fellows).enter(1)
    Fellow(fellows).begins("1.2.3")
    first = Fellow(fellows)
    first.begins("1.2.3")
    assert first.ends({"1.2.3"}) == set()


# A test's process has threads; what is forked here uses none of theirs.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_places_are_given_once_whoever_asks() -> None:
    """Processes and threads that ask at once get as many places together as there are."""
    fellows = Fellows(4)
    asked = [FORK.Process(target=_ask, args=(fellows, number)) for number in range(1, 4)]
    for process in asked:
        process.start()
    _ask(fellows, 0)
    for process in asked:
        process.join()
        assert process.exitcode == 0
    assert sum(Fellow(fellows, number).places for number in range(4)) == 500


def _ask(fellows: Fellows, number: int) -> None:
    fellow = Fellow(fellows, number)
    threads = [threading.Thread(target=lambda: [fellow.enter(500) for _ in range(200)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_more_studies_than_the_table_holds_count_as_sent() -> None:
    """A process that sends very many studies keeps others from closing any; then its own show again."""
    fellows = Fellows(2)
    one, two = Fellow(fellows, 0), Fellow(fellows, 1)
    two.begins("1.2.3")
    one.begins("1.2.3")
    one.begins("1.2.4")
    assert one.ends({"1.2.3", "1.2.4"}) == {"1.2.3"}
    many = [f"1.2.5.{number}" for number in range(300)]
    for study in many:
        two.begins(study)
    one.begins("1.2.4")
    assert one.ends({"1.2.4"}) == {"1.2.4"}
    assert two.ends(many) == set()
    one.begins("1.2.4")
    assert one.ends({"1.2.4"}) == set()
    assert two.ends({"1.2.3"}) == set()
