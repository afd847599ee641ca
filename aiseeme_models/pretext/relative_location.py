"""Relative location: where does a patch lie about the centre of a 3x3 grid?

Doersch et al., "Unsupervised Visual Representation Learning by Context Prediction", 2015 (arXiv 1505.05192), in the
form of OpenSelfSup: each of the nine patches is encoded once.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from aiseeme_models.backbones import Backbone, Norm
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.options import Options
from aiseeme_models.pretext.base import Recipe, options_of, pretext_tasks
from aiseeme_models.pretext.heads import mlp
from aiseeme_models.pretext.patches import CELLS, PatchTask, check_image_size, cut_patches

_CENTRE = 4
_NEIGHBOURS = 8


class RelativeLocationOptions(Options):
    """Options of `RelativeLocation`."""

    hidden_dim: int = Field(512, ge=1, description="hidden layer of the pair classifier (4096 on ImageNet)")
    grayscale_p: float = Field(
        0.0, ge=0, le=1, description="probability that an image loses its colours (0.66 on ImageNet; 3 channels only)"
    )


@pretext_tasks.register("relative-location")
class RelativeLocation(PatchTask):
    """Eight (neighbour, centre) pairs of every image, an MLP classifier on the concatenated features."""

    paper = "Doersch et al. 2015, arXiv 1505.05192"
    recipe = Recipe("sgd", 0.2, 512, 1e-4)  # OpenSelfSup
    options_type = RelativeLocationOptions

    options: RelativeLocationOptions

    @classmethod
    def build(cls, backbone: Backbone, options: Options, norm: Norm) -> RelativeLocation:
        """See `PretextTask.build`."""
        options = options_of(RelativeLocationOptions, options)
        task = cls(backbone, mlp(2 * backbone.feature_dim, options.hidden_dim, _NEIGHBOURS, norm))
        task.options = options
        return task

    @classmethod
    def check(cls, options: Options, *, norm: Norm, batch_size: int, image_size: int, channels: int) -> None:
        """See `PretextTask.check`."""
        check_image_size("relative-location", image_size)

    def views(self, images: Tensor, augmentation: BatchAugmentation, generator: torch.Generator) -> tuple[Tensor, ...]:
        """``(9B, C, p, p)`` patches in row-major order of the grid, with p = 3/4 of a third of H; the images."""
        upright = augmentation.upright().grayscale(self.options.grayscale_p)(images, generator)  # (B, C, H, W)
        return cut_patches(upright, generator), augmentation.plain(images)

    def loss(self, views: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """Cross-entropy over the eight places."""
        patches, _ = views
        features = self.encoded(patches).view(-1, CELLS, self.backbone.feature_dim)  # (B, 9, D)
        centre = features[:, _CENTRE : _CENTRE + 1].expand(-1, _NEIGHBOURS, -1)  # (B, 8, D)
        neighbours = torch.cat([features[:, :_CENTRE], features[:, _CENTRE + 1 :]], dim=1)  # (B, 8, D)
        pairs = torch.cat([neighbours, centre], dim=2).flatten(0, 1)  # (8B, 2D)
        logits = self.head(pairs)  # (8B, 8)
        targets = torch.arange(_NEIGHBOURS, device=logits.device).repeat(len(features))  # (8B,)
        return F.cross_entropy(logits.float(), targets)

    def chance_loss(self, batch_size: int) -> float:
        """ln 8."""
        return math.log(_NEIGHBOURS)
