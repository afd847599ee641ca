"""How a stage is trained at a site."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from aiseeme_models.errors import InputError
from aiseeme_models.options import Options
from aiseeme_models.training.optimizers import optimizers
from aiseeme_models.training.schedules import schedules


class TrainingOptions(Options):
    """Options of the training loop."""

    batch_size: int = Field(64, ge=1, le=65536, description="images a step")
    local_epochs: int = Field(1, ge=1, description="passes over a site's images in a round")
    max_steps: int | None = Field(
        None, ge=1, description="most optimiser steps a round, where the passes make more; default: all of them"
    )
    optimizer: str = Field("adamw", description="sgd, lars or adamw")
    lr: float | None = Field(None, gt=0, description="learning rate; default: the optimiser's (0.05, 0.3, 0.001)")
    weight_decay: float | None = Field(None, ge=0, description="weight decay; default: the optimiser's")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum (adamw: beta 1)")
    schedule: str = Field("cosine", description="cosine, step, constant or one-cycle, over the whole stage")
    warmup: float = Field(0.0, ge=0, lt=1, description="fraction of the stage in which the rate rises from 0")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on CUDA, fp32 on a CPU")
    gradient_clip: float | None = Field(None, gt=0, description="largest norm of a step's gradient")
    carry_optimizer: bool = Field(True, description="keep the optimiser's state at the site between rounds of a stage")

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, name: str) -> str:
        optimizers[name]  # InputError is a ValueError: pydantic reports it with the key
        return name

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, name: str) -> str:
        schedules[name]
        return name

    @model_validator(mode="after")
    def _one_warm_up(self) -> TrainingOptions:
        if self.schedule == "one-cycle" and self.warmup > 0:
            raise InputError("one-cycle warms up by itself: leave warmup at 0")
        return self

    def steps(self, images: int) -> int:
        """Optimiser steps of a round over ``images`` training images; a last incomplete batch is dropped."""
        whole = self.local_epochs * (images // min(self.batch_size, images))
        return whole if self.max_steps is None else min(whole, self.max_steps)

    def images_seen(self, images: int) -> int:
        """How many images a round over ``images`` looks at, one counting as often as it is looked at."""
        return self.steps(images) * min(self.batch_size, images)

    @property
    def learning_rate(self) -> float:
        """``lr``, or the optimiser's default."""
        return optimizers[self.optimizer].lr if self.lr is None else self.lr

    @property
    def decay(self) -> float:
        """``weight_decay``, or the optimiser's default."""
        return optimizers[self.optimizer].weight_decay if self.weight_decay is None else self.weight_decay
