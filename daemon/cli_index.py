"""The commands that keep index, spool and deliveries in order."""

from __future__ import annotations

from typing import Annotated

import typer

from daemon.console import SettingsOption, guarded, load, out
from daemon.errors import SettingsError
from daemon.settings import Settings

app = typer.Typer()
index_app = typer.Typer(no_args_is_help=True, help="The index of received studies.")
app.add_typer(index_app, name="index")


@index_app.command()
@guarded
def rebuild(settings: SettingsOption = None) -> None:
    """Make the index again from the spool: what it does not know is added, nothing is removed.

    Example: daemon index rebuild
    """
    from contextlib import closing

    from daemon.index import Index
    from daemon.spool import Spool

    options, _ = load(settings)
    if not options.spool_dir.is_dir():
        raise SettingsError(f"service.data_dir: no spool is in {options.spool_dir}")
    with closing(Index(options.database_url)) as index:
        added = index.rebuild(Spool(options.spool_dir))
        studies = sum(index.count_states().values())
    out.print(f"{added} instances added; the index has {studies} studies", highlight=False)


@app.command()
@guarded
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")] = False,
    settings: SettingsOption = None,
) -> None:
    """Remove the files of delivered studies as the retention settings say; the daemon does it nightly.

    Example: daemon prune --dry-run
    """
    from daemon.cli_studies import open_index
    from daemon.prune import Pruner, describe
    from daemon.spool import Spool

    options, _ = load(settings)
    with open_index(options) as index:
        pruner = Pruner(options, index, Spool(options.spool_dir))
        plan = pruner.plan()
        out.print(f"by age: {describe(plan.by_age)}", highlight=False)
        out.print(f"for space: {describe(plan.by_space)}", highlight=False)
        if dry_run:
            out.print("nothing was removed")
        else:
            out.print(f"{pruner.prune(plan)} studies removed", highlight=False)


@app.command()
@guarded
def pause(
    destination: Annotated[str, typer.Argument(help="Name of a destination in the settings.")],
    settings: SettingsOption = None,
) -> None:
    """Send nothing to a destination until `daemon resume`; what is due stays due.

    Example: daemon pause pacs
    """
    from daemon.cli_studies import open_index

    options, _ = load(settings)
    _check(destination, options)
    with open_index(options) as index:
        index.pause(destination)
    out.print(f"{destination}: paused")


@app.command()
@guarded
def resume(
    destination: Annotated[str, typer.Argument(help="Name of a destination in the settings.")],
    settings: SettingsOption = None,
) -> None:
    """Send to a paused destination again, beginning with what waited.

    Example: daemon resume pacs
    """
    from daemon.cli_studies import open_index

    options, _ = load(settings)
    _check(destination, options)
    with open_index(options) as index:
        index.resume(destination)
    out.print(f"{destination}: resumed")


@app.command()
@guarded
def discard(
    destination: Annotated[str, typer.Argument(help="Name of a destination that the settings had once.")],
    settings: SettingsOption = None,
) -> None:
    """Give up for good what a destination that is no longer in the settings did not get.

    Its dead letters go, and the studies whose results wait for nobody else can be pruned.

    Example: daemon discard old-pacs
    """
    from daemon.cli_studies import open_index

    options, _ = load(settings)
    if destination in [entry.name for entry in options.destinations]:
        raise SettingsError(
            f"{destination!r} is in the settings, and gets its results by `daemon retry`: take it out first"
        )
    with open_index(options) as index:
        count = index.discard(destination)
    out.print(f"{destination}: {count} undelivered results were given up", highlight=False)


def _check(name: str, options: Settings) -> None:
    known = [entry.name for entry in options.destinations]
    if name not in known:
        names = ", ".join(known) or "none"
        raise SettingsError(f"no destination is called {name!r}; the settings have: {names}")
