"""``aiseeme-site ledger``: what was asked of this site, by whom, what was computed, and what left."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aiseeme_models.errors import InputError, RunFailed
from aiseeme_models.printable import LONGEST_LINE, printable
from client.cli_options import Home, Json
from federation_configs.command_line import console, shown

if TYPE_CHECKING:
    from client.ledger import Ledger
    from client.ledger_chain import Entry

ledger_app = typer.Typer(
    help="What was asked of this site, by whom, what was computed here, and what left.", invoke_without_command=True
)

_ENDS = ("answered", "refused", "failed")
_KEY_SHOWN = 16


@ledger_app.callback()
def ledger(
    context: typer.Context,
    home: Home = None,
    since: Annotated[
        str | None, typer.Option(help="Only from this time on, as 2026-11-25 or 2026-11-25T20:00.", show_default=False)
    ] = None,
    run: Annotated[str | None, typer.Option(help="Only requests of this run.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most lines of the table: the newest.")] = 50,
    as_json: Json = False,
) -> None:
    """Show what was asked of this site, by whom, what was computed here, and what left."""
    if context.invoked_subcommand is not None:
        context.obj = home  # `ledger --home HOME verify` is meant as `ledger verify --home HOME`
        return
    book, first = _ledger(home), _since(since)
    problems: list[str] = []
    entries = list(book.entries(problems.append))
    rows = [
        row
        for row in requests(entries)
        if (first is None or datetime.fromisoformat(row["when"]) >= first) and (run is None or row["run"] == run)
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        _show(rows, limit)
        head = entries[-1].sha256 if entries else None
        typer.echo(
            f"{len(entries)} entries; head {head}" if head else f"{shown(str(book.path))}: nothing was asked yet"
        )
    if problems:
        raise RunFailed("the ledger does not hold together; `aiseeme-site ledger verify` says where")


@ledger_app.command()
def verify(
    context: typer.Context,
    home: Home = None,
    head: Annotated[
        str | None,
        typer.Option(
            help="A head noted down earlier: nothing up to it can have been changed or cut off.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that no entry was changed, removed, added or moved. Exit code 1 where one was."""
    if head is not None and not re.fullmatch("[0-9a-f]{64}", head):
        raise InputError("--head: a head is 64 hexadecimal digits, as `aiseeme-site ledger` shows it")
    book = _ledger(home or context.obj)
    found = book.check(head)
    if as_json:
        answer = {"entries": found.entries, "head": found.head, "problems": found.problems, "notes": found.notes}
        typer.echo(json.dumps(answer | {"compared_with": head}, indent=2))
    else:
        for problem in found.problems:
            typer.echo(printable(f"BAD  {problem}", LONGEST_LINE))
        for note in found.notes:
            typer.echo(f"note {note}; this is no tampering")
        if not found.problems:
            typer.echo(f"{found.entries} entries in one unbroken chain; head {found.head}")
            typer.echo(
                "nothing up to the given head was changed or cut off"
                if head
                else "note the head down elsewhere: `ledger verify --head` then proves that nothing was cut off either"
            )
    if found.problems:
        raise typer.Exit(1)


def requests(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """One row for each request, with how it ended, and one for everything else that was entered.

    Args:
        entries: a ledger's, in order.
    """
    rows: list[dict[str, Any]] = []
    asked: dict[int, dict[str, Any]] = {}
    for entry in entries:
        fields, request = entry.fields, entry.fields.get("request")
        row = asked.get(request) if isinstance(request, int) else None
        if row is None:
            row = _row(entry)
            rows.append(row)
            if entry.kind == "asked":
                asked[entry.seq] = row
        if entry.kind == "started":
            row["images"] = fields.get("images")
        elif entry.kind in _ENDS:
            row["verdict"] = entry.kind
            row |= {name: fields[name] for name in row.keys() & fields.keys() - {"what"}}
    return rows


def _row(entry: Entry) -> dict[str, Any]:
    fields = entry.fields
    row: dict[str, Any] = {"seq": entry.seq, "when": entry.time.isoformat(timespec="seconds")}
    row["verdict"] = "not answered" if entry.kind == "asked" else entry.kind
    row["who"] = None if (who := fields.get("coordinator")) is None else str(who)
    names = ("what", "run", "round", "stage", "task", "name", "config", "images", "steps", "seconds", "bytes", "sha256")
    return row | {name: fields.get(name) for name in (*names, "counts", "privacy", "code")}


def _show(rows: list[dict[str, Any]], limit: int) -> None:
    from rich.table import Table

    table = Table(title="what was asked of this site")
    for column in ("when", "who", "what", "run", "round", "task"):
        table.add_column(column)
    for column in ("images", "bytes that left"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    for row in rows[-limit:]:
        when = datetime.fromisoformat(row["when"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        texts = (row["who"] and row["who"][:_KEY_SHOWN], row["what"], row["run"], row["round"], row["task"])
        counts = (row["images"], row["bytes"])
        verdict = f"{row['verdict']}: {row['code']}" if row["code"] else row["verdict"]
        cells = (when, *texts, *(f"{count:,}" if isinstance(count, int) else None for count in counts), verdict)
        table.add_row(*("" if cell is None else shown(str(cell)) for cell in cells))
    console().print(table)
    if len(rows) > limit:
        typer.echo(f"and {len(rows) - limit} before: --limit shows more of them, --json all")


def _ledger(home: Any) -> Ledger:
    from client.ledger import Ledger
    from client.site_home import site_home

    return Ledger.in_home(site_home(home).folder)


def _since(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise InputError(f"--since {text}: write a day or a time, as 2026-11-25 or 2026-11-25T20:00") from None
