"""``aiseeme study``: the project's experiments, one command each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from aiseeme_models.errors import InputError, RunFailed
from federation_configs.command_line import console
from server.cli_options import Device, Images, Json, Partition, Runs, Sites

if TYPE_CHECKING:
    from collections.abc import Callable

study_app = typer.Typer(
    no_args_is_help=True, help="Experiments at equal compute over several seeds: one table and one plot each."
)

Config = Annotated[str, typer.Argument(help="A TOML file or the name of a ready-made federation.")]
Engine = Annotated[str, typer.Option(help="local (this process) or ray (Flower's engine, for many GPUs).")]
Seeds = Annotated[int, typer.Option(min=1, help="How many; the first is the configuration's.")]
Finetune = Annotated[str, typer.Option(help="Fine-tunings as fraction:epochs of the labelled patients, or none.")]
Folds = Annotated[
    int,
    typer.Option(
        min=0, help="Probe in so many folds of patients too, over every labelled image (0: on the test split alone)."
    ),
]
Name = Annotated[
    str | None, typer.Option(help="The study's folder below RUNS/studies (default: of study and configuration).")
]
Initial = Annotated[
    Path | None,
    typer.Option(
        help="Given weights to compare with too: a run's folder, or a safetensors file of torchvision's names."
    ),
]

_FINETUNE = "0.1:10,1:3"


class Where(NamedTuple):
    """What is trained, and on which images."""

    config: str
    data: list[Path]
    sites: int | None
    partition: str | None


class Measured(NamedTuple):
    """How often, and what is measured."""

    seeds: int
    finetune: str
    folds: int


class Means(NamedTuple):
    """What computes, and where what comes out of it goes."""

    engine: str
    device: str
    name: str | None
    runs: Path | None
    as_json: bool


@study_app.callback()
def _group() -> None:
    """Experiments at equal compute over several seeds: one table and one plot each."""


@study_app.command()
def order(
    config: Config,
    data: Images,
    sites: Sites = None,
    partition: Partition = None,
    seeds: Seeds = 3,
    finetune: Finetune = _FINETUNE,
    folds: Folds = 0,
    drawn: Annotated[int, typer.Option(min=0, max=20, help="Orders drawn where there are over three stages.")] = 4,
    initial: Initial = None,
    engine: Engine = "local",
    device: Device = "auto",
    name: Name = None,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Every order of the curriculum's stages, its reverse, each task alone, and no pretraining."""
    options = {"drawn": drawn, "initial": initial is not None}
    _play(
        "order",
        options,
        Where(config, data, sites, partition),
        Measured(seeds, finetune, folds),
        Means(engine, device, name, runs, as_json),
        initial,
    )


@study_app.command()
def tasks(
    config: Config,
    data: Images,
    sites: Sites = None,
    partition: Partition = None,
    seeds: Seeds = 3,
    finetune: Finetune = _FINETUNE,
    folds: Folds = 0,
    initial: Initial = None,
    engine: Engine = "local",
    device: Device = "auto",
    name: Name = None,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Each task alone, the curriculum; the federation, each site alone, and all images in one place."""
    options = {"initial": initial is not None}
    _play(
        "tasks",
        options,
        Where(config, data, sites, partition),
        Measured(seeds, finetune, folds),
        Means(engine, device, name, runs, as_json),
        initial,
    )


@study_app.command()
def volume(
    config: Config,
    data: Images,
    sites: Sites = None,
    partition: Partition = None,
    seeds: Seeds = 3,
    finetune: Finetune = _FINETUNE,
    folds: Folds = 0,
    fractions: Annotated[str, typer.Option(help="Shares of each site's training patients.")] = "0.1,0.25,0.5,1",
    engine: Engine = "local",
    device: Device = "auto",
    name: Name = None,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Pretraining on shares of the patients, in equally many steps."""
    options = {"fractions": _numbers(fractions, "--fractions", float)}
    _play(
        "volume",
        options,
        Where(config, data, sites, partition),
        Measured(seeds, finetune, folds),
        Means(engine, device, name, runs, as_json),
    )


@study_app.command()
def hyperparameters(
    config: Config,
    data: Images,
    lr: Annotated[str, typer.Option(help="Learning rates, as 1e-4,1e-3 (default: the configuration's).")] = "",
    batch: Annotated[str, typer.Option(help="Batch sizes, as 32,64 (default: the configuration's).")] = "",
    stage: Annotated[int, typer.Option(min=0, help="Number of the stage, from 1 (default: the last).")] = 0,
    sites: Sites = None,
    partition: Partition = None,
    seeds: Seeds = 3,
    finetune: Finetune = "none",
    folds: Folds = 0,
    engine: Engine = "local",
    device: Device = "auto",
    name: Name = None,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """A grid over learning rate and batch size of one stage, scored on validation patients, not on test patients."""
    options = {"lr": _numbers(lr, "--lr", float), "batch": _numbers(batch, "--batch", int), "stage": stage}
    _play(
        "hyperparameters",
        options,
        Where(config, data, sites, partition),
        Measured(seeds, finetune, folds),
        Means(engine, device, name, runs, as_json),
    )


def _numbers(text: str, option: str, kind: Callable[[str], Any]) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise InputError(f"{option} {text}: write numbers with commas between them") from None


def _play(
    kind: str, options: dict[str, Any], where: Where, measured: Measured, means: Means, initial: Path | None = None
) -> None:
    from aiseeme_models.options import parse_options
    from aiseeme_models.training.device import choose_device
    from federation_configs.loading import load_config
    from server.run_folder import runs_home
    from server.study import study_kinds
    from server.study.measures import parse_finetune, parse_folds
    from server.study.playing import Asked, play_study, study_folder
    from server.study.progress import StudyProgress
    from server.study.table import print_table

    loaded = load_config(where.config)
    asked = Asked(
        kind=kind,
        options=parse_options(study_kinds[kind], options, where="options", owner=f"study {kind}"),
        data=tuple(where.data),
        sites=where.sites,
        partition=where.partition,
        seeds=measured.seeds,
        finetune=parse_finetune(measured.finetune),
        folds=parse_folds(measured.folds),
        initial=initial,
        engine=means.engine,
        device=choose_device(means.device),
        name=means.name,
    )
    home = runs_home(means.runs)
    progress = StudyProgress(console(stderr=means.as_json))
    try:
        table = play_study(loaded, asked, home=home, progress=progress)
    finally:
        progress.stop()
    if means.as_json:
        typer.echo(table.model_dump_json(indent=2))
    else:
        print_table(console(), table, study_folder(home, loaded, asked))
    if table.failed:
        raise RunFailed(f"{len(table.failed)} cells could not be played; the same command tries them again")
