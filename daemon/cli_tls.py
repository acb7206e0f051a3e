"""``daemon tls``: certificates for a first try, and how long the real ones are good for."""

from pathlib import Path
from typing import Annotated

import typer

from daemon.console import EXIT_FAILED, SettingsOption, fail, guarded, load, out

app = typer.Typer(no_args_is_help=True, help="Certificates for encrypted associations.")


@app.command("make-test-ca")
@guarded
def make_test_ca(
    folder: Annotated[Path, typer.Argument(help="Where to write them; made if absent.")],
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address that the certificates are for; repeat for more."),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long they are good for.")] = 365,
) -> None:
    """Write a CA and a server and a client certificate for a first try (not for patients' data).

    Example: daemon tls make-test-ca tls/ --host pacs.example.org
    """
    from daemon.try_ca import make_test_ca as make

    try:
        written = make(folder, host or ("localhost", "127.0.0.1"), days)
    except FileExistsError as error:
        fail(f"{error.filename} is there already: name another folder")
    for path in written:
        out.print(str(path), highlight=False, soft_wrap=True)


@app.command("expiry")
@guarded
def expiry(
    settings: SettingsOption = None,
    days: Annotated[int, typer.Option(min=0, help="Look this far ahead.")] = 31,
) -> None:
    """List the certificates that end soon; exit code 1 if there are any.

    Example: daemon tls expiry --days 60
    """
    from daemon.tls import expiring

    options, _ = load(settings)
    found = expiring(options, days)
    for item in found:
        out.print(str(item), highlight=False, soft_wrap=True)
    if found:
        raise typer.Exit(EXIT_FAILED)
    out.print(f"no certificate ends within {days} days", highlight=False)
