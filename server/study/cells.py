"""A cell: one arm with one seed, as a folder with its figures in ``cell.json``, written when it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aiseeme_models.atomic_files import write_atomically
from aiseeme_models.downstream.metrics import ProbeScore
from aiseeme_models.errors import InputError

FILE = "cell.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PlayedStage(_Part):
    """A stage as it was played.

    Attributes:
        task: its pretext task.
        rounds: how many were played.
        steps: optimiser steps over all rounds and sites, as the sites counted them.
        images: images in those steps.
        loss: of the last round; None before the first.
        heldout: pretext loss of held-out images at the end, where it was measured.
        chance: loss of a model that knows nothing, where the task has one.
        near_chance: whether the last loss is near it.
        collapsed: whether most sites saw, when they last looked, that all images have nearly the same features.
        backbone_sha256: of the backbone at its end.
        seconds: wall time.
    """

    task: str
    rounds: int
    steps: int
    images: int
    loss: float | None
    heldout: float | None
    chance: float | None
    near_chance: bool
    collapsed: bool = False
    backbone_sha256: str
    seconds: float


class ModelScores(_Part):
    """One model and its scores by measure (``linear``, ``knn``, ``finetune-10``, ...)."""

    name: str
    backbone_sha256: str | None
    stages: list[PlayedStage] = Field(default_factory=list)
    scores: dict[str, ProbeScore]


class Cell(_Part):
    """What one arm came to with one seed. An arm of several models (each site alone) counts with their mean."""

    arm: str
    title: str
    says: str
    seed: int
    models: list[ModelScores]
    seconds: float

    @property
    def steps(self) -> int:
        """Optimiser steps, over all its models."""
        return sum(stage.steps for model in self.models for stage in model.stages)

    @property
    def images(self) -> int:
        """Images in those steps."""
        return sum(stage.images for model in self.models for stage in model.stages)

    @property
    def collapsed(self) -> bool:
        """Whether a stage of one of its models did."""
        return any(stage.collapsed for model in self.models for stage in model.stages)

    def accuracy(self, measure: str) -> float | None:
        """Balanced accuracy, the mean over its models; None where it was not measured."""
        return self._mean(measure, "balanced_accuracy")

    def auc(self, measure: str) -> float | None:
        """Macro AUC, the mean over its models; None where it is undefined for one of them."""
        return self._mean(measure, "macro_auc")

    def _mean(self, measure: str, figure: str) -> float | None:
        values: list[Any] = [getattr(m.scores[measure], figure) if measure in m.scores else None for m in self.models]
        return None if None in values or not values else sum(values) / len(values)

    def save(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FILE, self.model_dump_json(indent=2).encode())

    @classmethod
    def load(cls, folder: Path) -> Cell | None:
        """Read it; None where it was not played yet.

        Raises:
            InputError: it is not what a study writes.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError:
            raise InputError(f"{path}: not what a study writes; remove it, and the cell is played again") from None
