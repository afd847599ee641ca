"""``aiseeme compare``: how alike finished runs' models are, as hospitals see it on their own images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aiseeme_models.printable import LONGEST_LINE, printable
from federation_configs.command_line import console, shown
from server.cli_options import Device, Federation, Json, OwnImages, Partition, Runs, Sites, check_simulated

if TYPE_CHECKING:
    from rich.table import Table

    from server.comparison import Pair


def register(app: typer.Typer) -> None:
    """Add the command to ``aiseeme``."""
    app.command()(compare)


def compare(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Two or more: a run's id or its beginning, or its folder.")
    ],
    data: OwnImages = None,
    sites: Sites = None,
    partition: Partition = None,
    images: Annotated[
        int, typer.Option(help="Most held-out images of a hospital: a multiple of 64, at most 4096.")
    ] = 512,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw CKA by block: a .png, .svg or .pdf file.", show_default=False)
    ] = None,
    save: Annotated[
        bool, typer.Option("--save", help="Keep the figures in the first run's folder: `aiseeme report` shows them.")
    ] = False,
    device: Device = "auto",
    runs: Runs = None,
    federation: Federation = None,
    as_json: Json = False,
) -> None:
    """Compare models block by block on held-out images of hospitals: CKA, SVCCA, effective rank.

    A launched run's own hospitals are asked, which needs the federation to be served; with --data, and for a simulated
    run, some are simulated. The first run counts.
    """
    from aiseeme_models.errors import InputError
    from aiseeme_models.training.device import choose_device
    from federation_configs.wire import LARGEST_COMPARISON, SMALLEST_COMPARISON
    from server.compare_at_hospitals import compare_models
    from server.model_reference import find_model
    from server.progress import Progress
    from server.report.audits import compared_pairs, save_likeness
    from server.report.likeness_plot import check_plot, draw_likeness
    from server.run_folder import runs_home, was_launched

    if images % SMALLEST_COMPARISON or not SMALLEST_COMPARISON <= images <= LARGEST_COMPARISON:
        raise InputError(
            f"--images {images}: give a multiple of {SMALLEST_COMPARISON} from {SMALLEST_COMPARISON} to"
            f" {LARGEST_COMPARISON}: hospitals answer for whole batches only"
        )
    if plot is not None:
        check_plot(plot)
    screen = console(stderr=as_json)
    home = runs_home(runs, federation)
    found = [find_model(model, home) for model in models]
    first = found[0].folder.parent
    if not data and was_launched(first):
        check_simulated(sites=sites, partition=partition, device=device != "auto")
    pairs = compare_models(
        found,
        data or [],
        sites=sites,
        partition=partition,
        images=images,
        device=choose_device(device),
        home=home,
        progress=Progress(screen),
    )
    known = compared_pairs([asdict(pair) for pair in pairs])
    if plot is not None:
        draw_likeness(known, plot)
    kept = save_likeness(first, known) if save else None
    if as_json:
        typer.echo(json.dumps([asdict(pair) for pair in pairs], indent=2))
        return
    for pair in pairs:
        screen.print(_table(pair))
        used = ", ".join(f"{site} {count}" for site, count in pair.images.items())
        _line(f"held-out images: {used}")
    screen.print(_ranks(pairs))
    if plot is not None:
        _line(f"plot: {plot}")
    if kept is not None:
        _line(f"figures: {kept}")


def _table(pair: Pair) -> Table:
    from rich.table import Table

    table = Table(title=shown(f"{pair.first} and {pair.second}, mean of {len(pair.images)} sites"))
    table.add_column("block")
    for title in ("CKA", "SVCCA"):
        table.add_column(title, justify="right")
    for block in pair.blocks:
        first, second = block.blocks
        figures = ("-" if figure is None else f"{figure:.3f}" for figure in (block.cka, block.svcca))
        table.add_row(shown(first if first == second else f"{first} / {second}"), *figures)
    return table


def _ranks(pairs: Sequence[Pair]) -> Table:
    """Each model's effective ranks, from the first pair that it is in."""
    from rich.table import Table

    ranks: dict[str, dict[str, float]] = {}
    for pair in pairs:
        for which, name in enumerate((pair.first, pair.second)):
            ranks.setdefault(name, {block.blocks[which]: block.ranks[which] for block in pair.blocks})
    blocks = list(dict.fromkeys(block for figures in ranks.values() for block in figures))
    table = Table(title="effective rank (RankMe)")
    table.add_column("model")
    for block in blocks:
        table.add_column(shown(block), justify="right")
    for name, figures in ranks.items():
        cells = (f"{figures[block]:.1f}" if block in figures else "-" for block in blocks)
        table.add_row(shown(name), *cells)
    return table


def _line(text: str) -> None:
    typer.echo(printable(text, LONGEST_LINE))
