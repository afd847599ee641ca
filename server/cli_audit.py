"""``aiseeme audit``: what a model ties together, where it looks, and what it gives away."""

from __future__ import annotations

import typer

audit_app = typer.Typer(
    no_args_is_help=True, help="Audit a model: what it ties together, where it looks, what it gives away."
)


@audit_app.callback()
def _group() -> None:
    """Audit a model: what it ties together, where it looks, what it gives away."""
