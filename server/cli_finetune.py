"""``aiseeme finetune``: teach a pretrained backbone a downstream task, over the same hospitals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from federation_configs.command_line import console
from server.cli_options import Device, Federation, Json, RunId, Runs, Sites, check_simulated
from server.cli_serve import watch


def register(app: typer.Typer) -> None:
    """Add the command to ``aiseeme``."""
    app.command()(finetune)


def finetune(
    run: RunId,
    task: Annotated[
        str | None, typer.Option(help="Which [downstream.NAME] table, if there are several.", show_default=False)
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(help="Take the tables of this configuration (default: the run's).", show_default=False),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="Image folders, as in simulate (default: the run's).", show_default=False),
    ] = None,
    sites: Sites = None,
    partition: Annotated[
        str | None, typer.Option(help="How: iid | dirichlet:ALPHA | quantity:ALPHA | by:COLUMN.")
    ] = None,
    scratch: Annotated[
        bool, typer.Option("--scratch", help="Begin with an untrained backbone instead, to compare with.")
    ] = False,
    labels: Annotated[
        float | None, typer.Option(help="Share of the labelled patients, as 0.1 (default: the table's).")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the configuration's seed.")] = None,
    engine: Annotated[
        str, typer.Option(help="local (this process) or ray (Flower's engine, for many GPUs).")
    ] = "local",
    device: Device = "auto",
    runs: Runs = None,
    federation: Federation = None,
    as_json: Json = False,
) -> None:
    """Train a classifier on a finished run's backbone over its hospitals, and test it on each one's patients.

    A simulated run goes on here. For a launched one the federation must be served: its hospitals train and test.
    """
    from aiseeme_models.training.device import choose_device
    from server.finetuning import AskedFineTuning, is_played_by_hospitals, prepare
    from server.finetuning import finetune as play
    from server.progress import Progress
    from server.run_folder import runs_home
    from server.tables import print_results

    asked = AskedFineTuning(
        run=run,
        task=task,
        config=config,
        data=tuple(data or ()),
        sites=sites,
        partition=partition,
        scratch=scratch,
        labels=labels,
        seed=seed,
        engine=engine,
        device=choose_device(device),
    )
    home = runs_home(runs, federation)
    if is_played_by_hospitals(asked, home=home):
        from server.federation_home import FederationHome
        from server.launching import launch

        check_simulated(sites=sites, partition=partition, engine=engine != "local", device=device != "auto")
        loaded, folder = prepare(asked, home=home)
        served = FederationHome.of_runs(home)
        watch(served, launch(served, loaded, None if scratch else folder), as_json)
        return
    results = play(asked, home=home, progress=Progress(console(stderr=as_json)))
    if as_json:
        typer.echo(results.model_dump_json(indent=2))
    else:
        print_results(console(), results, home / results.run)
