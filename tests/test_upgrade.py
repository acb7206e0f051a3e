"""An upgrade: what one version began, the next one finishes."""

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import daemon
from adapters import registry
from adapters.bundle import AdapterBundle
from benchmarks.fault_audit import finish
from benchmarks.fault_modality import Modality
from benchmarks.fault_site import Site
from daemon.workflows import WORKFLOW_VERSION

pytestmark = [pytest.mark.peer, pytest.mark.slow]


def next_version(folder: Path) -> Path:
    """Copy the program, with another version of its workflows; return the folder to start it in."""
    source = Path(daemon.__file__).parent.parent
    for package in ("daemon", "adapters"):
        shutil.copytree(source / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "daemon" / "workflows.py"
    text, count = re.subn(
        rf'^WORKFLOW_VERSION = "{WORKFLOW_VERSION}"$',
        'WORKFLOW_VERSION = "next"',
        path.read_text(),
        flags=re.M,
    )
    assert count == 1
    path.write_text(text)
    return folder


def wait_for(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def test_work_in_flight_finishes_under_the_next_version(
    tmp_path: Path, phantom_bundle: AdapterBundle
) -> None:
    """Killed with a study half scored and another half delivered, the next version finishes both, once."""
    bundles = tmp_path / "bundles"
    registry.store(bundles, phantom_bundle)
    registry.promote(bundles, phantom_bundle.name, phantom_bundle.version)
    site = Site(tmp_path / "site", bundles)
    with site.running(), site.queue() as queue:

        def version_of(name: str, status: str) -> list[str | None]:
            found = queue.list_workflows(name=name, status=status, load_input=False, load_output=False)
            return [workflow.app_version for workflow in found]

        modality = Modality([site.address], tmp_path / "ct")
        site.behave("slow 60")
        modality.send(modality.draw())
        wait_for(lambda: version_of("deliver_results", "PENDING"))
        modality.send(modality.draw(slices=60))
        wait_for(lambda: version_of("score_study", "PENDING") and version_of("deliver_results", "PENDING"))
        site.kill_all()
        assert version_of("score_study", "PENDING") == [WORKFLOW_VERSION]
        assert version_of("deliver_results", "PENDING") == [WORKFLOW_VERSION]
        site.behave("normal")
        site.program = next_version(tmp_path / "next")
        site.start_daemon()
        found = finish([site], [modality])
        assert (found["finished"], found["problems"]) == (True, ())
        # Two studies; a pause while 60 slices were sent may have made one more revision.
        assert set(version_of("score_study", "SUCCESS")) == {WORKFLOW_VERSION, "next"}
        assert "next" in version_of("deliver_results", "SUCCESS")
        assert "work of another version taken over" in site.log.read_text()
