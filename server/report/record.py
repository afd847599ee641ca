"""A run as its folder tells it: results, curves, configuration and audits, read and checked once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiseeme_models.errors import InputError
from server.metrics_log import FILE, read_lines
from server.model_manifest import MANIFEST_FILE, MODEL_FOLDER, ModelManifest, read_model_manifest
from server.report.audits import Audits, read_audits
from server.results import Results, printable
from server.run_folder import CONFIG
from server.signed_files import MODEL, read_signature


@dataclass
class StageCurves:
    """The losses of one stage by absolute round."""

    mean: dict[int, float] = field(default_factory=dict)
    heldout: dict[int, float] = field(default_factory=dict)
    sites: dict[str, dict[int, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """Where the final model comes from.

    Attributes:
        manifest: what it says of itself.
        key: the public key that signed it; None: nobody did.
        doubt: what is wrong with the signature; None: nothing is, or there is none.
    """

    manifest: ModelManifest
    key: str | None
    doubt: str | None


@dataclass(frozen=True)
class RunStory:
    """Everything that a report is made of.

    Attributes:
        results: the final figures.
        curves: one per stage that was started, in order.
        counted: the rounds in which each site counted.
        config: text of config.toml, empty where there is none.
        unread_lines: lines of metrics.jsonl that are no JSON object (a run that was cut off leaves one).
        origin: of the model, where there is one.
        audits: of the model.
    """

    results: Results
    curves: list[StageCurves]
    counted: dict[str, set[int]]
    config: str
    unread_lines: int
    origin: Origin | None
    audits: Audits


def read_run(folder: Path) -> RunStory:
    """Read a run's folder.

    Raises:
        InputError: results.json is missing or not what a run writes, or an audit's file is none.
    """
    results = Results.load(folder)
    lines, unread = read_lines(folder / FILE)
    config = folder / CONFIG
    return RunStory(
        results=results,
        curves=_curves(lines),
        counted=_counted(lines),
        config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
        unread_lines=unread,
        origin=_origin(folder / MODEL_FOLDER),
        audits=read_audits(folder),
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


def _counted(lines: Sequence[Mapping[str, Any]]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for line in lines:
        number = line.get("round")
        if "site" in line and "missed" not in line and isinstance(number, int):
            found.setdefault(printable(str(line["site"])), set()).add(number)
    return found


def _origin(folder: Path) -> Origin | None:
    if not (folder / MANIFEST_FILE).is_file():
        return None
    manifest, raw = read_model_manifest(folder)
    try:
        signature = read_signature(folder / MANIFEST_FILE)
    except InputError as error:
        return Origin(manifest, None, str(error))
    if signature is None:
        return Origin(manifest, None, None)
    doubt = None if signature.vouches(raw, MODEL) else "the signature is not of this model's manifest"
    return Origin(manifest, signature.key, doubt)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
