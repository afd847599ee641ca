"""``aiseeme curriculum``: in which order the tasks of a federation are best played."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from aiseeme_models.errors import InputError
from aiseeme_models.printable import LONGEST_LINE, printable
from federation_configs.command_line import console
from server.cli_options import Device, Images, Json, Partition, Runs, Sites

curriculum_app = typer.Typer(no_args_is_help=True, help="Curricula: in which order tasks are played.")


@curriculum_app.callback()
def _group() -> None:
    """Curricula: in which order tasks are played."""


@curriculum_app.command()
def order(
    config: Annotated[str, typer.Argument(help="A TOML file or the name of a ready-made federation.")],
    data: Images,
    policy: Annotated[
        str, typer.Option(help="fixed, ascending, descending, family, greedy or representation.")
    ] = "greedy",
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the policy, as min_gain=0.01.", show_default=False)
    ] = None,
    sites: Sites = None,
    partition: Partition = None,
    trial_rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Rounds of a stage in a trial (default: a quarter of its own).", show_default=False),
    ] = None,
    probe: Annotated[str, typer.Option(help="Which probe the sites judge by: knn or linear.")] = "knn",
    out: Annotated[
        Path | None, typer.Option(help="Write the configuration with the order that was found here.")
    ] = None,
    engine: Annotated[str, typer.Option(help="local (this process) or ray.")] = "local",
    device: Device = "auto",
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Try orders of a federation's stages at simulated hospitals, which send scores only, and write the one found."""
    from aiseeme_models.atomic_files import write_atomically
    from aiseeme_models.training.device import choose_device
    from federation_configs.loading import load_config, to_toml
    from server.ordering.finding import find_order
    from server.progress import Progress
    from server.run_folder import runs_home

    if out is not None and out.exists():
        raise InputError(f"--out {out}: is there already; name a new file")
    screen = console(stderr=as_json)
    found = find_order(
        load_config(config),
        policy,
        _options(option or []),
        data,
        sites=sites,
        partition=partition,
        trial_rounds=trial_rounds,
        probe=_probe(probe),
        engine=engine,
        device=choose_device(device),
        home=runs_home(runs, None),
        progress=Progress(screen),
    )
    report = [f"policy: {policy}", *found.why, f"order: {', '.join(found.order)}"]
    if found.left_out:
        report.append(f"left out: {', '.join(found.left_out)}")
    if found.rounds:
        report.append(f"the trials took {found.rounds} federated rounds")
    if out is not None:
        why = "".join(f"# {line}\n" for line in report)
        write_atomically(out, (why + to_toml(found.config)).encode())
    if as_json:
        answer = {
            "policy": policy,
            "order": found.order,
            "left_out": found.left_out,
            "why": found.why,
            "scores": found.scores,
            "rounds": found.rounds,
        }
        typer.echo(json.dumps(answer, indent=2))
        return
    for line in report:
        typer.echo(printable(line, LONGEST_LINE))
    if out is not None:
        typer.echo(f"written to {out}")


_PROBES: dict[str, Literal["knn", "linear"]] = {"knn": "knn", "linear": "linear"}


def _probe(name: str) -> Literal["knn", "linear"]:
    if name not in _PROBES:
        raise InputError(f"--probe {name}: there are knn and linear")
    return _PROBES[name]


def _options(given: list[str]) -> dict[str, Any]:
    """``min_gain=0.01`` as TOML reads it."""
    options: dict[str, Any] = {}
    for text in given:
        try:
            options |= tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            raise InputError(f"--option {text}: write it as name=value, for instance min_gain=0.01") from None
    return options
