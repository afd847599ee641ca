"""``aiseeme``: the coordinator's and the researcher's command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aiseeme_models.errors import InputError
from aiseeme_models.printable import LONGEST_LINE, printable
from federation_configs.command_line import console, run_app, show_version, shown
from server import (
    cli_audit_local,
    cli_compare,
    cli_federation,
    cli_finetune,
    cli_models,
    cli_predict,
    cli_report,
    cli_serve,
)
from server.cli_audit import audit_app
from server.cli_curriculum import curriculum_app
from server.cli_options import Device, Federation, Images, Initial, Json, Partition, RunId, Runs, Sites
from server.cli_privacy import privacy_app
from server.cli_study import study_app

if TYPE_CHECKING:
    from server.registry import RunRow
    from server.results import Results

app = typer.Typer(
    name="aiseeme",
    help="Federated curriculum self-supervised pretraining on medical images that never leave the hospital.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def _group(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=show_version, help="Print it.")] = False,
) -> None:
    """Federated curriculum self-supervised pretraining on medical images that never leave the hospital."""


config_app = typer.Typer(no_args_is_help=True, help="Check and show federation configurations.")
app.add_typer(config_app, name="config")
app.add_typer(privacy_app, name="privacy")
app.add_typer(study_app, name="study")
app.add_typer(curriculum_app, name="curriculum")
app.add_typer(audit_app, name="audit")

ConfigReference = Annotated[str, typer.Argument(help="A TOML file or the name of a ready-made federation.")]


@app.command()
def simulate(
    config: ConfigReference,
    data: Images,
    sites: Sites = None,
    partition: Partition = None,
    engine: Annotated[
        str, typer.Option(help="local (this process) or ray (Flower's engine, for many GPUs).")
    ] = "local",
    device: Device = "auto",
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the configuration's seed.")] = None,
    initial: Initial = None,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Play a whole federation on this machine and probe its backbone."""
    from aiseeme_models.training.device import choose_device
    from federation_configs.loading import check_config, load_config
    from server.progress import Progress
    from server.run_folder import runs_home
    from server.simulation import simulate as play

    loaded = load_config(config)
    if seed is not None:
        loaded = check_config(loaded.model_dump(mode="json") | {"seed": seed}, where="--seed")
    progress = Progress(console(stderr=as_json))
    results = play(
        loaded,
        data,
        sites=sites,
        partition=partition,
        engine=engine,
        device=choose_device(device),
        home=runs_home(runs),
        progress=progress,
        initial=initial,
    )
    _show_results(results, runs_home(runs) / results.run, as_json)


@app.command()
def resume(run: RunId, runs: Runs = None, federation: Federation = None, as_json: Json = False) -> None:
    """Go on with a run that was interrupted, stopped or failed, to the very bits it would have had."""
    from server.progress import Progress
    from server.run_folder import FEDERATION_PLAN, existing_registry, runs_home

    folder = runs_home(runs, federation)
    whole = existing_registry(folder).get(run).id
    if not (folder / whole).is_dir():
        raise InputError(f"{folder / whole}: the run's folder is gone, so it cannot go on")
    if (folder / whole / FEDERATION_PLAN).exists():
        from server.federation_home import FederationHome
        from server.launching import resume as submit

        home = FederationHome.of_runs(folder)
        cli_serve.watch(home, submit(home, run), as_json)
        return
    from server.simulation import resume as play

    results = play(run, home=folder, progress=Progress(console(stderr=as_json)))
    _show_results(results, folder / results.run, as_json)


@app.command()
def runs(home: Runs = None, federation: Federation = None, as_json: Json = False) -> None:
    """List all runs, newest first."""
    from rich.table import Table

    from server.run_folder import existing_registry, runs_home

    folder = runs_home(home, federation)
    rows = existing_registry(folder).list() if (folder / "registry.sqlite").exists() else []
    if as_json:
        listed = [row.model_dump(mode="json") | {"status": _status(folder, row)} for row in rows]
        typer.echo(json.dumps(listed, indent=2))
        return
    if not rows:
        _line(f"no runs in {folder} yet; `aiseeme simulate` makes one")
        return
    table = Table()
    for title in ("run", "name", "status", "rounds", "sites", "started", "reason"):
        table.add_column(title)
    for row in rows:
        rounds = f"{row.rounds_done}/{row.rounds_total}"
        complete = f"{row.sites_complete}/{row.sites_total}" if row.status == "done" else str(row.sites_total)
        texts = (row.id, row.name, _status(folder, row), rounds, complete, row.created[:19], row.reason)
        table.add_row(*(shown(text) for text in texts))
    console().print(table)


@app.command()
def show(run: RunId, home: Runs = None, federation: Federation = None, as_json: Json = False) -> None:
    """Show a run's figures."""
    from server.results import FILE, Results
    from server.run_folder import existing_registry, runs_home

    folder = runs_home(home, federation)
    row = existing_registry(folder).get(run)
    if (folder / row.id / FILE).exists() and _status(folder, row) in ("done", "failed"):
        _show_results(Results.load(folder / row.id), folder / row.id, as_json)
        return
    status = row.model_dump(mode="json") | {"status": _status(folder, row)}
    if as_json:
        typer.echo(json.dumps(status, indent=2))
        return
    for key in ("id", "name", "status", "reason", "rounds_done", "rounds_total", "created", "folder"):
        _line(f"{key:13} {status[key]}")
    if status["status"] in ("interrupted", "stopped"):
        typer.echo(f"go on with: aiseeme resume {row.id}")


@app.command()
def evaluate(
    run: RunId,
    data: Annotated[Path, typer.Option("--data", help="A folder of images with a labels.csv (file, label).")],
    task: Annotated[
        str | None,
        typer.Option(help="Downstream task whose labels the folder has, if not the classifier's.", show_default=False),
    ] = None,
    home: Runs = None,
    federation: Federation = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Test a finished run on another labelled folder: its classifier, or its backbone beside random and floor."""
    from aiseeme_models.training.device import choose_device
    from server.evaluation import evaluate_run
    from server.progress import Progress
    from server.run_folder import runs_home
    from server.tables import elsewhere_table, probe_table

    screen = console(stderr=as_json)
    found = evaluate_run(
        run, data, task=task, home=runs_home(home, federation), device=choose_device(device), progress=Progress(screen)
    )
    if not isinstance(found, dict):
        if as_json:
            typer.echo(found.model_dump_json(indent=2))
            return
        screen.print(elsewhere_table(found.score, data.name))
        for sentence in found.sentences:
            _line(sentence)
    elif as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        screen.print(probe_table(found["probe"], found["baselines"]))


@app.command()
def doctor(home: Runs = None, federation: Federation = None, as_json: Json = False) -> None:
    """Say what this machine has for AISEEME and its federation, what is missing, and what ends soon."""
    from server.doctor import examine
    from server.federation_home import federation_home
    from server.run_folder import runs_home

    findings, served = examine(runs_home(home, federation)), federation_home(federation)
    if federation is not None or served.settings_file.exists():
        from server.doctor_federation import examine_federation

        findings += examine_federation(served)
    if as_json:
        typer.echo(json.dumps([finding.model_dump() for finding in findings], indent=2))
    else:
        for finding in findings:
            _line(f"{'ok  ' if finding.ok else 'BAD '} {finding.what:12} {finding.says}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


cli_audit_local.register(audit_app)
cli_compare.register(app)
cli_finetune.register(app)
cli_models.register(app)
cli_predict.register(app)
cli_report.register(app)
cli_federation.register(app)
cli_serve.register(app)


@config_app.command("check")
def check(config: ConfigReference) -> None:
    """Check a configuration without running it."""
    from federation_configs.loading import config_sha256, find_config, load_config

    loaded = load_config(config)
    stages = ", ".join(f"{stage.title} ({stage.rounds} rounds)" for stage in loaded.curriculum.stage)
    _line(f"{find_config(config)}: fine: {loaded.name}: {stages}; sha256 {config_sha256(loaded)}")


@config_app.command("show")
def show_config(config: ConfigReference, as_json: Json = False) -> None:
    """Print a configuration with its defaults written out."""
    from federation_configs.loading import load_config, to_toml

    loaded = load_config(config)
    typer.echo(json.dumps(loaded.model_dump(mode="json"), indent=2) if as_json else to_toml(loaded))


def _line(text: str) -> None:
    typer.echo(printable(text, LONGEST_LINE))


def _status(home: Path, row: RunRow) -> str:
    """A run that says ``running`` while no process holds its folder was interrupted."""
    from server.run_folder import is_held

    if row.status != "running":
        return row.status
    folder = home / row.id
    return "running" if folder.is_dir() and is_held(folder) else "interrupted"


def _show_results(results: Results, folder: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(results.model_dump_json(indent=2))
        return
    from server.tables import print_results

    print_results(console(), results, folder)


def main() -> None:
    """The console script."""
    run_app(app, interrupted="interrupted; `aiseeme runs` says which runs go on, and which can be resumed")
