"""SimSiam: predict the projection of an image's other view, without negatives and without a momentum encoder.

Chen & He, "Exploring Simple Siamese Representation Learning", 2021 (arXiv 2011.10566).
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from aiseeme_models.backbones import PER_IMAGE_NORMS, Backbone, Norm
from aiseeme_models.backbones.norm import norm_1d
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.options import Options
from aiseeme_models.pretext.base import PretextTask, Recipe, options_of, pretext_tasks
from aiseeme_models.pretext.byol import negative_cosine
from aiseeme_models.pretext.heads import mlp


class SimSiamOptions(Options):
    """Options of `SimSiam`: for small data (ImageNet: projection_dim 2048, bottleneck_dim 512)."""

    projection_dim: int = Field(512, ge=2, description="width of the projector's three layers")
    bottleneck_dim: int = Field(128, ge=1, description="hidden layer of the predictor: a quarter of projection_dim")


@pretext_tasks.register("simsiam")
class SimSiam(PretextTask):
    """Encoder and projector, a predictor with a bottleneck, and no gradient through what is predicted."""

    family = "non-contrastive"
    paper = "Chen & He 2021, arXiv 2011.10566"
    recipe = Recipe("sgd", 0.05, 256, 1e-4)
    options_type = SimSiamOptions
    collapses_with = PER_IMAGE_NORMS

    @classmethod
    def build(cls, backbone: Backbone, options: Options, norm: Norm) -> SimSiam:
        """See `PretextTask.build`. The projections are normalised too, without weights (section 3)."""
        options = options_of(SimSiamOptions, options)
        width = options.projection_dim
        projector = mlp(backbone.feature_dim, width, width, norm, layers=3).append(norm_1d(norm, affine=False)(width))
        return cls(backbone, nn.Sequential(projector, mlp(width, options.bottleneck_dim, width, norm)))

    @classmethod
    def decomposes_per_image(cls, norm: Norm) -> bool:
        """True without batch statistics, of which it has need: see `check`."""
        return norm in PER_IMAGE_NORMS

    @classmethod
    def check(cls, options: Options, *, norm: Norm, batch_size: int, image_size: int, channels: int) -> None:
        """See `PretextTask.check`.

        In 32 steps on a toy set features drew together to 0.1 to 0.4 of how far apart they were, with standardised
        weights too, at a loss of 0.006; in 320 steps no classifier could be trained on them.
        """
        cls.check_norm("simsiam", norm)

    def views(self, images: Tensor, augmentation: BatchAugmentation, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Two views of each image, ``(2B, C, H, W)``."""
        first, second = augmentation(images, generator), augmentation(images, generator)
        return (torch.stack([first, second], dim=1).flatten(0, 1),)

    def loss(self, views: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """``1 - cos``, mean over both directions: in [0, 2]. Eq. 2 of the paper plus 1."""
        (images,) = views
        projector, predictor = self.head.children()
        projections = projector(self.backbone(images))  # (2B, P)
        others = projections.detach().unflatten(0, (-1, 2)).flip(1).flatten(0, 1)  # (2B, P)
        return 1 + negative_cosine(predictor(projections), others)

    def chance_loss(self, batch_size: int) -> None:
        """None: a collapsed network has loss 0."""
        return
