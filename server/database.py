"""How the coordinator's databases are opened and written: SQLite by default, used by several processes at once."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, Table, event, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.schema import CreateTable
from sqlmodel import Session, SQLModel, create_engine

from aiseeme_models.errors import InputError, RunFailed

BUSY_TIMEOUT_S = 15


def open_database(url: str, tables: list[type[SQLModel]]) -> Engine:
    """A database whose tables are there.

    Args:
        url: for instance ``sqlite:///runs/registry.sqlite``; the folder must exist.
        tables: made where they are not there yet.

    Raises:
        InputError: the URL is not understood, its driver is missing, or the database cannot be opened.
    """
    try:
        return _open(url, tables)
    except (ArgumentError, ModuleNotFoundError) as error:
        raise InputError(f"the registry's URL is wrong or its driver is missing: {error}") from error
    except SQLAlchemyError as error:
        where = make_url(url).render_as_string(hide_password=True)
        raise InputError(f"the registry {where} cannot be opened: {cause(error)}") from error


def commit(session: Session) -> None:
    """Write what was changed.

    Raises:
        RunFailed: the database cannot be written to.
    """
    try:
        session.commit()
    except SQLAlchemyError as error:
        raise RunFailed(f"the registry could not be written: {cause(error)}") from error


def cause(error: SQLAlchemyError) -> str:
    """The database's own words, without the statement and its values."""
    return str(getattr(error, "orig", None) or type(error).__name__)


def now_text() -> str:
    """This moment in UTC, in ISO 8601, which sorts as text."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _open(url: str, tables: list[type[SQLModel]]) -> Engine:
    parsed = make_url(url)
    sqlite = parsed.get_backend_name() == "sqlite"
    engine = create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_S} if sqlite else {})
    if sqlite:
        event.listen(engine, "connect", _write_ahead)
    with engine.begin() as connection:  # if_not_exists: two processes may open a new registry at the same time
        for kind in tables:
            table: Table = kind.__table__  # type: ignore[attr-defined]
            connection.execute(CreateTable(table, if_not_exists=True))
    return engine


def _write_ahead(connection: Any, _record: object) -> None:
    """Readers and one writer side by side; whoever finds it busy waits."""
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()
