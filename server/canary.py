"""A short rehearsal before a long run: one round of every stage, a few steps each, with every site."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from federation_configs.loading import check_config
from federation_configs.schema import FederationConfig
from server.metrics_log import FILE, read_lines

_STEPS = 3
_DEADLINE_S = 1800.0


@dataclass(frozen=True)
class Rehearsal:
    """How one site did in one stage.

    Attributes:
        stage: its index.
        task: the pretext task.
        site: the site's name.
        problem: why it would not count; None if it did.
        round_s: seconds that a whole round of the stage would take it, as far as a few steps can tell.
    """

    stage: int
    task: str
    site: str
    problem: str | None
    round_s: float | None


def rehearsal_config(config: FederationConfig) -> FederationConfig:
    """The rehearsal of ``config``: every stage once, a few steps each, with whoever answers, so that all are tried."""
    data = config.model_dump(mode="json")
    for stage in data["curriculum"]["stage"]:
        stage.update(rounds=1, stop="rounds", max_steps=min(_STEPS, stage.get("max_steps") or _STEPS))
        stage.update(tune=None)  # the largest batch that may be found, at the optimiser's own rate
    data["name"] = f"canary-{config.name}"[:48].rstrip("-")
    data["federation"] |= {
        "min_sites": 1,
        "required_sites": [],
        "round_retries": 0,
        "round_deadline_s": min(config.federation.round_deadline_s, _DEADLINE_S),
    }
    return check_config(data, where="--canary")


def rehearsals(config: FederationConfig, folder: Path, sites: list[str]) -> list[Rehearsal]:
    """What a rehearsal's metrics say of every stage and site.

    Args:
        config: of the run to come, for the length of its rounds.
        folder: of the rehearsal.
        sites: the invited ones.
    """
    lines = {(line["stage"], line["site"]): line for line in read_lines(folder / FILE)[0] if "site" in line}
    found = []
    for index, stage in enumerate(config.curriculum.stage):
        for site in sites:
            line = lines.get((index, site))
            problem = "it was not asked: the rehearsal had ended" if line is None else line.get("reason")
            round_s = None
            if line is not None and problem is None:
                round_s = line["seconds"] / max(line["steps"], 1) * stage.steps(line["images"])
            found.append(Rehearsal(index, stage.title, site, problem, round_s))
    return found
