"""The coordinator's registry: one row per run, in SQLite by default or any database that SQLAlchemy knows by URL."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Field, Session, SQLModel, col, desc, select, update

from aiseeme_models.errors import InputError, RunFailed
from server.database import cause, commit, now_text, open_database

if TYPE_CHECKING:
    from server.results import Results

RunStatus = Literal["queued", "running", "done", "failed", "stopped"]
UNFINISHED = ("queued", "running")


class RunRow(SQLModel, table=True):
    """A run as listings show it. Times are ISO 8601 in UTC, which sorts as text.

    Attributes:
        reason: why it failed or stopped, or what a finished run has to admit ("3 of 4 sites").
        finished: when it ended; none while it is running.
        folder: where its files are.
        pid: the process that plays it, to tell a run that is going on from one whose process was killed.
    """

    __tablename__ = "runs"

    id: str = Field(primary_key=True)
    name: str
    status: str = "running"
    reason: str = ""
    created: str
    updated: str
    finished: str | None = None
    seed: int
    config_sha256: str
    version: str
    rounds_done: int = 0
    rounds_total: int
    sites_total: int
    sites_complete: int = 0
    folder: str
    pid: int | None = None


class RunChange(TypedDict, total=False):
    """What may change in a run's row."""

    status: RunStatus
    reason: str
    rounds_done: int
    rounds_total: int
    sites_total: int
    sites_complete: int
    pid: int | None


def new_run_id() -> str:
    """An id that sorts by time and that nobody else has made in the same second: ``20261123-144612-9f3a1c``."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


class RunRegistry:
    """The runs of one coordinator. Several processes may use it at once.

    Args:
        url: for instance ``sqlite:///runs/registry.sqlite``; the folder must exist.

    Raises:
        InputError: the URL is not understood, its driver is missing, or the database cannot be opened.
    """

    def __init__(self, url: str) -> None:
        self._engine = open_database(url, [RunRow])

    def create(
        self,
        *,
        id: str,
        name: str,
        seed: int,
        config_sha256: str,
        version: str,
        rounds_total: int,
        sites_total: int,
        folder: str,
        pid: int | None = None,
        status: RunStatus = "running",
    ) -> RunRow:
        """Enter a run that starts now, or is ``queued`` for who will play it.

        Raises:
            InputError: there is a run with this id.
            RunFailed: the database cannot be written to.
        """
        now = now_text()
        row = RunRow(
            id=id,
            name=name,
            created=now,
            updated=now,
            seed=seed,
            config_sha256=config_sha256,
            version=version,
            rounds_total=rounds_total,
            sites_total=sites_total,
            folder=folder,
            pid=pid,
            status=status,
        )
        with Session(self._engine, expire_on_commit=False) as session:
            if session.get(RunRow, id) is not None:
                raise InputError(f"there is a run {id!r} already")
            session.add(row)
            commit(session)
        return row

    def update(self, id: str, change: RunChange) -> RunRow:
        """Change a run's row; ``updated``, and ``finished`` with a status that is final, are set along.

        Args:
            id: the whole id.
            change: only the keys that change.

        Raises:
            InputError: there is no such run.
            RunFailed: the database cannot be written to.
        """
        values: dict[str, Any] = {**_known(change), "updated": now_text()}
        if "status" in change:
            values["finished"] = None if change["status"] in UNFINISHED else values["updated"]
        with Session(self._engine, expire_on_commit=False) as session:
            # One statement, no read before it: SQLite refuses to turn a read into a write once another has written.
            try:
                session.exec(update(RunRow).where(col(RunRow.id) == id).values(**values))
            except SQLAlchemyError as error:
                raise RunFailed(f"the registry could not be written: {cause(error)}") from error
            commit(session)
            row = session.get(RunRow, id)
        if row is None:
            raise InputError(f"there is no run {id!r}")
        return row

    def finish(self, results: Results) -> RunRow:
        """Enter that a run is done, and how.

        Raises:
            InputError: there is no such run.
            RunFailed: the database cannot be written to.
        """
        return self.update(
            results.run,
            {
                "status": "done",
                "reason": results.reason,
                "rounds_done": results.rounds_done,
                "sites_complete": results.complete_sites,
                "pid": None,
            },
        )

    def get(self, prefix: str) -> RunRow:
        """The run whose id is ``prefix`` or is the only one that starts with it.

        Raises:
            InputError: there is none, or there are several; the text names them.
        """
        with Session(self._engine, expire_on_commit=False) as session:
            exact = session.get(RunRow, prefix)
            if exact is not None:
                return exact
            starts = col(RunRow.id).startswith(prefix, autoescape=True)
            found = session.exec(select(RunRow).where(starts).order_by(RunRow.id)).all() if prefix else []
        if not found:
            raise InputError(f"there is no run {prefix!r}: `aiseeme runs` lists what there is")
        if len(found) > 1:
            some = ", ".join(row.id for row in found[:5]) + (", ..." if len(found) > 5 else "")
            raise InputError(f"{prefix!r} could be {len(found)} runs: {some}")
        return found[0]

    def list(self, limit: int | None = None) -> list[RunRow]:
        """The runs, newest first, at most ``limit``."""
        with Session(self._engine, expire_on_commit=False) as session:
            newest_first = select(RunRow).order_by(desc(RunRow.created), desc(RunRow.id)).limit(limit)
            return [*session.exec(newest_first).all()]

    def unfinished(self) -> Sequence[RunRow]:
        """The runs that are queued, running or interrupted."""
        with Session(self._engine, expire_on_commit=False) as session:
            return session.exec(select(RunRow).where(col(RunRow.status).in_(UNFINISHED))).all()

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()


def _known(change: Mapping[str, object]) -> Mapping[str, object]:
    unknown = set(change) - set(RunChange.__annotations__)
    if unknown:
        raise TypeError(f"a run's row has no changeable {', '.join(sorted(unknown))}")
    return change
