"""From a pretrained backbone to a classifier that the simulated hospitals train together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aiseeme_models.errors import InputError
from federation_configs.downstream import downstream_config, learns_labels
from federation_configs.loading import check_config, load_config
from server.run_folder import CONFIG, SimulationPlan, existing_registry, was_launched
from server.simulation import simulate

if TYPE_CHECKING:
    from federation_configs.schema import FederationConfig
    from server.progress import Progress
    from server.results import Results


@dataclass(frozen=True)
class AskedFineTuning:
    """What a person asks for; None everywhere means: as in the pretraining run.

    Attributes:
        run: id of a finished run, or the beginning of one.
        task: name of a ``[downstream.NAME]`` table; None: the only one there is.
        config: a configuration whose tables are meant; None: the run's own.
        data, sites, partition: as `server.simulation.simulate` takes them.
        scratch: begin with the seed's untrained backbone instead: what pretraining is compared with.
        labels: share of the labelled patients instead of the table's.
        seed: instead of the configuration's.
        engine: ``local`` or ``ray``.
        device: torch device of the sites.
    """

    run: str
    task: str | None
    config: str | None
    data: Sequence[Path]
    sites: int | None
    partition: str | None
    scratch: bool
    labels: float | None
    seed: int | None
    engine: str
    device: str


def prepare(asked: AskedFineTuning, *, home: Path) -> tuple[FederationConfig, Path]:
    """The configuration of the classifier's run, and the folder of the run whose backbone it goes on with.

    Raises:
        InputError: no such run or table, or a run that is no finished pretraining.
    """
    row = existing_registry(home).get(asked.run)
    if row.status != "done":
        raise InputError(f"{row.id} is {row.status}: only a finished run has a backbone to go on with")
    folder = home / row.id
    pretrained = load_config(folder / CONFIG)
    if learns_labels(pretrained):
        raise InputError(f"{row.id} has trained a classifier already: name the run that pretrained its backbone")
    return _config(asked, pretrained), folder


def finetune(asked: AskedFineTuning, *, home: Path, progress: Progress) -> Results:
    """Play it as a run of its own over simulated hospitals, in the same folder of runs.

    Raises:
        InputError: see `prepare`, or data that are not there.
        RunFailed: the run failed.
    """
    config, folder = prepare(asked, home=home)
    data, sites, partition = list(asked.data), asked.sites, asked.partition
    if not data:
        plan = SimulationPlan.load(folder)
        data = [Path(path) for path in plan.data]
        sites, partition = sites or plan.sites, partition or plan.partition
    return simulate(
        config,
        data,
        sites=sites,
        partition=partition,
        engine=asked.engine,
        device=asked.device,
        home=home,
        progress=progress,
        initial=None if asked.scratch else folder,
        dealt_by=load_config(folder / CONFIG).seed,  # with another seed too, the hospitals are those of the run
    )


def is_played_by_hospitals(asked: AskedFineTuning, *, home: Path) -> bool:
    """Whether the run was launched, and no images are given to simulate hospitals with.

    Raises:
        InputError: no such run.
    """
    row = existing_registry(home).get(asked.run)
    return not asked.data and was_launched(home / row.id)


def _config(asked: AskedFineTuning, pretrained: FederationConfig) -> FederationConfig:
    """The configuration of the classifier's run: the table is of ``asked.config``, the rest the pretraining run's."""
    source = pretrained if asked.config is None else load_config(asked.config)
    changed = pretrained.model_dump(mode="json", exclude_none=True)
    tables = source.model_dump(mode="json", exclude_none=True)["downstream"]
    name = asked.task
    if name is None:
        if len(tables) != 1:
            there = ", ".join(sorted(tables)) or "none: add a [downstream.NAME] table, or name a --config that has one"
            raise InputError(
                f"--task: say which of the [downstream.*] tables of {source.name} is meant; there are {there}"
            )
        name = next(iter(tables))
    if asked.labels is not None and name in tables:
        tables[name]["labels"] = asked.labels
    changed["downstream"] = tables
    if asked.seed is not None:
        changed["seed"] = asked.seed
    return downstream_config(check_config(changed, where=asked.config or f"{asked.run}/{CONFIG}"), name)
