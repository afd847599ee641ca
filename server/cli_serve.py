"""``aiseeme serve``, ``launch``, ``stop``: a federation of real sites."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from aiseeme_models.printable import LONGEST_LINE, printable
from federation_configs.command_line import console, shown
from server.cli_options import Federation, Initial, Json, RunId

if TYPE_CHECKING:
    from federation_configs.schema import FederationConfig
    from server.federation_home import FederationHome
    from server.registry import RunRow


def register(app: typer.Typer) -> None:
    """Add the commands to ``aiseeme``."""
    app.command()(serve)
    app.command()(launch)
    app.command()(stop)


def serve(federation: Federation = None) -> None:
    """Serve the federation: SuperLink, gateway, and the launched runs, until Ctrl-C."""
    from server.federation_home import federation_home
    from server.service import serve as keep

    keep(federation_home(federation))


def launch(
    config: Annotated[str, typer.Argument(help="A TOML file or the name of a ready-made federation.")],
    federation: Federation = None,
    sites: Annotated[
        str | None, typer.Option(help="Only these sites, with commas between; default: the configuration's, else all.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the configuration's seed.")] = None,
    canary: Annotated[
        bool, typer.Option("--canary", help="Rehearse first: a short round of every stage with every site.")
    ] = False,
    only_canary: Annotated[bool, typer.Option("--only-canary", help="Rehearse, and launch nothing.")] = False,
    initial: Initial = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the end.")] = False,
    as_json: Json = False,
) -> None:
    """Launch a run and show how it goes; exit code 0 when it is done, 1 when it failed."""
    from federation_configs.loading import check_config, load_config
    from server.federation_home import federation_home
    from server.launching import launch as submit

    loaded, home = load_config(config), federation_home(federation)
    data = loaded.model_dump(mode="json")
    if seed is not None:
        data["seed"] = seed
    if sites is not None:
        data["federation"]["sites"] = [name.strip() for name in sites.split(",")]
    loaded = check_config(data, where="launch")
    if canary or only_canary:
        _rehearse(home, loaded, quiet=as_json)
        if only_canary:
            return
    run = submit(home, loaded, initial)
    if detach:
        typer.echo(json.dumps({"run": run}) if as_json else run)
        return
    watch(home, run, as_json)


def stop(
    run: RunId,
    federation: Federation = None,
) -> None:
    """Stop a launched run; its sites stop computing. `aiseeme resume` goes on with it."""
    from server.federation_home import federation_home
    from server.launching import stop as end

    row = end(federation_home(federation), run)
    typer.echo(printable(f"{row.id}: {row.status}", LONGEST_LINE))


def watch(home: FederationHome, run: str, as_json: bool) -> None:
    """Show a run until it ends, and end this command as the run did."""
    from server.results import FILE, Results
    from server.tables import print_results

    row = _follow(home, run, quiet=as_json)
    if as_json:
        folder = home.runs / run
        there = (folder / FILE).exists()
        typer.echo(Results.load(folder).model_dump_json(indent=2) if there else row.model_dump_json(indent=2))
    elif row.status == "done":
        print_results(console(), Results.load(home.runs / run), home.runs / run)
    else:
        typer.echo(printable(f"{row.status}: {row.reason}", LONGEST_LINE), err=True)
    if row.status != "done":
        raise typer.Exit(1)


def _follow(home: FederationHome, run: str, *, quiet: bool) -> RunRow:
    from server.launching import follow

    screen = console(stderr=quiet)

    def show(line: str) -> None:
        screen.print(shown(line, LONGEST_LINE), highlight=False, soft_wrap=True)

    return follow(home, run, show)


def _rehearse(home: FederationHome, config: FederationConfig, *, quiet: bool) -> None:
    """Play the canary; ends the command where a site would not count."""
    from rich.table import Table

    from server.canary import rehearsal_config, rehearsals
    from server.launching import launch as submit
    from server.run_folder import FederationPlan

    screen = console(stderr=quiet)
    run = submit(home, rehearsal_config(config))
    _follow(home, run, quiet=quiet)
    folder = home.runs / run
    found = rehearsals(config, folder, list(FederationPlan.load(folder).sites))
    table = Table(title="the rehearsal")
    for column in ("stage", "task", "site", "a whole round takes about", "problem"):
        table.add_column(column)
    for one in found:
        takes = "" if one.round_s is None else f"{one.round_s:,.0f} s"
        table.add_row(str(one.stage + 1), one.task, shown(one.site), takes, shown(one.problem or "", LONGEST_LINE))
    screen.print(table)
    problems = [one for one in found if one.problem is not None]
    if problems:
        typer.echo("some sites would not count: nothing was launched", err=True)
        raise typer.Exit(1)
    slowest = {one.stage: 0.0 for one in found}
    for one in found:
        slowest[one.stage] = max(slowest[one.stage], one.round_s or 0.0)
    hours = sum(slowest[index] * stage.rounds for index, stage in enumerate(config.curriculum.stage)) / 3600
    takes = f"training would take about {hours:.1f} h at the slowest sites"
    typer.echo(f"every site answered in every stage; {takes}", err=quiet)
    late = config.federation.round_deadline_s
    if any(seconds > 0.8 * late for seconds in slowest.values()):
        typer.echo(f"a round comes close to round_deadline_s = {late:.0f}: raise it", err=True)
        raise typer.Exit(1)
