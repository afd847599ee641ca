"""``aiseeme models``, ``verify`` and ``export``: what came of the runs, who vouches for it, and its way out."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aiseeme_models.printable import LONGEST_LINE, printable
from federation_configs.command_line import console, shown
from server.cli_options import Federation, Json, Runs

if TYPE_CHECKING:
    from server.lineage import Lineage

Key = Annotated[
    str | None, typer.Option("--key", help="The coordinator's public key, 64 hexadecimal digits: nothing else counts.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to ``aiseeme``."""
    app.command()(models)
    app.command()(verify)
    app.command()(export)
    app.command()(personal)


def models(runs: Runs = None, key: Key = None, federation: Federation = None, as_json: Json = False) -> None:
    """List the final models of finished runs, newest first."""
    from rich.table import Table

    from server.coordinator_key import pinned_key
    from server.models_list import list_models
    from server.run_folder import runs_home

    home = runs_home(runs, federation)
    pinned = pinned_key(key, federation, home)
    listed = list_models(home, pinned.key if pinned else None)
    if as_json:
        typer.echo(json.dumps([model.model_dump(mode="json") for model in listed], indent=2))
        return
    if not listed:
        _line(f"no finished run in {home} yet; `aiseeme simulate` makes one")
        return
    table = Table()
    for title in ("run", "name", "backbone", "norm", "rounds", "sites", "signed", "linear", "k-NN", "folder"):
        table.add_column(title, overflow="fold")
    for model in listed:
        signed = f"{model.signed} ({model.key[:16]}…)" if model.key else model.signed
        figures = ("-" if figure is None else f"{figure:.3f}" for figure in (model.linear, model.knn))
        row = (model.run, model.name, model.backbone, model.norm, str(model.rounds), model.sites, signed, *figures)
        table.add_row(*(shown(text) for text in (*row, model.folder)))
    console().print(table)
    for model in listed:
        if model.problem:
            _line(f"{model.run}: {model.problem}")


def verify(
    subject: Annotated[
        str,
        typer.Argument(metavar="RUN|FOLDER|FILE", help="A run's id, a run's or model's folder, an exported file."),
    ],
    key: Key = None,
    federation: Federation = None,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Walk the chain from a model back to round 0: every hash, every signature, the configuration."""
    from server.coordinator_key import pinned_key
    from server.lineage import verify as walk
    from server.run_folder import runs_home

    home = runs_home(runs, federation)
    pinned = pinned_key(key, federation, home)
    found = walk(subject, home, pinned.key if pinned else None, demanded=pinned is not None and pinned.named)
    if as_json:
        typer.echo(json.dumps(asdict(found) | {"whole": found.whole}, indent=2))
    else:
        _show(found)
    if not found.whole:
        raise typer.Exit(1)


def export(
    run: Annotated[str, typer.Argument(metavar="RUN|FOLDER", help="A run's id or its beginning, or a run's folder.")],
    format_name: Annotated[
        str,
        typer.Option("--format", help="safetensors | torchscript | torch-export | onnx | monai (a bundle)."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="File or folder to write (default: exports/ in the run).", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file, or an earlier export's folder.")] = False,
    federation: Federation = None,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Write a finished run's model for other software, checked against the original."""
    from server.coordinator_key import own_key
    from server.export import export_run
    from server.exporting.manifest import manifest_of
    from server.run_folder import runs_home

    home = runs_home(runs, federation)
    made = export_run(run, format_name, home=home, out=out, key=own_key(federation, home), force=force)
    beside = manifest_of(made.path)
    if as_json:
        where = {"path": str(made.path), "manifest": str(beside), "signed": made.signed}
        typer.echo(json.dumps(where | made.manifest.model_dump(mode="json"), indent=2))
        return
    _line(f"wrote {made.path}")
    _line(f"      {beside} ({'signed' if made.signed else 'not signed'})")
    if made.manifest.facts.own_head:
        _line("its last layer was learnt from one hospital's patients: keep it there")
    preparation = made.manifest.facts.preprocessing
    _line(f"images: {preparation.fit} to {preparation.size} px, mean {preparation.mean}, std {preparation.std}")


def personal(
    run: Annotated[
        str, typer.Argument(metavar="RUN|FOLDER", help='A run of `head = "personal"`: id, its beginning, or folder.')
    ],
    head: Annotated[Path, typer.Option(help="What `aiseeme-site head` wrote at the hospital.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The folder to write.", show_default=False)],
    key: Key = None,
    federation: Federation = None,
    runs: Runs = None,
) -> None:
    """Put a run's backbone and one hospital's own last layer together to that hospital's classifier."""
    from server.coordinator_key import pinned_key
    from server.personal import join_own_head
    from server.run_folder import runs_home

    home = runs_home(runs, federation)
    made = join_own_head(run, head, out, home=home, key=pinned_key(key, federation, home))
    _line(f"wrote {out}: a classifier of {', '.join(made.classes)}")
    if made.own_head_round != made.round:
        _line(
            f"its last layer is that of round {made.own_head_round}, its backbone that of round {made.round}: not what"
            " was tested, unless the hospital missed the rounds between"
        )
    _line(f"`aiseeme predict {out} FILE...` asks it, `aiseeme export {out} --format onnx` takes it elsewhere")
    _line("its last layer was learnt from one hospital's patients: keep it there")


def _show(found: Lineage) -> None:
    for sign, lines in (("ok  ", found.verified), ("note", found.notes), ("BAD ", found.problems)):
        for line in lines:
            _line(f"{sign} {line}")
    how = "signed" if found.signed else "not signed"
    _line(f"{found.subject}: {f'{len(found.problems)} problems' if found.problems else f'whole, {how}'}")


def _line(text: str) -> None:
    typer.echo(printable(text, LONGEST_LINE))
