"""``aiseeme curriculum order``: a policy, trials at simulated hospitals, and the configuration that comes of them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from aiseeme_models.curriculum.ordering import Candidate, orderings
from aiseeme_models.curriculum.ordering.base import percent
from aiseeme_models.curriculum.stage_tasks import stage_tasks
from aiseeme_models.errors import InputError
from aiseeme_models.options import parse_options
from federation_configs.loading import check_config, config_sha256
from server.observer import Silent
from server.ordering.site_trials import SiteTrials
from server.replies import Refused
from server.run_folder import held
from server.simulation import hospitals_of
from server.study.bench import Bench

if TYPE_CHECKING:
    from aiseeme_models.curriculum.stages import Stage
    from federation_configs.schema import FederationConfig
    from server.progress import Progress


@dataclass(frozen=True)
class Found:
    """What a policy came to.

    Attributes:
        config: the federation with its stages in that order.
        order: their names.
        left_out: the names of those that have no place.
        why: a sentence for each decision.
        scores: of every sequence that was tried, by the names in it; the untrained backbone is "(untrained)".
        rounds: federated rounds that the trials took.
    """

    config: FederationConfig
    order: tuple[str, ...]
    left_out: tuple[str, ...]
    why: tuple[str, ...]
    scores: dict[str, float]
    rounds: int


class _Told(Silent):
    """What a person sees of trials: one line for each, and for each site that misses."""

    def __init__(self, progress: Progress) -> None:
        self._say = progress.say

    def site_missed(self, site: str, why: Refused) -> None:
        """See `Observer`."""
        self._say(f"{site}: {why.sentence}")

    def note(self, text: str) -> None:
        """See `Observer`."""
        self._say(text)

    def tried(self, names: Sequence[str], sequence: tuple[int, ...], score: float) -> None:
        """A sequence has its score."""
        self._say(f"{' > '.join(names[number] for number in sequence) or 'untrained'}: {percent(score)}")


def find_order(
    config: FederationConfig,
    policy: str,
    options: dict[str, Any],
    data: Sequence[Path],
    *,
    sites: int | None,
    partition: str | None,
    trial_rounds: int | None,
    probe: Literal["knn", "linear"],
    engine: str,
    device: str,
    home: Path,
    progress: Progress,
) -> Found:
    """Try what a policy asks for, and settle on an order. What was played before is not played again.

    Args:
        config: the federation; its stages are the candidates.
        policy: a registered ordering policy.
        options: the policy's own.
        data, sites, partition: the hospitals, as in `server.simulation.simulate`.
        trial_rounds: rounds of a stage in a trial; None: a quarter of the stage's, at least one.
        probe: which probe the sites judge by.
        engine, device: as in `simulate`.
        home: the folder of all runs.
        progress: shows what happens.

    Raises:
        InputError: policy, data and configuration do not fit together.
        RunFailed: a trial failed.
    """
    kind = orderings[policy]
    chosen = kind(parse_options(kind.options_type, options, where="--option", owner=policy))
    if config.privacy is not None:
        raise InputError("an order is found without [privacy]: under it sites tell no score; take the table out")
    if any(stage.tune is not None for stage in config.curriculum.stage):
        raise InputError(
            "an order is found with rates that are given: give lr numbers, and write lr = 'auto' into the result"
        )
    config = _with(config, [stage.model_copy(update={"stop": "rounds"}) for stage in config.curriculum.stage])
    names = _names(config)
    short = tuple(
        stage.model_copy(update={"rounds": min(stage.rounds, trial_rounds or max(1, stage.rounds // 4))})
        for stage in config.curriculum.stage
    )
    key = hashlib.sha256(json.dumps([config_sha256(config), [str(path.resolve()) for path in data]]).encode())
    folder = home / "orders" / f"{config.name}-{key.hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder):
        hospitals = hospitals_of(config, data, sites, partition, device, home, folder / "gathered", progress)
        told = _Told(progress)
        bench = Bench(
            config=config,
            sites=hospitals.sites,
            images=None,
            initial=None,
            finetune=(),
            folds=0,
            folders=len(data),
            home=home,
            engine=engine,
            observer=told,
        )
        trials = SiteTrials(bench, short, probe, told, lambda sequence, score: told.tried(names, sequence, score))
        candidates = [
            Candidate(name, stage_tasks[stage.task].family)
            for name, stage in zip(names, config.curriculum.stage, strict=True)
        ]
        ordered = chosen.settle(candidates, trials)
    return Found(
        config=_with(config, [config.curriculum.stage[number] for number in ordered.order]),
        order=tuple(names[number] for number in ordered.order),
        left_out=tuple(name for number, name in enumerate(names) if number not in ordered.order),
        why=ordered.why,
        scores={
            " > ".join(names[number] for number in sequence) or "(untrained)": score
            for sequence, score in trials.scores.items()
        },
        rounds=trials.rounds,
    )


def _names(config: FederationConfig) -> list[str]:
    """The stages' tasks, numbered where a task is there twice."""
    tasks = [stage.task for stage in config.curriculum.stage]
    twice = {task for task, count in Counter(tasks).items() if count > 1}
    return [f"{task} ({number})" if task in twice else task for number, task in enumerate(tasks, start=1)]


def _with(config: FederationConfig, stages: Sequence[Stage]) -> FederationConfig:
    """The federation with other stages.

    Raises:
        InputError: they cannot stand so, as where the first would distil from a stage before.
    """
    changed = config.model_dump(mode="json")
    changed["curriculum"] = {"stage": [stage.model_dump(mode="json") for stage in stages]}
    return check_config(changed, where=f"{config.name} in this order")
