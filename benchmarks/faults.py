"""``python -m benchmarks.faults``: break the daemon in every way that can be repeated, and count.

Each scenario runs a real daemon with a real modality and a PACS that misbehaves on demand. After it,
every instance that was answered with Success must be on disk and in the index, every stable study
must have its results exactly once at the PACS or a visible dead letter, and no file is an orphan.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.fault_audit import finish
from benchmarks.fault_hosts import HOSTS
from benchmarks.fault_modality import Modality
from benchmarks.fault_report import failures, print_report, write_report
from benchmarks.fault_resume import resumption
from benchmarks.fault_scenarios import SCENARIOS
from benchmarks.fault_site import Site
from benchmarks.peers import free_port
from benchmarks.postgres import postgres, why_not

_ROLES = ("supervisor", "receive", "helper", "score", "send", "web")


def main() -> None:
    """Run the scenarios that are asked for, print the table and write it to ``benchmarks/``."""
    parser = argparse.ArgumentParser(description="Break the daemon, and count what was lost.")
    parser.add_argument("--kills", type=int, default=100, help="kill -9 on each database")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="these runs; see --list")
    parser.add_argument("--seed", type=int, default=1, help="of the random choices")
    parser.add_argument("--keep", type=Path, help="keep the folders of the runs here")
    parser.add_argument("--no-write", action="store_true", help="print only; keep the recorded results")
    parser.add_argument("--list", action="store_true", help="print the names of the runs and stop")
    options = parser.parse_args()
    # Namespaces, mounts and processes go with the run, also when it is ended from outside.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    runs: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
        "kills-sqlite": lambda folder, bundles: kills(folder, bundles, options.kills, options.seed),
        "kills-postgresql": lambda folder, bundles: kills(
            folder, bundles, options.kills, options.seed, on_postgres=True
        ),
        **SCENARIOS,
        **HOSTS,
        "from kill -9 to the resumed step": resumption,
    }
    console = Console()
    if options.list:
        console.print("\n".join(runs), highlight=False)
        return
    if unknown := set(options.only or runs) - set(runs):
        parser.error(f"no run is called {', '.join(sorted(unknown))}; see --list")
    record: dict[str, Any] = {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "runs": {},
    }
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        base = options.keep or Path(name)
        bundles = fit_bundle(base)
        for title in options.only or runs:
            console.print(f"faults: {title}")
            started = time.monotonic()
            record["runs"][title] = runs[title](base / title, bundles)
            record["runs"][title]["seconds"] = round(time.monotonic() - started, 1)
            console.print_json(json.dumps(record["runs"][title]))
            if not options.no_write:
                write_report(record)
    print_report(console, record)
    if wrong := failures(record):
        raise SystemExit("faults: " + "; ".join(wrong))


def fit_bundle(folder: Path) -> Path:
    """Fit a bundle on phantoms, unless an earlier run left one, and return the registry's folder."""
    import torch

    from benchmarks.stages import prepare_bundle

    if not (folder / "bundles").is_dir():
        torch.set_num_threads(1)
        prepare_bundle(folder)
    return folder / "bundles"


def kills(
    folder: Path,
    bundles: Path,
    count: int,
    seed: int = 1,
    *,
    on_postgres: bool = False,
    pause_s: tuple[float, float] = (0.3, 3.0),
) -> dict[str, Any]:
    """Kill random processes of the daemon under load, then audit.

    Parameters
    ----------
    folder, bundles
        Of this run, and the registry with the adapters.
    count, seed
        How often, and of the random choices.
    on_postgres
        Index and queue in PostgreSQL instead of SQLite.
    pause_s
        Shortest and longest time between two kills.
    """
    if on_postgres and (reason := why_not()):
        return {"skipped": reason}
    rng = random.Random(seed)
    with ExitStack() as stack:
        database = stack.enter_context(postgres()).url if on_postgres else ""
        site = Site(folder, bundles, database, extra=f"[web]\nport = {free_port()}\n")
        stack.enter_context(site.running())
        modality = Modality([site.address], folder / "ct")
        modality.start(pause_s=0.5)
        done: Counter[str] = Counter()
        while done.total() < count:
            answered = len(modality.answered)
            time.sleep(rng.uniform(*pause_s))
            role = rng.choice(_ROLES)
            done[role] += site.kill(role)
            site.keep_up()
            # Every other time something must have been received meanwhile: on a busy machine one
            # would kill nothing but processes that are still starting.
            deadline = time.monotonic() + 60.0
            while done.total() % 2 and len(modality.answered) == answered and time.monotonic() < deadline:
                site.keep_up()
        return {"kills": dict(done), "restarts": site.restarts, **finish([site], [modality])}


if __name__ == "__main__":
    main()
