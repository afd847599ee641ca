"""``aiseeme-site head``: this hospital's own last layer, for a classifier that only this hospital can put together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aiseeme_models.printable import LONGEST_LINE, printable
from client.cli_options import Home


def register(app: typer.Typer) -> None:
    """Add the command to ``aiseeme-site``."""
    app.command()(head)


def head(
    run: Annotated[str, typer.Argument(help='The id of a run with `head = "personal"`, or its beginning.')],
    out: Annotated[Path, typer.Option(help="The file to write.", show_default=False)],
    home: Home = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write this site's own last layer of a run to a file; `aiseeme personal` joins it to the run's backbone."""
    from aiseeme_models.downstream.head_file import write_own_head
    from aiseeme_models.errors import InputError
    from client.own_head import take_own_head
    from client.site_home import site_home

    if out.exists() and (out.is_dir() or not force):
        replaced = "a folder" if out.is_dir() else "it is there already; --force replaces it"
        raise InputError(f"--out {out}: {replaced}")
    own = take_own_head(site_home(home).folder / "state", run)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_own_head(out, own)
    _line(f"wrote {out}: this site's own last layer after round {own.round} of run {own.run}")
    _line("it was learnt from this hospital's patients: keep it here")


def _line(text: str) -> None:
    typer.echo(printable(text, LONGEST_LINE))
