"""A run as its folder tells it: results.json, metrics.jsonl and config.toml, read and checked once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.metrics_log import FILE, read_lines
from server.results import Results, printable


@dataclass
class StageCurves:
    """The losses of one stage by absolute round."""

    mean: dict[int, float] = field(default_factory=dict)
    heldout: dict[int, float] = field(default_factory=dict)
    sites: dict[str, dict[int, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class RunStory:
    """Everything that a report is made of.

    Attributes:
        results: the final figures.
        curves: one per stage that was started, in order.
        images_per_s: training speed by site, over all rounds.
        config: text of config.toml, empty where there is none.
        unread_lines: lines of metrics.jsonl that are no JSON object (a run that was cut off leaves one).
    """

    results: Results
    curves: list[StageCurves]
    images_per_s: dict[str, float]
    config: str
    unread_lines: int


def read_run(folder: Path) -> RunStory:
    """Read a run's folder.

    Raises:
        InputError: results.json is missing or not what a run writes.
    """
    results = Results.load(folder)
    lines, unread = read_lines(folder / FILE)
    config = folder / "config.toml"
    return RunStory(
        results=results,
        curves=_curves(lines),
        images_per_s=_speeds(lines),
        config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
        unread_lines=unread,
    )


def _curves(lines: Sequence[Mapping[str, Any]]) -> list[StageCurves]:
    """Losses by stage; a round that was done again after a resume counts with its last line."""
    by_stage: dict[Any, StageCurves] = {}
    for line in lines:
        round_number = line.get("round")
        if not isinstance(round_number, int):
            continue
        curves = by_stage.setdefault(line.get("stage"), StageCurves())
        loss = _number(line.get("loss"))
        if "site" in line and loss is not None:
            curves.sites.setdefault(printable(str(line["site"])), {})[round_number] = loss
        elif line.get("event") == "round":
            heldout = _number(line.get("heldout_loss"))
            if loss is not None:
                curves.mean[round_number] = loss
            if heldout is not None:
                curves.heldout[round_number] = heldout
    return list(by_stage.values())


def _speeds(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Images per second of each site: the mean of what its rounds reached, weighted by their seconds."""
    images: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for line in lines:
        speed, spent = _number(line.get("images_per_s")), _number(line.get("seconds"))
        if "site" in line and speed is not None and spent is not None and spent > 0:
            name = printable(str(line["site"]))
            images[name] = images.get(name, 0.0) + speed * spent
            seconds[name] = seconds.get(name, 0.0) + spent
    return {name: images[name] / seconds[name] for name in images}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
