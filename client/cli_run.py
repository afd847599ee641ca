"""``aiseeme-site check``, ``run`` and ``status``: taking part in a federation."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from aiseeme_models.printable import LONGEST_LINE, printable
from client.cli_options import Home, Json


def register(app: typer.Typer) -> None:
    """Add the commands to ``aiseeme-site``."""
    app.command()(check)
    app.command()(run)
    app.command()(status)


def check(home: Home = None, as_json: Json = False) -> None:
    """Prove the whole way from this machine to the federation before a run; exit code 1 where something is wrong."""
    from client.check import look
    from client.site_home import site_home

    findings = []
    for finding in look(site_home(home)):
        findings.append(finding)
        if not as_json:
            typer.echo(printable(f"{'ok  ' if finding.ok else 'BAD '} {finding.what:12} {finding.says}", LONGEST_LINE))
    if as_json:
        typer.echo(json.dumps([finding.model_dump() for finding in findings], indent=2))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def run(
    home: Home = None,
    gpu: Annotated[
        bool | None, typer.Option("--gpu/--cpu", help="Train on the GPU, or not; default: [machine] device.")
    ] = None,
) -> None:
    """Take part in the federation until Ctrl-C or SIGTERM."""
    from client.service import run_site
    from client.site_home import site_home

    place = site_home(home)
    chosen = None if gpu is None else "cuda" if gpu else "cpu"
    if (chosen or place.config.machine.device).startswith("cuda"):
        from aiseeme_models.training.device import choose_device

        # Says now, and once, what the runner would say again and again.
        choose_device(chosen or place.config.machine.device)
    run_site(place, chosen)


def status(home: Home = None, as_json: Json = False) -> None:
    """Say whether this site runs and is connected; exit code 1 where not. A container's health check."""
    from client.node_files import NodeFiles
    from client.service import is_connected
    from client.site_home import site_home

    folder = site_home(home).folder
    connected, runs = is_connected(folder), NodeFiles(folder).is_held()
    if as_json:
        typer.echo(json.dumps({"running": runs, "connected": connected}))
    else:
        typer.echo("connected" if connected else "running, but not connected" if runs else "not running")
    if not connected:
        raise typer.Exit(1)
