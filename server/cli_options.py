"""Options that several commands of ``aiseeme`` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aiseeme_models.errors import InputError

Runs = Annotated[
    Path | None,
    typer.Option(
        "--runs",
        help="Folder of all runs (default: $AISEEME_RUNS, else that of $AISEEME_HOME, else ./runs).",
        show_default=False,
    ),
]
Federation = Annotated[
    Path | None,
    typer.Option(
        "--federation",
        help="A federation's home, with its keys, sites and runs (default: $AISEEME_HOME, else ./federation).",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON instead.")]
RunId = Annotated[str, typer.Argument(help="A run's id, or its beginning if that is unique.")]
Initial = Annotated[
    Path | None,
    typer.Option(help="Begin with the backbone of this run's or model's folder, or safetensors file."),
]
Images = Annotated[
    list[Path], typer.Option("--data", help="An image folder; give it once per hospital, or once with --sites.")
]
OwnImages = Annotated[
    list[Path] | None,
    typer.Option(
        "--data",
        help="An image folder; once per hospital, or once with --sites (default: the run's own).",
        show_default=False,
    ),
]
Sites = Annotated[int | None, typer.Option(min=1, help="Deal one folder to this many hospitals.")]
Partition = Annotated[
    str | None, typer.Option(help="How: iid | dirichlet:ALPHA | quantity:ALPHA | by:COLUMN (default iid).")
]
Device = Annotated[str, typer.Option(help="Torch device of the sites: auto, cpu, cuda, cuda:1, ...")]


def check_simulated(**given: object) -> None:
    """Refuse options of simulated hospitals where the real ones work.

    Args:
        given: what a person gave, by the option's name; false where nothing was given.

    Raises:
        InputError: with the first one.
    """
    for option, value in given.items():
        if value:
            raise InputError(
                f"--{option}: the run's own hospitals work, each on its machine; give --data to simulate some"
            )
