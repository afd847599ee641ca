"""BYOL: predict what a slowly moving copy of oneself says about the image's other view.

Grill et al., "Bootstrap Your Own Latent", 2020 (arXiv 2006.07733). It also works without batch statistics (Richemond
et al. 2020, arXiv 2010.10241), which is what lets the loss decompose per image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from aiseeme_models.backbones import PER_IMAGE_NORMS, Backbone, Norm
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.options import Options
from aiseeme_models.pretext.base import PretextTask, Recipe, options_of, pretext_tasks
from aiseeme_models.pretext.heads import mlp
from aiseeme_models.pretext.momentum import MomentumNetwork, cosine_momentum


class BYOLOptions(Options):
    """Options of `BYOL`: for small data (ImageNet: momentum 0.996, hidden_dim 4096)."""

    momentum: float = Field(0.99, ge=0, le=1, description="momentum of the target at the start; 1 at the stage's end")
    hidden_dim: int = Field(1024, ge=1, description="hidden layer of the projector and of the predictor")
    projection_dim: int = Field(256, ge=2, description="length of the projections")


def negative_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """Minus the mean cosine similarity of the rows of two ``(B, D)`` tensors."""
    return -F.cosine_similarity(predictions.float(), targets.float(), dim=1).mean()


@pretext_tasks.register("byol")
class BYOL(PretextTask):
    """Online encoder, projector and predictor; target encoder and projector as their moving average."""

    family = "non-contrastive"
    paper = "Grill et al. 2020, arXiv 2006.07733"
    recipe = Recipe("lars", 0.2, 256, 1.5e-6)
    options_type = BYOLOptions
    rederived = ("target",)
    collapses_with = frozenset({"group"})

    options: BYOLOptions

    @classmethod
    def build(cls, backbone: Backbone, options: Options, norm: Norm) -> BYOL:
        """See `PretextTask.build`."""
        options = options_of(BYOLOptions, options)
        projector = mlp(backbone.feature_dim, options.hidden_dim, options.projection_dim, norm)
        predictor = mlp(options.projection_dim, options.hidden_dim, options.projection_dim, norm)
        local = nn.ModuleDict({"target": MomentumNetwork(nn.Sequential(backbone, projector))})
        task = cls(backbone, nn.Sequential(projector, predictor), local)
        task.options = options
        return task

    @classmethod
    def decomposes_per_image(cls, norm: Norm) -> bool:
        """True without batch statistics; the unit is an image with its two views."""
        return norm in PER_IMAGE_NORMS

    @classmethod
    def check(cls, options: Options, *, norm: Norm, batch_size: int, image_size: int, channels: int) -> None:
        """See `PretextTask.check`: with plain group norm all features became one (loss 7e-6 on a toy set)."""
        cls.check_norm("byol", norm)

    @property
    def _target(self) -> MomentumNetwork:
        target = self.local.get_submodule("target")
        assert isinstance(target, MomentumNetwork)
        return target

    @property
    def _followed(self) -> nn.Sequential:
        """The online encoder and projector, without predictor."""
        return nn.Sequential(self.backbone, self.head.get_submodule("0"))

    def begin_round(self) -> None:
        """Make the target equal to the aggregated online network."""
        self._target.copy_from(self._followed)

    def views(self, images: Tensor, augmentation: BatchAugmentation, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Two views of each image ``(2B, C, H, W)`` and what they are to predict ``(2B, P)``: the other's target."""
        first, second = augmentation(images, generator), augmentation(images, generator)
        views = torch.stack([first, second], dim=1).flatten(0, 1)  # (2B, C, H, W)
        targets = self._target(views).unflatten(0, (-1, 2)).flip(1).flatten(0, 1)  # (2B, P)
        return views, targets

    def loss(self, views: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """``2 - 2 cos`` (eq. 2 of the paper), mean over both directions: in [0, 4]."""
        images, targets = views
        return 2 + 2 * negative_cosine(self.head(self.backbone(images)), targets)

    def chance_loss(self, batch_size: int) -> None:
        """None: a collapsed network has loss 0."""
        return

    def after_step(self, views: tuple[Tensor, ...], progress: float) -> None:
        """Move the target, ever more slowly: the momentum goes to 1 along a cosine."""
        self._target.follow(self._followed, cosine_momentum(self.options.momentum, progress))
