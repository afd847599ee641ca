"""``aiseeme-site``: the hospital's command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from aiseeme_models.printable import LONGEST_LINE, printable
from federation_configs.command_line import console, run_app, show_version, shown

app = typer.Typer(
    name="aiseeme-site",
    help="The hospital's side of a federation: its images stay here.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def _group(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=show_version, help="Print it.")] = False,
) -> None:
    """The hospital's side of a federation: its images stay here."""


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="Where one folder per phantom hospital is written.")],
    kind: Annotated[str, typer.Option(help="dermoscopy or chest-xray.")] = "dermoscopy",
    sites: Annotated[int, typer.Option(min=1, max=64)] = 4,
    images: Annotated[int, typer.Option(min=1, max=100_000, help="Images per hospital.")] = 100,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Write phantom hospitals: procedurally drawn DICOM files with labels, for trying things out."""
    from aiseeme_models.errors import InputError
    from aiseeme_models.images.phantoms import write_phantoms

    if kind not in ("dermoscopy", "chest-xray"):
        raise InputError(f"--kind {kind}: there are dermoscopy and chest-xray")
    chosen: Literal["dermoscopy", "chest-xray"] = "dermoscopy" if kind == "dermoscopy" else "chest-xray"
    for folder in write_phantoms(out, kind=chosen, sites=sites, images_per_site=images, seed=seed):
        typer.echo(printable(str(folder), LONGEST_LINE))


@app.command()
def scan(
    folder: Annotated[Path, typer.Argument(help="The hospital's image folder.")],
    cache: Annotated[Path, typer.Option(help="Where decoded images are kept.")] = Path("cache"),
    preset: Annotated[
        str, typer.Option(help="How files become arrays: dermoscopy, chest-xray, ct-lung.")
    ] = "dermoscopy",
    size: Annotated[int, typer.Option(min=16, max=1024, help="Side of the square images, in pixels.")] = 224,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON instead.")] = False,
) -> None:
    """Say what is in an image folder: how many images, and which files were rejected and why."""
    from aiseeme_models.images.cache import ImageCache
    from aiseeme_models.images.presets import ImageOptions
    from aiseeme_models.options import parse_options
    from client.catalogue import scan as read

    options = parse_options(ImageOptions, {"preset": preset, "size": size}, where="scan", owner="scan")
    catalogue = read(folder, ImageCache(cache, options))
    if as_json:
        typer.echo(json.dumps(catalogue.summary(), indent=2))
        return
    counts = f"{len(catalogue.rows)} images accepted, {len(catalogue.rejected)} files rejected"
    table = Table(title=f"{shown(str(folder))}: {counts}")
    table.add_column("rejected file")
    table.add_column("why")
    for rejection in catalogue.rejected:
        table.add_row(shown(rejection.file), rejection.detail)
    for file in catalogue.missing:
        table.add_row(shown(file), "labels.csv names it, but it is not there")
    console().print(table)


def main() -> None:
    """The console script."""
    run_app(app)
