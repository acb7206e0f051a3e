"""The command line: every command with help and an example.

Exit codes: 0 done; 1 the work failed (a peer refused, a study could not be scored); 2 settings or
arguments are wrong; 130 interrupted.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from daemon import __version__
from daemon.cli_adapters import app as adapters_app
from daemon.cli_evaluate import evaluate
from daemon.cli_feedback import app as feedback_app
from daemon.cli_index import app as index_app
from daemon.cli_studies import app as studies_app
from daemon.cli_tls import app as tls_app
from daemon.cli_train import train
from daemon.cli_user import app as user_app
from daemon.console import (
    EXIT_FAILED,
    EXIT_USAGE,
    SettingsOption,
    console,
    err,
    fail,
    guarded,
    load,
    out,
    progress_bar,
)
from daemon.errors import SettingsError
from daemon.settings import Settings

if TYPE_CHECKING:  # `daemon --help` shall not wait for the network's libraries
    from daemon.sender import Destination

# Objects of one association of `daemon send`: a bar that moves, few associations.
_SEND_BATCH = 50
_MARKS = {"ok": "[green]✓[/green]", "warning": "[yellow]![/yellow]", "error": "[red]✗[/red]"}

app = typer.Typer(
    name="daemon",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    # Typer's own tracebacks can show local variables, and those can hold a data set.
    pretty_exceptions_enable=False,
    help="Score DICOM studies with few-shot CLIP adapters and return SEG and SR. "
    "Research use only, not for diagnosis.\n\n"
    "Exit codes: 0 done, 1 the work failed, 2 settings or arguments are wrong, 130 interrupted.",
)
app.add_typer(studies_app)
app.add_typer(index_app)
app.add_typer(adapters_app, name="adapters")
app.add_typer(user_app, name="user")
app.add_typer(feedback_app, name="feedback")
app.add_typer(tls_app, name="tls")
app.command()(train)
app.command()(evaluate)


def main() -> None:
    """Entry point of the ``daemon`` command."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        out.print(__version__, highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


@app.command()
@guarded
def run(
    settings: SettingsOption = None,
    role: Annotated[
        str | None,
        typer.Option(help="Run one role alone: receive, score, send or web; default: all of them."),
    ] = None,
) -> None:
    """Run the daemon in the foreground; SIGTERM finishes running work and stops.

    Example: daemon run --settings /etc/pacs-anomaly-daemon/settings.toml
    """
    from daemon.resting import resting_collector

    with resting_collector():
        from daemon import service
        from daemon.supervisor import ROLES, Supervisor

    options, path = load(settings)
    if role is not None and role not in ROLES:
        raise SettingsError(f"--role must be one of {', '.join(ROLES)}, not {role!r}")
    os.umask(0o077)  # database, locks, spool: for the owner alone
    service.prepare(options)
    if role is not None:
        service.run_role(role, options)
        return
    with service.only_one("daemon", options, wait_s=2.0):
        # The supervisor gives up only over settings: port in use, data folder in use.
        roles = ROLES if options.web.port else ROLES[:-1]  # port 0: no page
        code = EXIT_USAGE if Supervisor(path, options.service.stop_timeout_s, roles).run() else 0
    raise typer.Exit(code)


@app.command()
@guarded
def echo(
    peer: Annotated[str, typer.Argument(help="Name of a destination or peer in the settings.")],
    settings: SettingsOption = None,
) -> None:
    """Ask a peer for C-ECHO and say what it answers.

    Example: daemon echo pacs
    """
    from daemon.sender import echo as c_echo

    options, _ = load(settings)
    result = c_echo(_target(peer, options))
    if not result.ok:
        fail(result.reason if result.reason.startswith(f"{peer}:") else f"{peer}: {result.reason}")
    out.print(f"{peer}: [green]answers[/green] ({result.duration_s * 1000:.0f} ms)")


@app.command()
@guarded
def send(
    peer: Annotated[str, typer.Argument(help="Name of a destination or peer in the settings.")],
    paths: Annotated[list[Path], typer.Argument(help="Files and folders.")],
    settings: SettingsOption = None,
) -> None:
    """Send DICOM files to a peer, as they are.

    Example: daemon send pacs results/
    """
    from daemon.given import find_studies
    from daemon.sender import send as c_store

    options, _ = load(settings)
    target = _target(peer, options)
    studies, refusals = find_studies(paths)
    _say_skipped([refusal.reason for refusal in refusals])
    files = [file for group in studies.values() for file in group]
    stored, reasons = 0, Counter[str]()
    with progress_bar(err) as bar:
        task = bar.add_task("sending", total=len(files))
        for start in range(0, len(files), _SEND_BATCH):
            outcomes = c_store(files[start : start + _SEND_BATCH], target)
            stored += sum(outcome.ok for outcome in outcomes)
            reasons.update(outcome.reason for outcome in outcomes if not outcome.ok)
            bar.advance(task, len(outcomes))
            if all(outcome.status is None for outcome in outcomes):
                break  # nobody there: the rest would wait for the same timeouts
    for reason, count in reasons.most_common():
        err.print(f"not stored: {count} × {reason}", markup=False, highlight=False, soft_wrap=True)
    out.print(f"{stored} of {len(files)} instances stored at {peer}", highlight=False)
    if stored < len(files) or not files:
        raise typer.Exit(EXIT_FAILED)


@app.command()
@guarded
def score(
    paths: Annotated[list[Path], typer.Argument(help="DICOM files and folders.")],
    out_dir: Annotated[Path, typer.Option("--out", "-o", help="Folder for SEG, SR and previews.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
    settings: SettingsOption = None,
) -> None:
    """Run the whole pipeline on files, without network: SEG, SR and a contact sheet per study.

    Example: daemon score export/ --out results --json
    """
    from daemon.given import find_studies

    options, _ = load(settings)
    studies, refusals = find_studies(paths)

    from daemon.models import Models
    from daemon.offline import score_files
    from daemon.show import print_scored, scored_as_dict

    out_dir.mkdir(parents=True, exist_ok=True)  # an --out that cannot be made ends this before the work
    models = Models(options)
    if not models.versions():
        fail("no adapter bundle is in use: `daemon adapters import FILE`, or set model.bundle")
    with progress_bar(err) as bar:
        task = bar.add_task("scoring", total=None)
        scored = score_files(
            studies,
            models,
            options,
            out_dir,
            lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )
    if as_json:
        sys.stdout.write(json.dumps([scored_as_dict(item) for item in scored], indent=2) + "\n")
    else:
        print_scored(out, scored)
    _say_skipped([refusal.reason for refusal in refusals])
    if not any(item.result.analyses for item in scored):
        fail("nothing could be scored")


@app.command()
@guarded
def check(settings: SettingsOption = None) -> None:
    """Check settings, folders, disk, weights, bundle and every peer.

    Example: daemon check --settings settings.toml
    """
    from daemon.check import run_checks

    options, path = load(settings)
    logging.getLogger().setLevel(logging.CRITICAL)
    table = Table("", "what", "result", box=None)
    bad = 0
    for item in run_checks(options, path):
        bad += item.level == "error"
        table.add_row(_MARKS[item.level], item.what, item.result)
    out.print(table)
    if bad:
        raise typer.Exit(EXIT_FAILED)


@app.command()
@guarded
def conformance(settings: SettingsOption = None) -> None:
    """Print the DICOM conformance statement (PS3.2 Annex N) as Markdown.

    Example: daemon conformance > conformance.md
    """
    from daemon.conformance import statement

    sys.stdout.write(statement(load(settings)[0]))


@app.command()
@guarded
def demo(
    out_dir: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for everything the demo makes.")
    ] = Path("demo-out"),
    stay: Annotated[bool, typer.Option(help="Keep daemon and PACS running until Ctrl-C.")] = False,
    settings: SettingsOption = None,
) -> None:
    """Play the main job on a phantom site: fit, receive, score, deliver, and show it.

    Example: daemon demo --out demo-out --stay
    """
    from daemon.demo import run_demo

    _, path = load(settings)
    screen = out if out.is_terminal else console()
    screen.width = min(screen.width, 110)
    raise typer.Exit(run_demo(screen, path, out_dir, stay=stay))


def _say_skipped(reasons: list[str]) -> None:
    for reason, count in Counter(reasons).most_common():
        err.print(f"skipped: {count} × {reason}", markup=False, highlight=False, soft_wrap=True)


def _target(name: str, options: Settings) -> Destination:
    from daemon.service import destination, peer_node

    for entry in options.destinations:
        if entry.name == name:
            return destination(entry, options)
    for peer in options.peers:
        if peer.name == name:
            return peer_node(peer, options)
    known = ", ".join([d.name for d in options.destinations] + [p.name for p in options.peers]) or "none"
    raise SettingsError(f"no destination or peer is called {name!r}; the settings have: {known}")
