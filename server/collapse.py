"""What a round's lines tell of collapse, and what may help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def collapse_in(lines: Sequence[dict[str, Any]], task: str, stage: int) -> str | None:
    """A sentence where most of the sites that counted have seen collapse; None where not.

    Args:
        lines: of a round, as `server.round_lines` makes them.
        task: the stage's.
        stage: its index.
    """
    sites = [line["site"] for line in lines if line.get("collapsed")]
    answered = lines[-1]["answered"]
    if 2 * len(sites) <= answered:
        return None
    return (
        f"round {lines[-1]['round']}: stage {stage + 1}, {task}, has collapsed at {len(sites)} of {answered} sites"
        f" ({', '.join(sites)}): the backbone gives nearly the same features for all images"
    )


def ways_out(norm: str) -> str:
    """What a person may try; ``norm`` is the one that is in use."""
    others = " or ".join(name for name in ("group-ws", "batch") if name != norm)
    return (
        f"Try, in a new run, a lower lr or a longer warmup, model.norm = {others}, a larger batch_size, or another"
        " task; on_collapse = 'note' in the stage goes on all the same"
    )
