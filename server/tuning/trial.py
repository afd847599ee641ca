"""One training of a setting that is tried, on the disk after each round so that nothing is tried twice."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from federation_configs.loading import config_sha256
from server.checkpoints import CheckpointStore
from server.tuning.found import TriedSetting

if TYPE_CHECKING:
    import numpy as np
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from numpy.typing import NDArray

    from aiseeme_models.curriculum.tuning import Setting
    from federation_configs.schema import FederationConfig
    from server.global_model import StageModel


class TrialState(BaseModel):
    """How far a trial has come.

    Attributes:
        rounds: rounds that are done.
        waves: how often it was asked to be trained: more than ``rounds``, where sites did not answer.
        failed: how often in a row no site's answer counted.
        silent: sites that said nothing about it when they were asked, since one last counted.
        diverged: sites at which it diverged; what has diverged at one may have been that site's fault.
        error: what it was judged to be after its last round.
        out: why it was given up.
        steps, images, seconds: what it took, over all its sites.
    """

    model_config = ConfigDict(extra="forbid")

    rounds: int = 0
    waves: int = 0
    failed: int = 0
    silent: list[str] = Field(default_factory=list)
    diverged: list[str] = Field(default_factory=list)
    error: float | None = None
    out: str | None = None
    steps: int = 0
    images: int = 0
    seconds: float = 0.0


@dataclass
class Trial:
    """A setting on its way.

    Attributes:
        number: its own.
        setting: its rate and batch size.
        config: the federation with it, its stage as long as the trial.
        state: how far it has come.
        vector: ``(P,)`` float32; None while nobody trains it.
        store: its checkpoints.
    """

    number: int
    setting: Setting
    config: FederationConfig
    state: TrialState
    store: CheckpointStore
    vector: NDArray[np.float32] | None = field(default=None, repr=False)
    optimizer_state: dict[str, NDArray[np.float32]] = field(default_factory=dict, repr=False)

    @classmethod
    def open(
        cls, number: int, setting: Setting, config: FederationConfig, folder: Path, key: Ed25519PrivateKey | None
    ) -> Trial:
        """The trial as it was left, or a new one; one whose checkpoint cannot be trusted begins anew."""
        store = CheckpointStore(folder / f"trial-{number:04d}", 2, key)
        trial = cls(number, setting, config, TrialState(), store)
        checkpoint = store.latest()
        if checkpoint is not None and checkpoint.manifest.config_sha256 == config_sha256(config):
            with contextlib.suppress(ValidationError):
                trial.state = TrialState.model_validate(checkpoint.manifest.state)
        return trial

    def resume(self, model: StageModel) -> NDArray[np.float32]:
        """Its weights: those of its last round, or the stage's first ones."""
        if self.vector is None:
            checkpoint = self.store.latest() if self.state.rounds else None
            self.vector = model.vector.copy() if checkpoint is None else checkpoint.vector
            self.optimizer_state = {} if checkpoint is None else checkpoint.optimizer_state
        return self.vector

    def save(self, run: str, stage: int, number: int, model: StageModel) -> None:
        """Write how far it has come.

        Args:
            run: the run's id.
            stage: index of the stage.
            number: of the checkpoint; each is larger than the one before.
            model: the stage's.

        Raises:
            RunFailed: the disk is full.
        """
        assert self.vector is not None
        self.store.save(
            run=run,
            round=number,
            stage=stage,
            round_in_stage=self.state.rounds,
            config_sha256=config_sha256(self.config),
            layout_sha256=model.layout.digest,
            vector=self.vector,
            optimizer_state=self.optimizer_state,
            state=self.state.model_dump(mode="json"),
        )

    @property
    def error(self) -> float | None:
        """What it was judged to be: infinity where it is out, None where it was not judged."""
        return self.state.error if self.state.out is None else math.inf

    @property
    def told(self) -> TriedSetting:
        """For results and reports."""
        return TriedSetting(
            lr=self.setting.lr,
            batch_size=self.setting.batch_size,
            rounds=self.state.rounds,
            error=self.state.error,
            out=self.state.out,
        )
