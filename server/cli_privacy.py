"""``aiseeme privacy``: how much noise a federation needs."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

import typer

from aiseeme_models.errors import InputError
from federation_configs.command_line import console, shown
from server.cli_options import Json

_MOST_PATIENTS = 2**31

privacy_app = typer.Typer(
    no_args_is_help=True, help="Differential privacy: what a federation costs, and how much noise it needs."
)


@privacy_app.callback()
def _group() -> None:
    """Differential privacy: what a federation costs, and how much noise it needs."""


@privacy_app.command()
def plan(
    config: Annotated[str, typer.Argument(help="A TOML file or the name of a ready-made federation.")],
    sites: Annotated[
        str, typer.Option(help="Training patients of each site, as the sites told them: north=1200,south=340.")
    ],
    epsilon: Annotated[float, typer.Option(min=0.01, max=100, help="What the run may cost a patient.")] = 8.0,
    delta: Annotated[
        float | None,
        typer.Option(min=1e-12, max=0.01, help="At which delta; default: that of [privacy].", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a configuration costs the patients of each site, and which noise_multiplier keeps it within epsilon."""
    from aiseeme_models.privacy.accounting import epsilon as cost_of
    from aiseeme_models.privacy.accounting import noise_for
    from federation_configs.loading import load_config
    from federation_configs.privacy_plan import planned

    if not math.isfinite(epsilon) or (delta is not None and not math.isfinite(delta)):
        raise InputError("--epsilon and --delta: a finite number is needed")
    loaded = load_config(config)
    if loaded.privacy is None:
        raise InputError(f"{config}: it has no [privacy] table; begin with noise_multiplier = 1.0 there")
    at = loaded.privacy.delta if delta is None else delta
    rows: list[dict[str, Any]] = []
    for name, patients in _counts(sites).items():
        try:
            spends = [spend for _, spend in planned(loaded, patients)]
        except InputError as error:
            raise InputError(f"--sites: {name}: {error}") from None
        rows.append(
            {
                "site": name,
                "patients": patients,
                "epsilon": cost_of(spends, at).value,
                "noise_multiplier_needed": noise_for(epsilon, at, [(one.sample_rate, one.steps) for one in spends]),
            }
        )
    needed = max(row["noise_multiplier_needed"] for row in rows)
    if as_json:
        answer = {"noise_multiplier": loaded.privacy.noise_multiplier, "delta": at, "target": epsilon, "sites": rows}
        typer.echo(json.dumps(answer | {"noise_multiplier_needed": needed}, indent=2))
        return
    from rich.table import Table

    table = Table(title=shown(f"{loaded.name}: noise_multiplier {loaded.privacy.noise_multiplier:g}, delta {at:g}"))
    for title in ("site", "patients", "epsilon as it is", f"noise for epsilon {epsilon:g}"):
        table.add_column(title, justify="left" if title == "site" else "right")
    for row in rows:
        table.add_row(
            shown(row["site"]), f"{row['patients']:,}", f"{row['epsilon']:.2f}", f"{row['noise_multiplier_needed']:g}"
        )
    console().print(table)
    typer.echo(f"noise_multiplier = {needed:g} keeps every site within epsilon {epsilon:g} at delta {at:g}")
    typer.echo("a round that is asked again after a failure is charged again: leave some room for that")


def _counts(text: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for part in text.split(","):
        name, given, number = part.strip().partition("=")
        if not given or not name.strip() or not number.strip().isdecimal() or name.strip() in counts:
            raise InputError(f"--sites {text}: write each site once with its patients, as north=1200,south=340")
        counts[name.strip()] = min(int(number[:12]), _MOST_PATIENTS + 1)
        if counts[name.strip()] > _MOST_PATIENTS:
            raise InputError(f"--sites {text}: {name.strip()} has more than {_MOST_PATIENTS} patients")
    return counts
