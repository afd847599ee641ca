"""``aiseeme report``: a run's page and model card written anew, and its plots as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from aiseeme_models.printable import LONGEST_LINE, printable
from federation_configs.command_line import console
from server.cli_options import Federation, Json, RunId, Runs


def register(app: typer.Typer) -> None:
    """Add the command to ``aiseeme``."""
    app.command()(report)


def report(
    run: RunId,
    plots: Annotated[
        Path | None, typer.Option(help="Also write every plot into this folder.", show_default=False)
    ] = None,
    format_name: Annotated[str, typer.Option("--format", help="Of the plots: png | svg | pdf.")] = "png",
    consented_images: Annotated[
        Path | None,
        typer.Option(
            help="Show up to 8 images of this labelled folder, and where the model looks in them. You say with it that"
            " they may be shown: whoever has the page has the images. (Phantoms are shown without it.)",
            show_default=False,
        ),
    ] = None,
    runs: Runs = None,
    federation: Federation = None,
    as_json: Json = False,
) -> None:
    """Write a run's report and model card anew, with what audits have left in its folder since."""
    from aiseeme_models.errors import InputError
    from server.model_manifest import MODEL_FOLDER
    from server.progress import Progress
    from server.report import save_plots, write_model_card, write_report
    from server.report.drawing import FORMATS
    from server.report.panels import panels_of
    from server.results import Results
    from server.run_folder import existing_registry, runs_home

    if format_name not in FORMATS:
        raise InputError(f"--format {format_name}: there are {', '.join(FORMATS)}")
    home = runs_home(runs, federation)
    folder = home / existing_registry(home).get(run).id
    Results.load(folder)  # before images are read
    panels = panels_of(folder, home, consented_images, Progress(console(stderr=as_json)))
    page = write_report(folder, panels)
    card = write_model_card(folder) if (folder / MODEL_FOLDER).is_dir() else None
    drawn = [] if plots is None else save_plots(folder, plots, format_name)
    if as_json:
        written = {"report": str(page), "model_card": None if card is None else str(card), "plots": [*map(str, drawn)]}
        typer.echo(json.dumps(written | {"images": 0 if panels is None else len(panels.panels)}, indent=2))
        return
    _line(f"report: {page}")
    if card is not None:
        _line(f"model card: {card}")
    if panels is not None:
        what = "phantoms" if panels.phantom else f"images of {consented_images}"
        _line(f"it shows {len(panels.panels)} {what}, and where the model looks in them")
    for path in drawn:
        _line(f"plot: {path}")


def _line(text: str) -> None:
    typer.echo(printable(text, LONGEST_LINE))
