"""Where a run's rounds begin: at its first stage, at a later one with a backbone, or behind its last checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aiseeme_models.errors import RunFailed
from federation_configs.loading import config_sha256
from federation_configs.schema import FederationConfig
from server.checkpoints import Checkpoint
from server.global_model import StageModel, start_of_stage
from server.run_state import RunState, SiteState, StageState


@dataclass(frozen=True)
class Start:
    """Where a run begins that does not begin at its first stage with a fresh backbone.

    Attributes:
        stage: index of its first stage; the ones before it count as played.
        backbone: ``(B,)`` float32, what it is handed over.
    """

    stage: int
    backbone: NDArray[np.float32]


def first_state(
    config: FederationConfig, site_names: Sequence[str], begins: Start | None
) -> tuple[RunState, StageModel]:
    """The state and the model of a run that has played no round.

    Args:
        config: the federation.
        site_names: its sites.
        begins: where it begins; None: at its first stage, with a fresh backbone.
    """
    first = 0 if begins is None else begins.stage
    model = start_of_stage(config, first, None if begins is None else begins.backbone)
    stages = [StageState() for _ in config.curriculum.stage]
    stages[first].chance_loss = model.chance_loss
    state = RunState(
        # The rounds' numbers name their random streams: they are what they would be in the whole run.
        round=sum(options.rounds for options in config.curriculum.stage[:first]),
        stage=first,
        stages=stages,
        sites={name: SiteState() for name in sorted(site_names)},
    )
    return state, model


def state_in(checkpoint: Checkpoint, run: str, config: FederationConfig, folder: Path) -> tuple[RunState, StageModel]:
    """The state and the model that a checkpoint in ``folder`` holds.

    Raises:
        RunFailed: it is of another run, another configuration or another architecture.
    """
    manifest = checkpoint.manifest
    if manifest.run != run:
        raise RunFailed(f"{folder}: its checkpoints belong to another run")
    if manifest.config_sha256 != config_sha256(config):
        raise RunFailed(f"{folder}: its checkpoints belong to another configuration")
    state = RunState.model_validate(manifest.state)
    fresh = start_of_stage(config, state.stage, None)
    if fresh.layout.digest != manifest.layout_sha256 or fresh.layout.size != checkpoint.vector.size:
        raise RunFailed(f"{folder}: its checkpoints hold a model of another architecture")
    return state, StageModel(fresh.layout, checkpoint.vector, fresh.chance_loss)
