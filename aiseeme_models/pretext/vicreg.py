"""VICReg: views of an image agree, while every feature keeps its variance and tells something of its own.

Bardes et al., "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning", 2022
(arXiv 2105.04906).
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

_EPSILON = 1e-4  # section 4.1


class VICRegOptions(Options):
    """Options of `VICReg`: for small data (ImageNet: hidden_dim and projection_dim 8192)."""

    invariance: float = Field(25.0, ge=0, description="weight of the distance between an image's views")
    variance: float = Field(25.0, ge=0, description="weight of the standard deviations that are below 1")
    covariance: float = Field(1.0, ge=0, description="weight of the covariances between features")
    hidden_dim: int = Field(1024, ge=1, description="the two hidden layers of the expander")
    projection_dim: int = Field(1024, ge=2, description="number of features that are compared")


def vicreg_loss(first: Tensor, second: Tensor, invariance: float, variance: float, covariance: float) -> Tensor:
    """``lambda s(Z, Z') + mu (v(Z) + v(Z')) + nu (c(Z) + c(Z'))`` (eq. 6 of the paper).

    As in the authors' code, s is also a mean over the features and v a mean over the two views. In float32 also under
    autocast.

    Args:
        first: ``(B, D)`` projections of one view of every image.
        second: ``(B, D)`` projections of the other view, in the same order.
        invariance: lambda.
        variance: mu.
        covariance: nu.
    """
    with torch.autocast(first.device.type, enabled=False):
        first, second = first.float(), second.float()
        loss = invariance * F.mse_loss(first, second)
        for z in (first, second):
            centred = (z - z.mean(dim=0)) / (len(z) - 1) ** 0.5  # (B, D)
            variances = centred.square().sum(dim=0)  # (D,)
            off_diagonal = squared_norm_of_product(centred, centred) - variances.square().sum()
            loss = loss + variance / 2 * F.relu(1 - (variances + _EPSILON).sqrt()).mean()
            loss = loss + covariance / z.shape[1] * off_diagonal
        return loss


@pretext_tasks.register("vicreg")
class VICReg(TwoViewsOfABatch):
    """Two views, an expander of three layers, three terms on its features."""

    family = "non-contrastive"
    paper = "Bardes et al. 2022, arXiv 2105.04906"
    recipe = Recipe("lars", 0.2, 256, 1e-6)
    options_type = VICRegOptions
    compares = "vicreg measures variances over a batch"

    options: VICRegOptions

    @classmethod
    def build(cls, backbone: Backbone, options: Options, norm: Norm) -> VICReg:
        """See `PretextTask.build`."""
        options = options_of(VICRegOptions, options)
        task = cls(backbone, mlp(backbone.feature_dim, options.hidden_dim, options.projection_dim, norm, layers=3))
        task.options = options
        return task

    def loss(self, views: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """The three terms of the projections."""
        options = self.options
        first, second = self.projections(views)
        return vicreg_loss(first, second, options.invariance, options.variance, options.covariance)

    def chance_loss(self, batch_size: int) -> None:
        """None: a collapsed network has the loss 0.99 mu, which is within the range of good ones."""
        return
