"""``daemon user``: who may sign in to the page, and with which rights."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from daemon.console import SettingsOption, guarded, load, out
from daemon.settings import Settings

if TYPE_CHECKING:  # `daemon --help` shall not wait for the database's library
    from daemon.accounts import Accounts

app = typer.Typer(no_args_is_help=True, help="Who may sign in to the page, and with which rights.")

Role = Literal["viewer", "operator", "administrator"]
RoleOption = Annotated[
    Role,
    typer.Option(
        help="viewer: look; operator: also retry, forward, judge findings; administrator: also bundles."
    ),
]


@app.command("add")
@guarded
def add(
    name: Annotated[str, typer.Argument(help="Letters, digits, '.', '_', '-' and '@'.")],
    role: RoleOption = "viewer",
    settings: SettingsOption = None,
) -> None:
    """Make a user, or change the password and role of one; asks for the password, or reads it from a pipe.

    Example: daemon user add maria --role operator
    """
    options, _ = load(settings)
    password = _password()
    with _accounts(options) as accounts:
        accounts.set(name, password, role)
    out.print(f"{name} may sign in as {role}", highlight=False)


@app.command("list")
@guarded
def list_users(settings: SettingsOption = None) -> None:
    """List the users.

    Example: daemon user list
    """
    options, _ = load(settings)
    table = Table("name", "role", box=None)
    with _accounts(options) as accounts:
        for account in accounts.all():
            table.add_row(account.name, account.role)
    out.print(table if table.row_count else "no users yet: daemon user add NAME --role administrator")


@app.command("remove")
@guarded
def remove(
    name: Annotated[str, typer.Argument(help="Who.")],
    settings: SettingsOption = None,
) -> None:
    """Delete a user; their sessions end at once.

    Example: daemon user remove maria
    """
    options, _ = load(settings)
    with _accounts(options) as accounts:
        accounts.remove(name)
    out.print(f"{name} is gone", highlight=False)


def _password() -> str:
    if sys.stdin.isatty():
        return str(typer.prompt("password", hide_input=True, confirmation_prompt=True))
    return sys.stdin.readline().rstrip("\r\n")


@contextmanager
def _accounts(options: Settings) -> Iterator[Accounts]:
    import os

    from daemon.accounts import Accounts
    from daemon.database import open_database

    os.umask(0o077)
    options.service.data_dir.mkdir(parents=True, exist_ok=True)
    reader, writer = open_database(options.database_url)
    try:
        yield Accounts(reader, writer)
    finally:
        reader.dispose()
