"""The faults other than ``kill -9``: disk, destination, associations, parallel senders, clock."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.uid import RawDataStorage

from benchmarks.fault_audit import finish, refusals
from benchmarks.fault_modality import Modality
from benchmarks.fault_site import Site
from benchmarks.postgres import postgres, why_not
from benchmarks.small_disk import small_disk

Scenario = Callable[[Path, Path], dict[str, Any]]
_HOUR_S = 3_600
_NO_DISK = "mounting a tmpfs needs root, and is not permitted everywhere"


def disk_full(folder: Path, bundles: Path, rounds: int = 12) -> dict[str, Any]:
    """Fill a small disk to within a few random bytes again and again while studies arrive."""
    # One segment of the journal (32 MB), and no room for a second: what is left must do for all that comes.
    with small_disk("62m") as disk:
        if disk is None:
            return {"skipped": _NO_DISK}
        # The rescuer looks every few seconds.
        data = disk.folder / "data"
        site = Site(folder, bundles, data_dir=data, reserve_bytes=0, dead_after_s=18.0)
        rng = random.Random(3)
        with site.running():
            modality = Modality([site.address], folder / "ct")
            modality.start(pause_s=0.1)
            for _ in range(rounds):
                disk.fill(rng.randrange(0, 400_000))
                time.sleep(rng.uniform(0.5, 2.0))
                disk.empty()
                time.sleep(rng.uniform(0.2, 1.0))
            disk.fill()
            modality.wait_until_refused()
            disk.empty()
            found = finish([site], [modality])
            return {**found, "met": refusals(found)}


def database_full(folder: Path, bundles: Path, rounds: int = 6) -> dict[str, Any]:
    """Fill the disk of PostgreSQL's tables again and again while studies arrive."""
    if reason := why_not():
        return {"skipped": reason}
    with small_disk("48m") as disk:
        if disk is None:
            return {"skipped": _NO_DISK}
        tables = disk.folder / "tables"
        tables.mkdir()
        shutil.chown(tables, "postgres", "postgres")
        with postgres(tables=tables) as server:
            site = Site(folder, bundles, server.url, dead_after_s=18.0)
            rng = random.Random(4)
            with site.running():
                modality = Modality([site.address], folder / "ct")
                modality.start(pause_s=0.1)
                for _ in range(rounds):
                    time.sleep(rng.uniform(1.0, 3.0))
                    disk.fill()
                    # The pages that have room are filled up first.
                    modality.wait_until_refused()
                    time.sleep(rng.uniform(1.0, 4.0))
                    disk.empty()
                found = finish([site], [modality])
                return {**found, "met": refusals(found)}


def destination_down(folder: Path, bundles: Path) -> dict[str, Any]:
    """The PACS is away while studies are scored, and comes back after deliveries failed."""
    site = Site(folder, bundles)
    met = 0
    with site.running():
        modality = Modality([site.address], folder / "ct")
        for _ in range(3):
            site.pacs_process.kill()
            site.pacs_process.wait()
            modality.send(modality.draw())
            met += _wait_for_failures(site)
            site.start_pacs()
            site.wait_until_done(modality.studies, 60)
        return {**finish([site], [modality]), "met": met}


def _wait_for_failures(site: Site, timeout_s: float = 120.0) -> int:
    """Wait until deliveries failed; return how many are in that state."""
    deadline = time.monotonic() + timeout_s
    with site.index() as index:
        while not (failed := index.deliveries(states=["failed"])) and time.monotonic() < deadline:
            time.sleep(0.1)
    return len(failed)


def destination(*behaviours: str, times: int = 3) -> Scenario:
    """Return the scenario of a PACS that behaves like these so many times each, then well."""

    def run(folder: Path, bundles: Path) -> dict[str, Any]:
        site = Site(folder, bundles)
        met = 0
        with site.running():
            modality = Modality([site.address], folder / "ct")
            for behaviour in behaviours:
                site.behave(behaviour)
                for _ in range(3):
                    modality.send(modality.draw())
                met = site.wait_until_met(met + times)
            site.behave("normal")
            return {**finish([site], [modality]), "met": met}

    return run


def dead_letters(folder: Path, bundles: Path) -> dict[str, Any]:
    """A PACS that never takes anything: each result ends as a visible dead letter."""
    site = Site(folder, bundles, give_up_s=3.0)
    with site.running():
        site.behave("status A700")
        modality = Modality([site.address], folder / "ct")
        for _ in range(3):
            modality.send(modality.draw())
        return finish([site], [modality])


def aborted_reception(folder: Path, bundles: Path, times: int = 10) -> dict[str, Any]:
    """A sender is killed in mid-instance, again and again; later it sends everything."""
    site, rng = Site(folder, bundles), random.Random(5)
    cut = 0
    with site.running():
        modality = Modality([site.address], folder / "ct")
        (template, *_) = modality.draw(slices=1)
        modality.studies.clear()
        large = folder / "large.dcm"
        ds = dcmread(template)
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = RawDataStorage
        ds.PixelData = bytes(200_000_000)
        ds.save_as(large)
        arriving = site.settings.spool_dir / "tmp"
        code = "import sys; from benchmarks.fault_modality import send_once; send_once(*sys.argv[1:])"
        for _ in range(times):
            sender = subprocess.Popen([sys.executable, "-c", code, str(site.port), str(large)])
            while not any(arriving.glob("*.part")) and sender.poll() is None:
                time.sleep(0.005)
            time.sleep(rng.uniform(0.0, 0.1))
            cut += sender.poll() is None
            sender.kill()
            sender.wait()
            deadline = time.monotonic() + 60.0
            while any(arriving.glob("*.part")) and time.monotonic() < deadline:
                time.sleep(0.05)
        modality.studies.add(str(ds.StudyInstanceUID))
        modality.send([large])
        modality.send(modality.draw())
        return {**finish([site], [modality]), "met": cut}


def five_at_once(folder: Path, bundles: Path) -> dict[str, Any]:
    """Five senders send the same study at the same time."""
    site = Site(folder, bundles)
    with site.running():
        modalities = [Modality([site.address], folder / f"ct{number}") for number in range(5)]
        for _ in range(4):
            files = [modality.draw(slices=6) for modality in modalities]
            senders = [
                threading.Thread(target=modality.send, args=(mine,))
                for modality, mine in zip(modalities, files, strict=True)
            ]
            for sender in senders:
                sender.start()
            for sender in senders:
                sender.join()
        return finish([site], modalities)


def clock_steps(folder: Path, bundles: Path) -> dict[str, Any]:
    """The wall clock jumps an hour back and two days ahead while studies arrive."""
    compiler = shutil.which("cc")
    if compiler is None:
        return {"skipped": "there is no C compiler for the library that shifts the clock"}
    folder.mkdir(parents=True, exist_ok=True)
    library, offset = folder / "clock.so", folder / "offset"
    source = Path(__file__).with_name("fault_clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True)
    offset.write_text("0")
    shifted = {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(offset)}
    site = Site(folder, bundles, environment=shifted, give_up_s=30 * 86_400.0)
    with site.running():
        modality = Modality([site.address], folder / "ct")
        modality.start(pause_s=0.3)
        for step_s in (0, -_HOUR_S, _HOUR_S, 48 * _HOUR_S, -48 * _HOUR_S, 0):
            offset.write_text(str(step_s))
            time.sleep(4.0)
        return finish([site], [modality])


SCENARIOS: dict[str, Scenario] = {
    "disk full": disk_full,
    "PostgreSQL's disk full": database_full,
    "destination down": destination_down,
    "destination slow": destination("slow 4"),
    "destination rejects": destination("reject"),
    "destination aborts": destination("abort"),
    "destination answers A700": destination("status A700"),
    "destination answers 0111": destination("status 0111"),
    "destination answers B000": destination("status B000"),
    "dead letters": dead_letters,
    "association aborted": aborted_reception,
    "five senders at once": five_at_once,
    "clock steps": clock_steps,
}
