"""MoCo v1: as MoCo v2, with a linear projector and a sharper softmax.

He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", 2020 (arXiv 1911.05722).
"""

from __future__ import annotations

from pydantic import Field
from torch import nn

from aiseeme_models.pretext.base import Recipe, pretext_tasks
from aiseeme_models.pretext.moco import MoCo, QueueOptions


class MoCoV1Options(QueueOptions):
    """Options of `MoCoV1`."""

    temperature: float = Field(0.07, gt=0, le=10, description="temperature of the softmax over similarities")


@pretext_tasks.register("moco-v1")
class MoCoV1(MoCo):
    """See `MoCo`."""

    paper = "He et al. 2020, arXiv 1911.05722"
    recipe = Recipe("sgd", 0.03, 256, 1e-4)
    options_type = MoCoV1Options

    @classmethod
    def projector(cls, features: int, options: QueueOptions) -> nn.Module:
        """``(B, features)`` to ``(B, projection_dim)``, linear."""
        return nn.Linear(features, options.projection_dim)
