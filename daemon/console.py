"""What every command shares: two consoles, exit codes, errors in one line, settings, progress bars."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from adapters.errors import AdapterError
from daemon.errors import DaemonError, SettingsError
from daemon.log import configure
from daemon.settings import Settings, load_settings

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

# Into a pipe a table's line stays one line, so that grep finds whole UIDs.
_PIPE_WIDTH = 400


def console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal; very wide where there is none."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else _PIPE_WIDTH)


out = console()
err = console(stderr=True)

SettingsOption = Annotated[
    Path | None,
    typer.Option("--settings", "-s", help="settings.toml; default: ./settings.toml if it is there."),
]


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn the errors that a user can cause into one line and an exit code."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except SettingsError as error:
            fail(str(error), EXIT_USAGE)
        except (DaemonError, AdapterError) as error:
            fail(str(error), EXIT_FAILED)
        except BrokenPipeError:  # the reader, `head` for one, has seen enough
            raise
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            fail(f"{place}{error.strerror or type(error).__name__}", EXIT_FAILED)
        except KeyboardInterrupt:
            fail("interrupted", EXIT_INTERRUPTED)

    return run


def fail(message: str, code: int = EXIT_FAILED) -> NoReturn:
    """Print one error and end with this exit code."""
    err.print("[red]error:[/red]", end=" ")
    err.print(message, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def load(path: Path | None) -> tuple[Settings, Path | None]:
    """The settings, and the file that they came from (None for defaults); sets the log up."""
    if path is None and Path("settings.toml").is_file():
        path = Path("settings.toml")
    settings = load_settings(path)
    configure(settings.service.log_level, settings.service.log_format)
    return settings, path


def progress_bar(screen: Console) -> Progress:
    """A bar for long work, with the time it took and takes; it shows nothing unless it is on a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
    )
