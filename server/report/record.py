"""A run as its folder tells it: results.json, metrics.jsonl and config.toml, read and checked once."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from aiseeme_models.downstream.metrics import ProbeScore
from aiseeme_models.errors import InputError

_LONGEST_TEXT = 300


def _printable(text: str) -> str:
    """``text`` on one line, without control and direction-changing characters, cut to a readable length."""
    shown = "".join("\ufffd" if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co") else char for char in text)
    return shown if len(shown) <= _LONGEST_TEXT else shown[: _LONGEST_TEXT - 1] + "…"


# Site names, reasons and labels may come from a hospital's machine: nothing in them is trusted.
Text = Annotated[str, AfterValidator(_printable)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class StageResult(_Part):
    """How one stage of the curriculum went."""

    task: Text
    rounds_done: int
    rounds: int
    stopped_by: Text | None = None
    heldout_loss: float | None = None
    chance_loss: float | None = None
    near_chance: bool = False
    loss_first: float | None = None
    loss_last: float | None = None


class Missed(_Part):
    """A round that a site did not contribute to."""

    round: int
    code: Text
    reason: Text


class SiteResult(_Part):
    """What one hospital brought in."""

    name: Text
    images: int
    rejected: dict[Text, int] = Field(default_factory=dict)
    rounds_answered: int
    missed: list[Missed] = Field(default_factory=list)
    classes: dict[Text, int] | None = None


class ProbePair(_Part):
    """Both probes of one backbone."""

    linear: ProbeScore
    knn: ProbeScore


class Baselines(_Part):
    """What the probes must beat."""

    random: ProbePair
    floor: ProbeScore


class Seconds(_Part):
    """Wall time, in seconds."""

    total: float
    training: float
    overhead: float


class Results(_Part):
    """results.json."""

    status: Text
    reason: Text | None = None
    name: Text
    run: Text
    version: Text
    config_sha256: Text
    backbone_sha256: Text | None = None
    rounds_done: int
    rounds_total: int
    stages: list[StageResult]
    sites: list[SiteResult]
    probe: ProbePair | None = None
    baselines: Baselines | None = None
    probe_note: Text | None = None
    seconds: Seconds | None = None
    phantom: bool = False

    def complete(self, site: SiteResult) -> bool:
        """Whether ``site`` contributed to every round that was done."""
        return not site.missed and site.rounds_answered >= self.rounds_done

    @property
    def complete_sites(self) -> int:
        """How many sites contributed to every round that was done."""
        return sum(self.complete(site) for site in self.sites)


@dataclass
class StageCurves:
    """The losses of one stage by absolute round."""

    mean: dict[int, float] = field(default_factory=dict)
    heldout: dict[int, float] = field(default_factory=dict)
    sites: dict[str, dict[int, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRecord:
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


def read_run(folder: Path) -> RunRecord:
    """Read a run's folder.

    Raises:
        InputError: results.json is missing or not what a run writes.
    """
    results = read_results(folder)
    lines, unread = _metrics(folder / "metrics.jsonl")
    config = folder / "config.toml"
    return RunRecord(
        results=results,
        curves=_curves(lines),
        images_per_s=_speeds(lines),
        config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
        unread_lines=unread,
    )


def read_results(folder: Path) -> Results:
    """Read ``folder``/results.json.

    Raises:
        InputError: it is missing or not what a run writes.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise InputError(f"{folder}: no results.json; a run writes one when it ends")
    try:
        return Results.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"{path}: {where}: {first['msg']}") from None


def _metrics(path: Path) -> tuple[list[Mapping[str, Any]], int]:
    """The lines of metrics.jsonl that are JSON objects, and how many are not."""
    if not path.is_file():
        return [], 0
    lines: list[Mapping[str, Any]] = []
    unread = 0
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            line = None
        if isinstance(line, dict):
            lines.append(line)
        else:
            unread += 1
    return lines, unread


def _curves(lines: list[Mapping[str, Any]]) -> list[StageCurves]:
    """Losses by stage; a round that was done again after a resume counts with its last line."""
    by_stage: dict[Any, StageCurves] = {}
    for line in lines:
        round_number = line.get("round")
        if not isinstance(round_number, int):
            continue
        curves = by_stage.setdefault(line.get("stage"), StageCurves())
        loss = _number(line.get("loss"))
        if "site" in line and loss is not None:
            curves.sites.setdefault(_printable(str(line["site"])), {})[round_number] = loss
        elif line.get("event") == "round":
            heldout = _number(line.get("heldout_loss"))
            if loss is not None:
                curves.mean[round_number] = loss
            if heldout is not None:
                curves.heldout[round_number] = heldout
    return list(by_stage.values())


def _speeds(lines: list[Mapping[str, Any]]) -> dict[str, float]:
    """Images per second of each site: the mean of what its rounds reached, weighted by their seconds."""
    images: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for line in lines:
        speed, spent = _number(line.get("images_per_s")), _number(line.get("seconds"))
        if "site" in line and speed is not None and spent is not None and spent > 0:
            name = _printable(str(line["site"]))
            images[name] = images.get(name, 0.0) + speed * spent
            seconds[name] = seconds.get(name, 0.0) + spent
    return {name: images[name] / seconds[name] for name in images}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
