"""``daemon feedback``: what people said of findings, taken along for the next training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.console import SettingsOption, err, guarded, load, out
from daemon.settings import Settings

if TYPE_CHECKING:  # `daemon --help` shall not wait for the database's library
    from daemon.feedback import Exported

app = typer.Typer(no_args_is_help=True, help="What people said of findings, for the next training.")


@app.callback()
def _root() -> None:
    """Keep ``export`` a command of its own."""


@app.command("export")
@guarded
def export(
    folder: Annotated[Path, typer.Argument(help="Folder of cases for `daemon train --site-data`.")],
    settings: SettingsOption = None,
) -> None:
    """Write accepted, rejected and corrected findings with their images as cases to train on.

    Example: daemon feedback export cases/feedback
    """
    options, _ = load(settings)
    done = exported(options, folder)
    for reason in done.left_out:
        err.print(f"left out: {reason}", markup=False, highlight=False, soft_wrap=True)
    out.print(
        f"{done.studies} studies exported: {done.annotations} annotations, "
        f"{done.normal_series} series that count as normal",
        highlight=False,
    )


def exported(options: Settings, folder: Path) -> Exported:
    """Export with what the settings name."""
    import os
    from contextlib import closing

    from daemon.corrections import Corrections
    from daemon.database import open_database
    from daemon.feedback import Sources, export_feedback
    from daemon.index import Index
    from daemon.spool import Spool
    from daemon.verdicts import Verdicts
    from daemon.views import Views

    os.umask(0o077)  # images of patients
    reader, writer = open_database(options.database_url)
    try:
        with closing(Index(options.database_url)) as index:
            sources = Sources(
                index,
                Spool(options.spool_dir),
                Verdicts(reader, writer),
                Corrections(reader, writer),
                Views(options.views_dir),
            )
            return export_feedback(sources, folder)
    finally:
        reader.dispose()
