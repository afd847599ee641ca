"""Barlow Twins: each feature of one view goes with the same feature of the other view, and with no other one.

Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", 2021 (arXiv 2103.03230).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from aiseeme_models.backbones import Backbone, Norm
from aiseeme_models.options import Options
from aiseeme_models.pretext.base import Recipe, options_of, pretext_tasks
from aiseeme_models.pretext.correlation import squared_norm_of_product
from aiseeme_models.pretext.heads import mlp
from aiseeme_models.pretext.two_views import TwoViewsOfABatch


class BarlowTwinsOptions(Options):
    """Options of `BarlowTwins`: for small data (ImageNet: hidden_dim and projection_dim 8192)."""

    redundancy: float = Field(5e-3, gt=0, le=1, description="weight of the redundancy term: lambda of the paper")
    hidden_dim: int = Field(1024, ge=1, description="the two hidden layers of the projector")
    projection_dim: int = Field(1024, ge=2, description="number of features that are decorrelated")


def barlow_twins_loss(first: Tensor, second: Tensor, redundancy: float) -> Tensor:
    """``sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2`` (eq. 1 of the paper), C the features' cross-correlation.

    In float32 also under autocast.

    Args:
        first: ``(B, D)`` projections of one view of every image.
        second: ``(B, D)`` projections of the other view, in the same order.
        redundancy: lambda.
    """
    with torch.autocast(first.device.type, enabled=False):
        # Mean 0 and (biased) variance 1 of each feature over the batch, with batch norm's 1e-5 against a zero variance.
        a, b = (F.batch_norm(z.float(), None, None, training=True) / len(z) ** 0.5 for z in (first, second))  # (B, D)
        diagonal = (a * b).sum(dim=0)  # (D,)
        off_diagonal = squared_norm_of_product(a, b) - diagonal.square().sum()
        loss: Tensor = (diagonal - 1).square().sum() + redundancy * off_diagonal
        return loss


@pretext_tasks.register("barlow-twins")
class BarlowTwins(TwoViewsOfABatch):
    """Two views, a projector of three layers, the cross-correlation of its features over the batch."""

    family = "non-contrastive"
    paper = "Zbontar et al. 2021, arXiv 2103.03230"
    recipe = Recipe("lars", 0.2, 256, 1.5e-6)
    options_type = BarlowTwinsOptions
    compares = "barlow-twins correlates features over a batch"

    options: BarlowTwinsOptions

    @classmethod
    def build(cls, backbone: Backbone, options: Options, norm: Norm) -> BarlowTwins:
        """See `PretextTask.build`."""
        options = options_of(BarlowTwinsOptions, options)
        task = cls(backbone, mlp(backbone.feature_dim, options.hidden_dim, options.projection_dim, norm, layers=3))
        task.options = options
        return task

    def loss(self, views: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """Redundancy reduction of the projections."""
        first, second = self.projections(views)
        return barlow_twins_loss(first, second, self.options.redundancy)

    def chance_loss(self, batch_size: int) -> float:
        """D: all projections alike, so that nothing correlates."""
        return float(self.options.projection_dim)
