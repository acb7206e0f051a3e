"""The database behind the index: how it is opened, and its schema brought to the newest version."""

import sqlite3
from pathlib import Path

import alembic.command
import alembic.config
from sqlalchemy import URL, Connection, Engine, ExceptionContext, create_engine, event, make_url, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from daemon.errors import DatabaseError, DatabaseFullError

# KiB of pages for each connection, of which a process has several: with SQLite's own bound of 2 MB
# each of them grows as long as the database does. The system's page cache holds the file anyway.
_CACHE = "cache_size=-512"


def open_database(database_url: str) -> tuple[Engine, Engine]:
    """Open the database and upgrade its schema.

    Parameters
    ----------
    database_url
        SQLAlchemy URL of a SQLite or PostgreSQL database.

    Returns
    -------
    tuple of Engine and Engine
        One to read with and one to write with; they share their connections.

    Raises
    ------
    DatabaseError
        The URL is no database's, or the database does not answer.
    """
    try:
        return _open(make_url(database_url))
    except SQLAlchemyError as error:
        # The driver's own message can hold the URL with its password.
        kind = type(error).__name__
        raise DatabaseError(
            f"the database of service.database cannot be opened ({kind}): check the URL, or wait for it"
        ) from None


def _open(url: URL) -> tuple[Engine, Engine]:
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, connect_args={"timeout": 30.0, "check_same_thread": False})
        event.listen(engine, "connect", _set_pragmas)
        event.listen(engine, "begin", _begin)
    else:
        engine = create_engine(url, pool_pre_ping=True)
    writer = engine.execution_options(pacs_write=True)
    _upgrade(writer)
    event.listen(engine, "handle_error", _name_outage)
    return engine, writer


def _set_pragmas(connection: DBAPIConnection, _record: object) -> None:
    # The driver must not begin transactions by itself: see _begin.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("busy_timeout=30000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", _CACHE):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def bound_cache(engine: Engine) -> None:
    """Bound what each connection of the queue's own SQLite database keeps of it in memory."""
    event.listen(engine, "checkout", _bound_cache)


def _bound_cache(connection: DBAPIConnection, record: ConnectionPoolEntry, _proxy: object) -> None:
    # Some connections are older than this listener.
    if not record.info.get("bounded"):
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA {_CACHE}")
        cursor.close()
        record.info["bounded"] = True


def wait_out_full_disk(engine: Engine) -> None:
    """Let the queue's own SQLite database repeat what a full disk refused, as it repeats what a lock delayed.

    Without this the queue takes a full disk for the fault of the study that it works on. Of PostgreSQL
    it knows by itself what means a full disk (SQLSTATE class 53).
    """
    event.listen(engine, "handle_error", _take_full_for_locked)


def _take_full_for_locked(context: ExceptionContext) -> BaseException | None:
    # The queue knows by these words what to repeat (dbos 3.4, _utils.retriable_sqlite_exception).
    said = str(context.original_exception)
    if "disk is full" not in said and "disk I/O error" not in said:
        return None
    return OperationalError("", {}, sqlite3.OperationalError(f"database is locked: {said}"))


def _name_outage(context: ExceptionContext) -> BaseException | None:
    # Those who use the index know nothing of its library, yet must tell an outage, which they wait
    # for, from a mistake. The driver's own message can hold the URL with its password.
    kind = type(context.original_exception).__name__
    if _is_full(context.original_exception):
        return DatabaseFullError(
            f"the database has no room ({kind}): free space on its disk, or raise its limits"
        )
    if not context.is_disconnect and not isinstance(context.sqlalchemy_exception, OperationalError):
        return None
    return DatabaseError(f"the database does not answer ({kind}): wait for it")


def _is_full(error: BaseException) -> bool:
    if isinstance(error, sqlite3.Error):
        # The low byte is the primary code: on a full disk its own files fail in more than one way.
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
    # PostgreSQL's class "insufficient resources": disk, memory, connections.
    return (getattr(error, "sqlstate", None) or "").startswith("53")


def _begin(connection: Connection) -> None:
    # A read that becomes a write fails at once when another process wrote in between, whatever the
    # busy timeout; a write therefore takes its lock at the start.
    write = connection.get_execution_options().get("pacs_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _upgrade(writer: Engine) -> None:
    config = alembic.config.Config()
    # Alembic interpolates: a path with a percent sign would be read as a reference.
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with writer.begin() as connection:
        if connection.dialect.name == "postgresql":
            # Several processes start at once: one upgrades, the others wait for it.
            connection.execute(text("SELECT pg_advisory_xact_lock(7264011)"))
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "head")
