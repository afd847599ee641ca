"""``aiseeme predict``: a classifier's calibrated probabilities of image files, and where it looks."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aiseeme_models.printable import LONGEST_LINE, printable
from federation_configs.command_line import console, shown
from server.cli_models import Key
from server.cli_options import Federation, Json, Runs

if TYPE_CHECKING:
    from rich.table import Table

    from aiseeme_models.images.rejection import RejectReason
    from server.predictions import LeftOut, Predictions


def register(app: typer.Typer) -> None:
    """Add the command to ``aiseeme``."""
    app.command()(predict)


def predict(
    model: Annotated[str, typer.Argument(help="A fine-tuned run's id or its beginning, or its folder.")],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="DICOM, NIfTI, PNG, JPEG, TIFF or npz patch sets.")
    ],
    overlay: Annotated[
        Path | None,
        typer.Option(help="Also write a PNG per image to this folder: where the model looks.", show_default=False),
    ] = None,
    cam: Annotated[str, typer.Option(help="How that is told: grad-cam or eigen-cam.")] = "grad-cam",
    of_class: Annotated[
        str | None,
        typer.Option("--class", help="Of which class (default: each image's most probable).", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace overlays that are there already.")] = False,
    admit: Annotated[
        list[str] | None,
        typer.Option(
            help="Predict images in quarantine for this reason too, such as secondary-capture; may be given again.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Torch device: auto, cpu, cuda, cuda:1, ...")] = "auto",
    key: Key = None,
    federation: Federation = None,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Predict image files with a fine-tuned model. Research use only; not for diagnosis."""
    from rich.progress import Progress

    from aiseeme_models.errors import InputError
    from aiseeme_models.training.device import choose_device
    from server.coordinator_key import pinned_key
    from server.model_reference import find_model
    from server.overlay_files import OverlayFiles
    from server.predicting import AskedOverlays, check_files
    from server.predicting import predict as play
    from server.predictions import RESEARCH_USE_ONLY
    from server.run_folder import runs_home

    if overlay is None and (of_class is not None or force):
        raise InputError("--class and --force are about overlays: say with --overlay FOLDER where they are written")
    check_files(files)
    admitted = _admitted(admit or [])
    overlays = None if overlay is None else AskedOverlays(OverlayFiles(overlay, files, force=force), cam, of_class)
    home = runs_home(runs, federation)
    found = find_model(model, home, pinned_key(key, federation, home))
    screen = console(stderr=as_json)
    with Progress(console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("predicting", total=len(files))
        made = play(
            found,
            files,
            overlays=overlays,
            admitted=admitted,
            device=choose_device(device),
            on_file=lambda: bar.advance(task),
        )
    if as_json:
        typer.echo(made.model_dump_json(indent=2))
    else:
        if made.images:
            screen.print(_table(made))
        for line in _lines(made):
            _line(line)
        if overlay is not None and made.images:
            _line(f"{len(made.images):,} overlays ({cam}) in {overlay}")
        _line(f"model {made.run}, sha256 {found.manifest.sha256}")
        _line(_calibration(found.manifest.temperature))
        _line(RESEARCH_USE_ONLY)
    if made.left_out:
        raise typer.Exit(1)


def _admitted(names: list[str]) -> frozenset[RejectReason]:
    from aiseeme_models.errors import InputError
    from aiseeme_models.images.rejection import POLICY_REASONS, RejectReason

    known = [reason.value for reason in POLICY_REASONS]
    for name in names:
        if name not in known:
            raise InputError(f"--admit {name}: no reason of quarantine: there are {', '.join(known)}")
    return frozenset(RejectReason(name) for name in names)


def _table(made: Predictions) -> Table:
    """A row for each image, its classes from the most probable on."""
    from rich.table import Table

    table = Table()
    for title in ("file", "frame", "most probable", "probabilities"):
        table.add_column(title, justify="right" if title == "frame" else "left", overflow="fold")
    for image in made.images:
        ranked = sorted(image.probabilities.items(), key=lambda one: -one[1])
        figures = ", ".join(f"{name} {value:.3f}" for name, value in ranked)
        table.add_row(shown(image.file), str(image.frame), shown(image.predicted), shown(figures, LONGEST_LINE))
    return table


def _lines(made: Predictions) -> list[str]:
    """What was left out, a line a file, and what speaks against the figures, a line a warning."""
    files: defaultdict[int, list[LeftOut]] = defaultdict(list)
    for one in made.left_out:
        files[one.position].append(one)
    warnings = Counter(warning for image in made.images for warning in image.warnings)
    total = len(made.images)
    return [_left_out(ones) for ones in files.values()] + [
        f"warning: {count:,} of {total:,} images: {warning}" for warning, count in warnings.items()
    ]


def _left_out(ones: list[LeftOut]) -> str:
    """Why nothing was predicted for a file, or for some of its images."""
    reasons = list(dict.fromkeys(reason for one in ones for reason in one.reasons))
    words = " ".join(reason.sentence for reason in reasons)
    if not ones[0].quarantined:
        return f"{ones[0].file}: not read: {words}"
    flags = " ".join(f"--admit {reason}" for reason in reasons)
    return f"{ones[0].file}: not predicted, {len(ones):,} of its images: {words} `{flags}` lets them in."


def _calibration(temperature: float | None) -> str:
    if temperature is None:
        return "not calibrated: no validation images told how sure the model may be"
    return f"calibrated: logits divided by {temperature:.3f}, as the validation images of its federation told"


def _line(text: str) -> None:
    typer.echo(printable(text, LONGEST_LINE))
