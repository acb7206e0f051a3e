"""``daemon demo``: a phantom site, a fit, and the main job played with real associations."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from adapters import registry
from adapters.backbone import load_backbone
from adapters.bundle import AdapterBundle
from adapters.slices import Normalisation, load_slice
from daemon.console import progress_bar
from daemon.demo_pacs import AE_TITLE, DemoPacs, demo_pacs, free_port
from daemon.demo_truth import Shown, compare
from daemon.errors import DaemonError, SendError
from daemon.index import Index
from daemon.models import Models, backbone_spec
from daemon.offline import score_files
from daemon.phantom import make_case, write_case
from daemon.sender import Destination, send
from daemon.settings import Settings, load_settings
from training.fit import fit

_NORMAL, _ABNORMAL, _SHOWN = 6, 6, 3
_QUIET_S = 2.0


def run_demo(console: Console, settings_path: Path | None, out: Path, *, stay: bool) -> int:
    """Play the main job.

    Parameters
    ----------
    console
        Where it says what it does.
    settings_path
        The shipped settings.toml; ports, folders and destination are set by environment.
    out
        Emptied of an earlier demo and filled.
    stay
        Keep daemon and PACS running until Ctrl-C.

    Returns
    -------
    int
        0 if every lesion was found and everything arrived; 1 otherwise.
    """
    for name in ("site", "data", "pacs", "arrived", "previews"):
        shutil.rmtree(out / name, ignore_errors=True)
    console.rule("phantom site")
    shown = _make_site(out / "site")
    with _ended_in_order(), demo_pacs(out / "pacs") as pacs, _environment(_overrides(out, pacs)):
        settings = load_settings(settings_path)
        console.print(
            f"{_NORMAL} normal and {_ABNORMAL} abnormal phantom studies to fit on, {_SHOWN} to show"
        )
        console.rule("fit")
        bundle = _fit(console, settings)
        console.rule("daemon and PACS")
        with _daemon(settings_path, out / "daemon.log"):
            console.print(f"PACS: {pacs.name} on port {pacs.port}; daemon on port {settings.receiver.port}")
            _play(console, settings, shown)
            ok = compare(console, shown, pacs, out)
            _previews(console, settings, shown, out)
            _last_words(console, settings, bundle, out)
            if stay:
                _stay(console, settings, pacs)
    console.print(
        "demo: done, the lesions were found" if ok else "demo: a lesion was missed or a result is absent"
    )
    return 0 if ok else 1


def _make_site(folder: Path) -> list[Shown]:
    shown = []
    for number in range(_SHOWN):
        case = make_case(900 + number, abnormal=number != _SHOWN - 1, seed=1)
        shown.append(Shown(case, write_case(case, folder / f"shown-{number + 1}")))
    return shown


def _overrides(out: Path, pacs: DemoPacs) -> dict[str, str]:
    destination = {"name": "demo-pacs", "ae_title": AE_TITLE, "host": "127.0.0.1", "port": pacs.port}
    return {
        "DAEMON_SERVICE__DATA_DIR": str((out / "data").resolve()),
        "DAEMON_RECEIVER__PORT": str(free_port()),
        "DAEMON_RECEIVER__RESERVE_BYTES": str(200_000_000),
        "DAEMON_STUDY__QUIET_S": str(_QUIET_S),
        "DAEMON_DESTINATIONS": json.dumps([destination]),
    }


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end the demo as Ctrl-C does: daemon and PACS must not outlive it."""
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _fit(console: Console, settings: Settings) -> AdapterBundle:
    backbone = load_backbone(backbone_spec(settings.model), settings.model.device, settings.model.precision)
    if not settings.model.weights:
        console.print(
            "[yellow]the backbone's weights are seeded random numbers, not pretrained: "
            "what follows shows the plumbing, and its figures hold for the phantom alone[/yellow]"
        )
    normalisation = Normalisation(kind="object", size_px=backbone.image_size_px)
    normal, abnormal, keys = _shots(normalisation, settings.service.data_dir.parent / "site")
    started = time.monotonic()
    with progress_bar(console) as bar:
        task = bar.add_task("fit", total=None)
        bundle = fit(
            backbone,
            normal,
            abnormal,
            name="phantom-ct",
            class_name="Chest",
            normalisation=normalisation,
            case_keys=keys,
            modality="CT",
            progress=lambda stage, epoch, epochs, loss: bar.update(
                task, description=f"{stage}, loss {loss:.3f}", completed=epoch, total=epochs
            ),
        )
    registry.store(settings.bundles_dir, bundle)
    registry.promote(settings.bundles_dir, bundle.name, bundle.version)
    console.print(
        f"bundle {bundle.name} {bundle.version}: {len(normal)} normal and {len(abnormal)} abnormal slices, "
        f"threshold {bundle.threshold:.2f}, {time.monotonic() - started:.0f} s"
    )
    return bundle


def _shots(
    normalisation: Normalisation, folder: Path
) -> tuple[list[NDArray[np.float32]], list[tuple[NDArray[np.float32], NDArray[np.bool_] | None]], list[str]]:
    """Slices of the fitted cases, read from DICOM exactly as the daemon reads them."""
    normal, abnormal, normal_keys, abnormal_keys = [], [], [], []
    for number in range(_NORMAL + _ABNORMAL):
        case = make_case(number, abnormal=number >= _NORMAL)
        files = write_case(case, folder / f"fit-{number + 1}")
        for file, mask in zip(files, case.lesion, strict=True):
            pixels = load_slice(file, normalisation=normalisation, max_frame_pixels=1 << 24).pixels
            if mask.any():
                abnormal.append((pixels, mask))
                abnormal_keys.append(str(number))
            elif not case.abnormal:
                normal.append(pixels)
                normal_keys.append(str(number))
    return normal, list(abnormal), normal_keys + abnormal_keys


@contextlib.contextmanager
def _daemon(settings_path: Path | None, log: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "daemon", "run"]
    if settings_path is not None:
        command += ["--settings", str(settings_path)]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _play(console: Console, settings: Settings, shown: Sequence[Shown]) -> None:
    """Be the modality: send each study over one association, then follow it through the daemon."""
    us = Destination(
        "daemon", settings.receiver.ae_title, "127.0.0.1", settings.receiver.port, "DEMOMODALITY"
    )
    for item in shown:
        _send_when_up(item.files, us)
    started = time.monotonic()
    index = Index(settings.database_url)
    seen: dict[str, str] = {}
    try:
        while time.monotonic() - started < 180:
            for number, item in enumerate(shown, 1):
                state = _state(index, item.case.study_instance_uid)
                if seen.get(str(number)) != state:
                    seen[str(number)] = state
                    console.print(
                        f"{time.monotonic() - started:6.1f} s  study {number}: {state}", highlight=False
                    )
            if all(state.startswith(("delivered", "failed", "refused")) for state in seen.values()):
                return
            time.sleep(0.1)
        raise DaemonError("the demo's studies were not finished after 180 s; see daemon.log")
    finally:
        index.close()


def _send_when_up(files: Sequence[Path], us: Destination, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        outcomes = send(files, us)
        if all(outcome.ok for outcome in outcomes):
            return
        if time.monotonic() > deadline:
            raise SendError(f"the daemon did not take the phantom: {outcomes[0].reason}; see daemon.log")
        time.sleep(0.5)


def _state(index: Index, study: str) -> str:
    record = index.get_study(study)
    if record.state != "scored":
        return f"{record.state} {record.state_reason}".strip()
    states = [delivery.state for delivery in index.deliveries(study)]
    if states and all(state == "sent" for state in states):
        return f"delivered ({len(states)} objects)"
    return "scored"


def _previews(console: Console, settings: Settings, shown: Sequence[Shown], out: Path) -> None:
    models = Models(settings)
    studies = {item.case.study_instance_uid: list(item.files) for item in shown}
    for scored in score_files(studies, models, settings, out / "previews"):
        for path in scored.files:
            if path.suffix == ".png":
                console.print(f"picture {path}", highlight=False)


def _last_words(console: Console, settings: Settings, bundle: AdapterBundle, out: Path) -> None:
    console.print(f"results kept by the daemon: {settings.spool_dir}/results", highlight=False)
    console.print(f"results fetched back from the PACS: {out / 'arrived'}", highlight=False)
    console.print(
        f"bundle: {settings.bundles_dir}/{bundle.name}-{bundle.version}.safetensors", highlight=False
    )


def _stay(console: Console, settings: Settings, pacs: DemoPacs) -> None:
    console.print(
        f"running until Ctrl-C: send with  storescu -aec {settings.receiver.ae_title} 127.0.0.1 "
        f"{settings.receiver.port} FILE…  (PACS {AE_TITLE} on port {pacs.port})",
        highlight=False,
    )
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()
