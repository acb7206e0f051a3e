"""``daemon train``: from a site's annotated cases to a bundle and an honest report."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from daemon.cli_site import (
    LesionOption,
    check_folders,
    figures_table,
    load_configured_backbone,
    normalisation,
    print_differences,
    read_sites,
)
from daemon.console import EXIT_INTERRUPTED, SettingsOption, err, fail, guarded, load, out, progress_bar
from daemon.errors import SettingsError
from daemon.settings import Settings

if TYPE_CHECKING:  # torch takes seconds to load; `--help` must not wait for it
    from adapters.backbone import Backbone
    from adapters.slices import Normalisation
    from training.cases import SiteData
    from training.outcome import TrainingOutcome

# Between two lines of progress where there is no terminal for a bar.
_SAY_S = 1.0

SiteOption = Annotated[
    list[Path], typer.Option("--site-data", "-d", help="Folder of cases; repeat it to use several.")
]


@guarded
def train(
    site_data: SiteOption,
    name: Annotated[str, typer.Option(help="Name of the bundle, such as liver-ct.")],
    lesion: LesionOption = None,
    class_name: Annotated[str, typer.Option(help="What the prompts call it: Liver, Brain, …")] = "body part",
    dry_run: Annotated[bool, typer.Option(help="Only print what was understood of the folder.")] = False,
    shots: Annotated[int, typer.Option(min=0, help="Images per class to fit on; 0 = all.")] = 0,
    recipe: Annotated[str, typer.Option(help="default, or reference: the published one.")] = "default",
    alpha: Annotated[float, typer.Option(help="Share of normal patients that may be flagged.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Same seed, same device: same bundle.")] = 0,
    epochs: Annotated[
        int,
        typer.Option(min=0, help="At most so many, 0 = the recipe's; held-out patients choose among them."),
    ] = 0,
    window: Annotated[str, typer.Option(help='Fixed window "LOW,HIGH"; default: the object\'s own.')] = "",
    baselines: Annotated[bool, typer.Option(help="Also evaluate the backbone without adapters.")] = False,
    resume: Annotated[bool, typer.Option(help="Go on with an interrupted training of this name.")] = False,
    promote: Annotated[bool, typer.Option(help="Put the bundle to use at once.")] = False,
    report: Annotated[Path | None, typer.Option(help="Folder of the report; default: in data_dir.")] = None,
    settings: SettingsOption = None,
) -> None:
    """Fit adapters on a site's annotated cases, say honestly how good they are, store the bundle.

    Example: daemon train --site-data export/ --name liver-ct --class-name Liver
    """
    from adapters import registry

    options, _ = load(settings)
    _check(name, recipe)
    check_folders(site_data)
    os.umask(0o077)  # bundles and reports hold features of patients
    if dry_run:
        _print_site(read_sites(site_data, normalisation(window, None), options, check=False, lesions=lesion))
        return
    normalisation(window, None)  # a window that is none is better said before the model is loaded
    backbone = load_configured_backbone(options)
    pixels = normalisation(window, backbone)
    site = read_sites(site_data, pixels, options, lesions=lesion)
    outcome, stopped = _fit(
        site, backbone, pixels, options, name, class_name, shots, recipe, alpha, seed, epochs,
        baselines, resume,
    )  # fmt: skip
    bundle = outcome.bundle
    registry.store(options.bundles_dir, bundle)
    folder = report or options.service.data_dir / "reports" / f"{bundle.name}-{bundle.version}"
    _report(folder, site, outcome)
    _print_outcome(outcome)
    out.print(f"report {folder / 'report.html'}", highlight=False)
    if stopped:
        fail(
            f"interrupted; bundle {bundle.name} {bundle.version} holds what was fitted until then and is not "
            "in use; the same command with --resume goes on",
            EXIT_INTERRUPTED,
        )
    if promote:
        registry.promote(options.bundles_dir, bundle.name, bundle.version)
    state = "in use" if promote else f"stored; put it to use: daemon adapters promote {bundle.version}"
    out.print(f"bundle {bundle.name} {bundle.version} is {state}", highlight=False)


def _check(name: str, recipe: str) -> None:
    """Refuse at once what a training of minutes would trip over at its end."""
    from training.options import EPOCHS

    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name) or name.startswith("."):
        raise SettingsError(f"--name {name!r}: use letters, digits, '.', '_' and '-', at most 64")
    if recipe not in EPOCHS:
        raise SettingsError(f"--recipe must be {' or '.join(EPOCHS)}, not {recipe!r}")


@contextmanager
def _interrupts() -> Iterator[Event]:
    """Note Ctrl-C beside raising it: a fit that keeps what it has does not pass it on."""
    seen = Event()

    def note(number: int, frame: object) -> None:
        seen.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def _fit(
    site: SiteData,
    backbone: Backbone,
    normalisation: Normalisation,
    options: Settings,
    name: str,
    class_name: str,
    shots: int,
    recipe: str,
    alpha: float,
    seed: int,
    epochs: int,
    baselines: bool,
    resume: bool,
) -> tuple[TrainingOutcome, bool]:
    """Return the outcome, and whether Ctrl-C cut it short; complete folds are kept then."""
    from adapters.errors import AdapterError
    from training.errors import DataError
    from training.options import Options
    from training.train import train as train_site

    kept = options.service.data_dir / "training" / name
    if not resume:
        _forget(kept)
    with progress_bar(err) as bar:
        task = bar.add_task("fitting", total=None)
        course, said = _Course(), 0.0

        def tell(stage: str, epoch: int, total: int, loss: float) -> None:
            nonlocal said
            done, whole = course.at(stage, epoch, total)
            text = f"{stage}, epoch {epoch} of {total}  loss {loss:.3f}"
            bar.update(task, description=text, completed=done, total=whole)
            # Into a file or pipe a line now and then: the page reads it.
            if not err.is_terminal and (time.monotonic() - said > _SAY_S or epoch == total):
                said = time.monotonic()
                err.print(f"progress {stage} {epoch}/{total} loss {loss:.3f}", markup=False, highlight=False)

        def fit() -> TrainingOutcome:
            return train_site(
                site,
                backbone,
                name=name,
                class_name=class_name,
                normalisation=normalisation,
                shots_per_class=shots or None,
                alpha=alpha,
                options=Options(recipe=recipe, seed=seed, epochs=epochs),  # type: ignore[arg-type]
                recipe=recipe,  # type: ignore[arg-type]
                seed=seed,
                baselines=baselines,
                resume_dir=kept,
                progress=tell,
            )

        with _interrupts() as seen:
            try:
                outcome = fit()
            except (AdapterError, DataError, KeyboardInterrupt) as error:
                # The folds that are done may be too few for figures or for a calibration.
                if seen.is_set():
                    fail("interrupted; the same command with --resume goes on", EXIT_INTERRUPTED)
                if isinstance(error, DataError):
                    fail(str(error))
                raise
    if not seen.is_set():
        _forget(kept)
    return outcome, seen.is_set()


class _Course:
    """Where a training is, in epochs of all its parts: two inner fits and one of each fold, and the last.

    A fit that ends early moves on to the next part, so that the time left is at most what it seems.
    """

    def __init__(self) -> None:
        self._parts = 1

    def at(self, stage: str, epoch: int, total: int) -> tuple[int, int]:
        """Epochs that are over, and all of them."""
        part = self._parts - 1
        if found := re.match(r"fold (\d+) of (\d+)(?:, inner (\d))?", stage):
            fold, folds, inner = (int(n or 3) for n in found.groups())
            part, self._parts = 3 * (fold - 1) + inner - 1, 3 * folds + 1
        return part * total + epoch, self._parts * total


def _forget(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _report(folder: Path, site: SiteData, outcome: TrainingOutcome) -> None:
    from training.report import ReportContent, write_report

    write_report(
        folder,
        ReportContent(
            outcome.bundle.name,
            outcome.bundle.version,
            site,
            outcome.evaluation,
            outcome.warnings,
            outcome.provenance,
            outcome.baselines,
            outcome.differences,
        ),
    )


def _print_site(site: SiteData) -> None:
    from training.site import summary_rows

    table = Table("what", "understood", box=None)
    for row in summary_rows(site):
        table.add_row(*row)
    out.print(table)


def _print_outcome(outcome: TrainingOutcome) -> None:
    out.print(figures_table(outcome.evaluation, "held out, with 95 % interval over patients"))
    print_differences(outcome.differences)
    for warning in outcome.warnings:
        err.print(f"[yellow]warning:[/yellow] {warning}", highlight=False)
