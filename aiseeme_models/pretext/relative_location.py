"""Relative location: where does a patch lie about the centre of a 3x3 grid?

Doersch et al., "Unsupervised Visual Representation Learning by Context Prediction", 2015 (arXiv 1505.05192), in the
form of OpenSelfSup: every cell is cropped to 3/4 of its side at a random place, which leaves a gap between patches and
jitters them, so that continued lines do not give the answer away. Each of the nine patches is encoded once.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from aiseeme_models.backbones import PER_IMAGE_NORMS, Backbone, Norm
from aiseeme_models.errors import InputError
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.options import Options
from aiseeme_models.pretext.base import PretextTask, Recipe, options_of, pretext_tasks
from aiseeme_models.pretext.heads import mlp

_GRID = 3
_CENTRE = 4
_NEIGHBOURS = 8
_SMALLEST_IMAGE = 48


class RelativeLocationOptions(Options):
    """Options of `RelativeLocation`."""

    hidden_dim: int = Field(512, ge=1, description="hidden layer of the pair classifier (4096 on ImageNet)")


@pretext_tasks.register("relative-location")
class RelativeLocation(PretextTask):
    """Eight (neighbour, centre) pairs of every image, an MLP classifier on the concatenated features."""

    family = "geometric"
    paper = "Doersch et al. 2015, arXiv 1505.05192"
    recipe = Recipe("sgd", 0.2, 512, 1e-4)  # OpenSelfSup
    options_type = RelativeLocationOptions

    @classmethod
    def build(cls, backbone: Backbone, options: Options, norm: Norm) -> RelativeLocation:
        """See `PretextTask.build`."""
        options = options_of(RelativeLocationOptions, options)
        return cls(backbone, mlp(2 * backbone.feature_dim, options.hidden_dim, _NEIGHBOURS, norm))

    @classmethod
    def decomposes_per_image(cls, norm: Norm) -> bool:
        """True without batch statistics; the unit is an image with its eight pairs."""
        return norm in PER_IMAGE_NORMS

    @classmethod
    def check(cls, options: Options, *, norm: Norm, batch_size: int, image_size: int, channels: int) -> None:
        """See `PretextTask.check`: patches of less than 12 px show nothing."""
        if image_size < _SMALLEST_IMAGE:
            raise InputError(
                f"relative-location cuts an image into a 3x3 grid: images.size is {image_size}, "
                f"it must be at least {_SMALLEST_IMAGE}"
            )

    def views(self, images: Tensor, augmentation: BatchAugmentation, generator: torch.Generator) -> tuple[Tensor, ...]:
        """``(9B, C, p, p)`` patches in row-major order of the grid, with p = 3/4 of a third of H."""
        upright = augmentation.upright()(images, generator)  # (B, C, H, W)
        return (_patches(upright, generator),)

    def loss(self, views: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """Cross-entropy over the eight places."""
        (patches,) = views
        features = self.backbone(patches).unflatten(0, (-1, _GRID * _GRID))  # (B, 9, D)
        centre = features[:, _CENTRE : _CENTRE + 1].expand(-1, _NEIGHBOURS, -1)  # (B, 8, D)
        neighbours = torch.cat([features[:, :_CENTRE], features[:, _CENTRE + 1 :]], dim=1)  # (B, 8, D)
        pairs = torch.cat([neighbours, centre], dim=2).flatten(0, 1)  # (8B, 2D)
        logits = self.head(pairs)  # (8B, 8)
        targets = torch.arange(_NEIGHBOURS, device=logits.device).repeat(len(features))  # (8B,)
        return F.cross_entropy(logits.float(), targets)

    def chance_loss(self, batch_size: int) -> float:
        """ln 8."""
        return math.log(_NEIGHBOURS)


def _patches(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random patch of every cell: ``(B, C, H, W)`` to ``(9B, C, p, p)``, nine consecutive rows an image."""
    batch, channels, height, width = images.shape
    cell = min(height, width) // _GRID
    side = cell * 3 // 4
    device = images.device
    jitter = torch.randint(0, cell - side + 1, (batch, _GRID * _GRID, 2), generator=generator).to(device)  # (B, 9, 2)
    corner = torch.cartesian_prod(torch.arange(_GRID), torch.arange(_GRID)).to(device) * cell  # (9, 2)
    span = torch.arange(side, device=device)
    rows = (corner[:, 0] + jitter[..., 0])[..., None] + span  # (B, 9, p)
    columns = (corner[:, 1] + jitter[..., 1])[..., None] + span  # (B, 9, p)
    flat = (rows[..., :, None] * width + columns[..., None, :]).view(batch, 1, -1)  # (B, 1, 9*p*p)
    picked = images.reshape(batch, channels, -1).gather(2, flat.expand(-1, channels, -1))  # (B, C, 9*p*p)
    patches = picked.view(batch, channels, _GRID * _GRID, side, side).transpose(1, 2)  # (B, 9, C, p, p)
    return patches.reshape(-1, channels, side, side)  # (9B, C, p, p)
