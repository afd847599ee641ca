"""``aiseeme-site``: the hospital's command line."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aiseeme_models.printable import LONGEST_LINE, printable
from client import cli_audit, cli_budget, cli_head, cli_join, cli_run
from client.cli_ledger import ledger_app
from client.cli_options import Home, Json
from federation_configs.command_line import console, run_app, show_version, shown

if TYPE_CHECKING:
    from aiseeme_models.images.pipeline import Pipeline
    from client.scanning import Scan

app = typer.Typer(
    name="aiseeme-site",
    help="The hospital's side of a federation: its images stay here.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(ledger_app, name="ledger")
cli_join.register(app)
cli_run.register(app)
cli_budget.register(app)
cli_audit.register(app)
cli_head.register(app)

Folder = Annotated[Path, typer.Argument(help="The hospital's image folder.")]
Preset = Annotated[str, typer.Option(help="How files become arrays: dermoscopy, chest-xray, ct-lung, ct-nodule.")]
Size = Annotated[int, typer.Option(min=16, max=1024, help="Side of the square images, in pixels.")]


@app.callback()
def _group(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=show_version, help="Print it.")] = False,
) -> None:
    """The hospital's side of a federation: its images stay here."""


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="Where one folder per phantom hospital is written.")],
    kind: Annotated[str, typer.Option(help="dermoscopy, chest-xray, or mixed (every case that intake meets).")] = (
        "dermoscopy"
    ),
    sites: Annotated[int, typer.Option(min=1, max=64)] = 4,
    images: Annotated[
        int, typer.Option(min=1, max=100_000, help="Images per hospital; mixed has its own number.")
    ] = 100,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Write phantom hospitals: procedurally drawn DICOM files with labels, for trying things out."""
    from aiseeme_models.images.phantoms import write_phantoms

    for folder in write_phantoms(out, kind=kind, sites=sites, images_per_site=images, seed=seed):
        typer.echo(printable(str(folder), LONGEST_LINE))


@app.command()
def scan(
    folder: Folder,
    home: Home = None,
    preset: Preset = "dermoscopy",
    size: Size = 224,
    cohort: Annotated[str, typer.Option(help="What you call these images, for policies.")] = "default",
    watch: Annotated[
        float | None,
        typer.Option(min=1, max=86_400, help="Scan again every so many seconds, until Ctrl-C.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Catalogue an image folder and decode it into the cache; say what was left out and why."""
    from aiseeme_models.errors import InputError
    from client.scanning import scan as read
    from client.site_home import site_home

    pipeline, name = _pipeline(preset, size), _cohort(cohort)
    if watch is not None and not math.isfinite(watch):
        raise InputError("--watch: seconds from 1 to 86400")
    while True:
        try:
            with _reading(folder, quiet=as_json) as on_file:
                # A home of its own for every scan: site.toml may have changed.
                done = read(folder, site_home(home), pipeline, cohort=name, on_file=on_file)
        except InputError as error:
            if watch is None:
                raise
            # An empty folder, a half-written labels.csv, a share that is gone: the next scan may do better.
            for line in str(error).split("\n"):
                typer.echo(printable(f"error: {line}", LONGEST_LINE), err=True)
        else:
            if as_json:
                typer.echo(json.dumps(done.summary(), indent=None if watch else 2))
            else:
                _show_scan(done)
        if watch is None:
            return
        time.sleep(watch)


@app.command()
def images(
    folder: Folder,
    home: Home = None,
    left_out: Annotated[bool, typer.Option("--left-out", help="Only what is not used, and why.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Most lines of the table.")] = 50,
    sheet: Annotated[
        Path | None, typer.Option(help="Write a PNG of a random sample as the network sees it.", show_default=False)
    ] = None,
    sample: Annotated[int, typer.Option(min=1, max=200, help="Images per modality on the sheet.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the sheet's choice.")] = 0,
    preset: Preset = "dermoscopy",
    size: Size = 224,
    as_json: Json = False,
) -> None:
    """Browse the catalogue of a scanned folder. It names files: for the hospital's own eyes."""
    from client.listing import list_images
    from client.site_home import site_home

    place = site_home(home)
    listed = (image for image in list_images(place, folder) if not left_out or image.status != "accepted")
    if sheet is not None:
        from client.contact_sheet import write_contact_sheet
        from client.walking import image_root

        there = [image for image in listed if left_out or image.status == "accepted"]
        pipeline = _pipeline(preset, size)
        drawn = write_contact_sheet(sheet, image_root(folder), there, place, pipeline, sample=sample, seed=seed)
        typer.echo(printable(f"{sheet}: {drawn} images; they are patients' images: keep the file here", LONGEST_LINE))
    elif as_json:
        for image in listed:
            typer.echo(json.dumps(image.as_json()))
    else:
        from rich.table import Table

        table = Table(title=shown(str(folder)))
        for column in ("file", "image", "status", "why", "modality", "size", "photometric", "encoding", "bits"):
            table.add_column(column)
        for image in islice(listed, limit):
            extent = f"{image.columns}x{image.rows}" if image.rows else ""
            bits, frame = str(image.bits or ""), "" if image.frame is None else str(image.frame)
            why = ", ".join((*image.reasons, *image.flags))
            texts = (image.modality, extent, image.photometric, image.encoding, bits)
            table.add_row(shown(image.file), frame, image.status, why, *map(shown, texts))
        console().print(table)
        rest = sum(1 for _ in listed)
        if rest:
            typer.echo(f"and {rest} more: --limit shows more of them, --json all")


@app.command()
def nodules(
    folder: Folder,
    listed: Annotated[
        Path, typer.Option("--list", help="csv: seriesuid and coordX, coordY, coordZ (or z, y, x) in mm.")
    ],
    out: Annotated[Path, typer.Option(help="A new folder for the patch set.")],
    home: Home = None,
    size: Annotated[int, typer.Option(min=16, max=256, help="Voxels along a side.")] = 64,
    side_mm: Annotated[float, typer.Option(min=4, max=512, help="Side of a cube, in mm.")] = 64.0,
    window: Annotated[str, typer.Option(help="lung, mediastinum, bone or soft-tissue.")] = "lung",
    as_json: Json = False,
) -> None:
    """Cut isotropic 3-D patches around listed nodules out of CT series, for `scan --preset ct-nodule`."""
    from dataclasses import asdict

    from aiseeme_models.errors import InputError
    from aiseeme_models.images.presets import CT_WINDOWS
    from client.nodule_patches import write_patches
    from client.site_home import site_home

    name = next((known for known in CT_WINDOWS if known == window), None)
    if name is None:
        raise InputError(f"--window {window}: there are {', '.join(CT_WINDOWS)}")
    done = write_patches(folder, listed, out, site_home(home).key, size=size, side_mm=side_mm, window=name)
    if as_json:
        typer.echo(json.dumps(asdict(done), indent=2))
        return
    typer.echo(printable(f"{done.patches} patches of {done.series} series in {out}", LONGEST_LINE))
    if done.absent:
        typer.echo(f"{done.absent} listed series are not in the folder")
    for why, count in done.unusable.items():
        typer.echo(printable(f"{count} series left out: {why}", LONGEST_LINE))


def _pipeline(preset: str, size: int) -> Pipeline:
    from aiseeme_models.images.presets import ImageOptions
    from aiseeme_models.options import parse_options

    return parse_options(ImageOptions, {"preset": preset, "size": size}, where="scan", owner="scan").pipeline


def _cohort(name: str) -> str:
    import re

    from aiseeme_models.errors import InputError

    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,47}", name):
        raise InputError(f"--cohort {name}: a cohort is named by a-z, 0-9 and '-', at most 48 of them")
    return name


@contextmanager
def _reading(folder: Path, *, quiet: bool) -> Iterator[Callable[[], None] | None]:
    """A live count on a terminal, nothing elsewhere."""
    screen = console(stderr=True)
    if quiet or not screen.is_terminal:
        yield None
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn

    columns = ("decoding {task.fields[folder]}", "{task.completed:,.0f} files", "{task.fields[speed]}")
    with Progress(SpinnerColumn(), *map(TextColumn, columns), console=screen, transient=True) as bars:
        task = bars.add_task("", folder=shown(str(folder)), total=None, speed="")

        def advance() -> None:
            done = bars.tasks[0]
            bars.update(task, advance=1, speed=f"{done.speed:,.0f} files/s" if done.speed else "")

        yield advance


def _show_scan(done: Scan) -> None:
    from rich.table import Table

    from aiseeme_models.images.rejection import RejectReason

    summary = done.summary()
    table = Table(title=f"{shown(str(done.folder))}: {len(done.rows):,} images accepted")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("what it means")
    table.add_row("accepted", f"{len(done.rows):,}", f"of {summary['groups']:,} patients, lesions or scans")
    for word, count in done.reasons.items():
        reason = RejectReason(word)
        kind = "quarantined" if reason.is_policy else "rejected"
        table.add_row(f"{kind}: {word}", f"{count:,}", reason.sentence)
    if done.saturated:
        table.add_row(
            "flagged: saturated", f"{done.saturated:,}", "Accepted, but over a quarter is as bright as can be."
        )
    if done.missing:
        table.add_row("missing", f"{len(done.missing):,}", "Files that labels.csv names and that are not there.")
    if done.vanished:
        table.add_row("vanished", f"{done.vanished:,}", "Files of an earlier scan that are no longer there.")
    screen = console()
    screen.print(table)
    speed = f": {done.images_decoded / done.seconds:,.0f} images/s" if done.decoded else ""
    work = f"{done.decoded:,} files with {done.images_decoded:,} images decoded in {done.seconds:.1f} s"
    screen.print(f"{work}{speed}", highlight=False)
    if len(done.reasons):
        screen.print(
            f"`aiseeme-site images {shown(str(done.folder))} --left-out` names them", highlight=False, soft_wrap=True
        )
    policy = [word for word in done.reasons if RejectReason(word).is_policy]
    if policy:
        screen.print(
            f'let quarantined images in, if you may, in site.toml: [intake] admit = ["{policy[0]}"]',
            highlight=False,
            markup=False,
        )


def main() -> None:
    """The console script."""
    run_app(app)
