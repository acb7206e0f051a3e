"""The commands about received studies: list them, show one, retry one."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, closing
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.console import SettingsOption, guarded, load, out
from daemon.errors import SettingsError
from daemon.settings import Settings

if TYPE_CHECKING:  # `daemon --help` shall not wait for the database's library
    from daemon.index import Index

app = typer.Typer()


@app.command()
@guarded
def studies(settings: SettingsOption = None) -> None:
    """List the studies that were received, newest first.

    Example: daemon studies
    """
    from daemon.show import studies_table

    options, _ = load(settings)
    with open_index(options) as index:
        out.print(studies_table(index))


@app.command()
@guarded
def show(
    study: Annotated[str, typer.Argument(help="Study Instance UID, or its end.")],
    settings: SettingsOption = None,
) -> None:
    """Show one study: instances, state, results and deliveries.

    Example: daemon show 1.2.840.1
    """
    from daemon.show import print_study, resolve_study

    options, _ = load(settings)
    with open_index(options) as index:
        print_study(out, index, resolve_study(index, study), options.committing)


@app.command()
@guarded
def retry(
    study: Annotated[str, typer.Argument(help="Study Instance UID, or its end.")] = "",
    all_dead: Annotated[
        bool, typer.Option("--all-dead", help="Send every dead letter again; ask for every commitment anew.")
    ] = False,
    settings: SettingsOption = None,
) -> None:
    """Score a refused or failed study again, or send the undelivered results of a scored one.

    Where a destination has not committed itself to what it got, it is asked for that again, too.

    Example: daemon retry 1.2.840.1
    """
    from daemon.show import resolve_study

    options, _ = load(settings)
    if bool(study) == all_dead:
        raise SettingsError("name one study, or give --all-dead")
    with open_index(options) as index:
        if all_dead:
            count = index.retry_dead(time.time() + options.delivery.give_up_s)
            out.print(f"{count} dead letters will be sent again", highlight=False)
            _tell_commitment(index.pledges.ask_anew(options.committing))
            return
        uid = resolve_study(index, study)
        record = index.retry(uid, expires_at=time.time() + options.delivery.give_up_s)
        uncommitted = index.pledges.ask_anew(options.committing, uid)
    what = "undelivered results will be sent again" if record.state == "scored" else "it will be scored again"
    out.print(f"{what}; the running daemon does it within seconds")
    _tell_commitment(uncommitted)


def _tell_commitment(count: int) -> None:
    if count:
        out.print(f"commitment of {count} delivered results will be asked for again", highlight=False)


def open_index(options: Settings) -> AbstractContextManager[Index]:
    """The index of a daemon that has run; a wrong data folder must not make an empty one."""
    from daemon.index import Index

    if not options.service.database and not (options.service.data_dir / "daemon.sqlite").is_file():
        raise SettingsError(f"service.data_dir: no daemon has run in {options.service.data_dir} yet")
    return closing(Index(options.database_url))
