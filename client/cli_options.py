"""Options that several commands of ``aiseeme-site`` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Home = Annotated[
    Path | None,
    typer.Option(
        "--home",
        help="The site's folder: key, site.toml, catalogue, cache (default: $AISEEME_SITE, else ./site).",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON instead.")]
