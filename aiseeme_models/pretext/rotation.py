"""Rotation prediction: by which multiple of 90 degrees was the image turned?

Gidaris et al., "Unsupervised Representation Learning by Predicting Image Rotations", 2018 (arXiv 1803.07728).
On images without an upright (dermoscopy) the loss stays near chance.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aiseeme_models.backbones import PER_IMAGE_NORMS, Backbone, Norm
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.options import Options
from aiseeme_models.pretext.base import PretextTask, Recipe, options_of, pretext_tasks

_TURNS = 4


class RotationOptions(Options):
    """Rotation has nothing to choose."""


@pretext_tasks.register("rotation")
class Rotation(PretextTask):
    """All four rotations of every image, a linear classifier on the pooled feature."""

    family = "geometric"
    paper = "Gidaris et al. 2018, arXiv 1803.07728"
    recipe = Recipe("sgd", 0.2, 128, 1e-4)  # OpenSelfSup
    options_type = RotationOptions

    @classmethod
    def build(cls, backbone: Backbone, options: Options, norm: Norm) -> Rotation:
        """See `PretextTask.build`."""
        options_of(RotationOptions, options)
        return cls(backbone, nn.Linear(backbone.feature_dim, _TURNS))

    @classmethod
    def decomposes_per_image(cls, norm: Norm) -> bool:
        """True without batch statistics; the unit is an image with its four rotations."""
        return norm in PER_IMAGE_NORMS

    def views(self, images: Tensor, augmentation: BatchAugmentation, generator: torch.Generator) -> tuple[Tensor, ...]:
        """``(4B, C, H, W)`` inputs and ``(4B,)`` int64 turns. The augmentation itself turns nothing."""
        upright = augmentation.upright()(images, generator)  # (B, C, H, W)
        turned = torch.stack([upright.rot90(turn, dims=(2, 3)) for turn in range(_TURNS)], dim=1)  # (B, 4, C, H, W)
        targets = torch.arange(_TURNS, device=images.device).repeat(len(images))  # (4B,)
        return turned.flatten(0, 1), targets

    def loss(self, views: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """Cross-entropy over the four turns."""
        inputs, targets = views
        logits = self.head(self.backbone(inputs))  # (4B, 4)
        return F.cross_entropy(logits.float(), targets)

    def chance_loss(self, batch_size: int) -> float:
        """ln 4."""
        return math.log(_TURNS)
