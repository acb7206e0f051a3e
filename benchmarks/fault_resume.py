"""How long it takes from ``kill -9`` until the work goes on."""

from __future__ import annotations

import os
import signal
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.fault_audit import finish
from benchmarks.fault_modality import Modality
from benchmarks.fault_site import Site

_STEP = "run_job"


def resumption(folder: Path, bundles: Path, trials: int = 5) -> dict[str, Any]:
    """Kill the score process, then the whole daemon, while a study is scored; on SQLite.

    The whole daemon is started again at once, as a service manager would. What is measured ends
    when the step that was interrupted begins again, by the queue's own record.
    """
    found: dict[str, Any] = {"killed": {}, "load": round(os.getloadavg()[0], 1)}
    totals: dict[str, int] = {}
    seconds: list[float] = []
    for what in ("score", "daemon"):
        times = []
        for number in range(trials):
            taken, audit = _trial(folder / f"{what}{number}", bundles, what)
            times.append(round(taken, 2))
            for key, value in audit.items():
                if isinstance(value, int):
                    totals[key] = totals.get(key, 0) + value
        found["killed"][what] = times
        seconds += times
    # "finished" counts the trials: it was True in each.
    finished = totals.pop("finished") == 2 * trials
    worst = {"median_s": statistics.median(seconds), "maximum_s": max(seconds)}
    return {"finished": finished, **totals, **found, **worst}


def _trial(folder: Path, bundles: Path, what: str) -> tuple[float, dict[str, Any]]:
    # All slices in one step, so that there is something to interrupt.
    site = Site(folder, bundles, environment={"DAEMON_MODEL__EARLY": "false"})
    with site.running(), site.queue() as queue:
        modality = Modality([site.address], folder / "ct")
        # A first one, so that the model is there: an interrupted start is not the question.
        modality.send(modality.draw())
        site.wait_until_done(modality.studies)
        before = set(modality.studies)
        modality.send(modality.draw(slices=100))
        (study,) = modality.studies - before
        name = f"score:{study}:1"
        while "open_job" not in (steps := _steps(queue, name)):
            time.sleep(0.02)
        if _STEP in steps:
            raise SystemExit("faults: the study was scored before anything could be killed")
        killed = time.time()
        if what == "daemon":
            site.kill_all()
            site.keep_up()
        else:
            os.kill(site.roles()[what], signal.SIGKILL)
        deadline = time.monotonic() + 120.0
        while _STEP not in (steps := _steps(queue, name)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return steps.get(_STEP, float("inf")) - killed, finish([site], [modality])


def _steps(queue: Any, workflow_id: str) -> dict[str, float]:
    """Name and start of each step that ended, in seconds since the epoch."""
    steps = queue.list_workflow_steps(workflow_id)
    return {step["function_name"]: (step["started_at_epoch_ms"] or 0) / 1000.0 for step in steps}
