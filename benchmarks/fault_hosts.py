"""Three hosts in network namespaces that share one PostgreSQL, one spool and one PACS.

A bridge joins the namespaces; its own address carries database, PACS and modalities. The spool is
the same folder of the same machine, which stands for a shared POSIX file system. It needs root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fault_audit import finish, refusals
from benchmarks.fault_modality import Modality
from benchmarks.fault_site import Site
from benchmarks.peers import free_port
from benchmarks.postgres import Postgres, postgres, why_not

_DEAD_AFTER_S = 15.0


@dataclass(frozen=True, slots=True)
class Hospital:
    """Three hosts, each with all roles, and what they share."""

    sites: list[Site]
    links: list[str]
    server: Postgres

    def cut_off(self, number: int) -> None:
        """Pull a host's network cable."""
        _ip("link", "set", self.links[number], "down")

    def join(self, number: int) -> None:
        """Put it in again."""
        _ip("link", "set", self.links[number], "up")

    def wait_for_work(self, number: int, timeout_s: float = 60.0) -> int:
        """Wait until a host has work in hand; return how much."""
        site = self.sites[number]
        deadline = time.monotonic() + timeout_s
        with site.queue() as queue:
            while time.monotonic() < deadline:
                taken = queue.list_workflows(
                    status="PENDING",
                    executor_id=[f"score@{site.node}", f"send@{site.node}"],
                    load_input=False,
                    load_output=False,
                )
                if taken:
                    return len(taken)
                time.sleep(0.02)
        return 0


def one_killed(hospital: Hospital, modalities: list[Modality]) -> None:
    """One host loses its power with work in hand; the others finish it, and it comes back later."""
    hospital.sites[1].kill_all()
    time.sleep(_DEAD_AFTER_S + 15.0)
    for modality in modalities:
        modality.stop()
    studies = {uid for modality in modalities for uid in modality.studies}
    if not hospital.sites[0].wait_until_done(studies):
        raise SystemExit("faults: two hosts did not finish the work of the third")
    hospital.sites[1].start_daemon()


def one_cut_off(hospital: Hospital, _modalities: list[Modality]) -> None:
    """One host's network is away for longer than it takes to be given up, and comes back."""
    hospital.cut_off(1)
    time.sleep(_DEAD_AFTER_S + 15.0)
    hospital.join(1)
    time.sleep(10.0)


def database_stopped(hospital: Hospital, _modalities: list[Modality]) -> None:
    """The database crashes and is away for 30 s."""
    hospital.server.stop()
    time.sleep(30.0)
    hospital.server.start()
    time.sleep(10.0)


def three_hosts(
    fault: Callable[[Hospital, list[Modality]], None],
) -> Callable[[Path, Path], dict[str, Any]]:
    """Return the scenario in which three hosts under load meet this fault."""

    def run(folder: Path, bundles: Path) -> dict[str, Any]:
        if reason := why_no_hosts():
            return {"skipped": reason}
        with _hospital(folder, bundles) as hospital:
            modalities = []
            for number in range(3):
                # Its own host first; the others when that does not answer.
                addresses = [site.address for site in hospital.sites]
                addresses = addresses[number:] + addresses[:number]
                modalities.append(Modality(addresses, folder / f"ct{number}", first=1000 * number))
                modalities[-1].start(pause_s=0.5, slices=8)
            time.sleep(8.0)
            in_hand = hospital.wait_for_work(1)
            fault(hospital, modalities)
            found = finish(hospital.sites, modalities)
            log = "".join(site.log.read_text() for site in hospital.sites)
        taken = log.count('event="work of a dead executor taken over"')
        met = refusals(found) if fault is database_stopped else taken
        return {**found, "in_hand": in_hand, "taken_over": taken, "met": met}

    return run


def why_no_hosts() -> str:
    """Return why no network namespaces can be made here, or an empty text."""
    if reason := why_not():
        return reason
    if os.getuid() != 0 or shutil.which("ip") is None:
        return "network namespaces need root and iproute2"
    probe = f"flt{os.getpid()}-0"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False)
    if done.returncode:
        return "making network namespaces is not permitted here"
    _ip("netns", "del", probe)
    return ""


@contextlib.contextmanager
def _hospital(folder: Path, bundles: Path) -> Iterator[Hospital]:
    bridge = f"flt{os.getpid()}"
    net = f"10.217.{os.getpid() % 250}"
    names = [f"{bridge}-{number}" for number in (1, 2, 3)]
    with contextlib.ExitStack() as stack:
        stack.callback(_remove, bridge, names)
        _ip("link", "add", bridge, "type", "bridge")
        _ip("addr", "add", f"{net}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for number, name in enumerate(names):
            _plug(bridge, name, f"{net}.{11 + number}/24")
        server = stack.enter_context(postgres(host=f"{net}.1"))
        sites: list[Site] = []
        for number, name in enumerate(names):
            sites.append(
                Site(
                    folder / f"host{number}",
                    bundles,
                    server.url,
                    host=f"{net}.{11 + number}",
                    prefix=("ip", "netns", "exec", name),
                    node=f"host{number}",
                    spool_dir=str(folder / "spool"),
                    poll_s=0.25,
                    dead_after_s=_DEAD_AFTER_S,
                    pacs_host=f"{net}.1",
                    pacs_port=sites[0].pacs_port if sites else free_port(),
                )
            )
            stack.callback(sites[-1].end)
        sites[0].start_pacs()
        for site in sites:
            site.start_daemon()
        yield Hospital(sites, [f"{name}h" for name in names], server)


def _plug(bridge: str, name: str, address: str) -> None:
    """Make a namespace with one interface whose other end is at the bridge."""
    _ip("netns", "add", name)
    _ip("link", "add", f"{name}h", "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("link", "set", f"{name}h", "master", bridge, "up")
    inside = ("netns", "exec", name, "ip")
    _ip(*inside, "addr", "add", address, "dev", "eth0")
    for device in ("eth0", "lo"):
        _ip(*inside, "link", "set", device, "up")


def _remove(bridge: str, names: list[str]) -> None:
    for name in names:
        subprocess.run(["ip", "link", "del", f"{name}h"], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    subprocess.run(["ip", "link", "del", bridge], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


HOSTS = {
    "three hosts, one killed": three_hosts(one_killed),
    "three hosts, one cut off": three_hosts(one_cut_off),
    "three hosts, database stopped for 30 s": three_hosts(database_stopped),
}
