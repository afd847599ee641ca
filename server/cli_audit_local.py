"""``aiseeme audit attention`` and ``aiseeme audit sites``: where models look, and which hospital they give away."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aiseeme_models.printable import LONGEST_LINE, printable
from federation_configs.command_line import console, shown
from server.cli_options import Federation, Json, OwnImages, Partition, RunId, Runs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from server.attention import AttentionAudit
    from server.site_audit import SiteAudit

Device = Annotated[str, typer.Option(help="Torch device: auto, cpu, cuda, cuda:1, ...")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``aiseeme audit``."""
    app.command()(attention)
    app.command()(sites)


def attention(
    models: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="One or more: a run's id or its beginning, or its folder."),
    ],
    data: Annotated[Path, typer.Option("--data", help="A folder of images.")],
    masks: Annotated[
        Path | None,
        typer.Option(help="A mask per image, called as it is (default: masks in the folder).", show_default=False),
    ] = None,
    cam: Annotated[str, typer.Option(help="Kind of map: grad-cam | eigen-cam (looks at no class).")] = "grad-cam",
    images: Annotated[int, typer.Option(min=1, help="Most test images to look at.")] = 1000,
    untrained: Annotated[bool, typer.Option("--random", help="Add the backbones that the runs began with.")] = False,
    device: Device = "auto",
    runs: Runs = None,
    federation: Federation = None,
    as_json: Json = False,
) -> None:
    """Tell how much of models' attention lies in the lesion's (or lung's) mask, on the same test images."""
    from aiseeme_models.training.device import choose_device
    from server.attention import FILE, audit_attention
    from server.progress import Progress
    from server.run_folder import runs_home

    screen = console(stderr=as_json)
    audit = audit_attention(
        models,
        data,
        masks=masks,
        cam=cam,
        images=images,
        untrained=untrained,
        device=choose_device(device),
        home=runs_home(runs, federation),
        progress=Progress(screen),
    )
    if as_json:
        typer.echo(audit.model_dump_json(indent=2))
        return
    screen.print(_attention_table(audit))
    if len(audit.rows) > 1:
        screen.print(_difference_table(audit))
    for sentence in audit.sentences:
        _line(sentence)
    _line(f"figures: {FILE} in the folder of {audit.rows[0].model}")


def sites(
    run: RunId,
    data: OwnImages = None,
    sites: Annotated[int | None, typer.Option(min=2, help="Deal one folder to this many hospitals.")] = None,
    partition: Partition = None,
    device: Device = "auto",
    runs: Runs = None,
    federation: Federation = None,
    as_json: Json = False,
) -> None:
    """Tell how well an attacker names a patient's hospital from what a model makes of the image, against chance."""
    from aiseeme_models.training.device import choose_device
    from server.progress import Progress
    from server.run_folder import runs_home
    from server.site_audit import FILE, audit_sites

    screen = console(stderr=as_json)
    audit = audit_sites(
        run,
        data or [],
        sites=sites,
        partition=partition,
        device=choose_device(device),
        home=runs_home(runs, federation),
        progress=Progress(screen),
    )
    if as_json:
        typer.echo(audit.model_dump_json(indent=2))
        return
    screen.print(_sites_table(audit))
    for sentence in audit.sentences:
        _line(sentence)
    _line(f"figures: {FILE} in the folder of {audit.run}")


def _attention_table(audit: AttentionAudit) -> Table:
    from rich.table import Table

    from server.tables import with_interval

    table = Table(title=f"{audit.cam}: what lies in the mask, of test images, with 95 % intervals over patients")
    for title in ("model", "kind", "energy in mask", "mask's share", "energy above it", "IoU", "images"):
        table.add_column(title, justify="left" if title in ("model", "kind") else "right")
    for row in audit.rows:
        table.add_row(
            shown(row.model),
            row.kind,
            with_interval(row.energy, row.energy_low, row.energy_high),
            _figure(row.mask_share),
            with_interval(row.gain, row.gain_low, row.gain_high),
            with_interval(row.iou, row.iou_low, row.iou_high),
            str(row.images),
        )
    return table


def _difference_table(audit: AttentionAudit) -> Table:
    from rich.table import Table

    from server.tables import with_interval

    table = Table(title=f"less {shown(audit.rows[0].model)}, image by image")
    for title in ("model", "energy in mask", "IoU"):
        table.add_column(title, justify="left" if title == "model" else "right")
    for row in audit.rows[1:]:
        one = row.to_first
        energy = None if one is None else with_interval(one.energy, one.energy_low, one.energy_high, sign="+")
        iou = None if one is None else with_interval(one.iou, one.iou_low, one.iou_high, sign="+")
        table.add_row(shown(row.model), energy or "-", iou or "-")
    return table


def _sites_table(audit: SiteAudit) -> Table:
    from rich.table import Table

    from server.tables import with_interval

    columns: Sequence[str] = ("an attacker sees", "figures", "hospitals told", "p", "of images of the same class", "p")
    table = Table(title=f"mean share of each hospital's images that is told; chance is {audit.chance:.3f}")
    for title in columns:
        table.add_column(title, justify="left" if title == columns[0] else "right")
    for row in audit.rows:
        plain, matched = row.all_images, row.same_class
        table.add_row(
            row.sees,
            str(row.dimensions),
            with_interval(plain.balanced_accuracy, plain.low, plain.high),
            f"{plain.p:.3f}",
            "-" if matched is None else with_interval(matched.balanced_accuracy, matched.low, matched.high),
            "-" if matched is None else f"{matched.p:.3f}",
        )
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _line(text: str) -> None:
    typer.echo(printable(text, LONGEST_LINE))
