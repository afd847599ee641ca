"""Colourisation: which colours does the grey image have?

Zhang et al., "Colorful Image Colorization", 2016 (arXiv 1603.08511): lightness in, for every cell of the feature map
one of 313 colours out. Left out, as they serve beautiful pictures rather than features:

- Soft targets (the five nearest colours, weighted): each cell's target is the colour nearest to its mean.
- Rebalancing by how rare a colour is. The paper's weights are those of ImageNet's colours, which are not those of
  skin; weights of a batch would let an image change the other images' terms; weights of a site would differ from site
  to site and tell what its images look like.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from aiseeme_models.backbones import PER_IMAGE_NORMS, Backbone, Norm
from aiseeme_models.errors import InputError
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.images.cielab import rgb_to_lab
from aiseeme_models.options import Options
from aiseeme_models.pretext.base import PretextTask, Recipe, options_of, pretext_tasks

_REACH = 128  # no sRGB colour has an a or b beyond it


class ColourisationOptions(Options):
    """Options of `Colourisation`."""

    grid: int = Field(10, ge=5, le=40, description="distance of neighbouring colours in a and b; 10 makes 313 of them")


@cache
def colour_grid(grid: int) -> Tensor:
    """The colours that are told apart: every corner of the cells of an ab grid that hold a colour of sRGB.

    As in the paper a cell counts if the convex hull of sRGB's ab values reaches into it; for a grid of 10 these are its
    313 colours. The nearest corner of any mean of colours is one of them.

    Returns:
        ``(Q, 2)`` float32 a and b, in lexicographic order.
    """
    from scipy.spatial import ConvexHull

    # The hull of the cube's projection is that of its twelve edges' projections.
    ends = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)  # (8, 3)
    along = torch.linspace(0, 1, 1001).view(-1, 1)
    edges = [a + along * (b - a) for a in ends for b in ends if (b - a).abs().sum() == 1 and (b - a).sum() == 1]
    colours = rgb_to_lab(torch.cat(edges).T.view(1, 3, 1, -1))[0, 1:, 0].T.double().numpy()  # (N, 2)
    cell = grid * np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])
    widened = ConvexHull((colours[ConvexHull(colours).vertices, None] + cell).reshape(-1, 2))  # by a cell all around
    normals, offsets = widened.equations[:, :2], widened.equations[:, 2]  # n x + c <= 0 inside
    steps = np.arange(-(_REACH // grid) - 1, _REACH // grid + 2) * grid
    corners = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)
    return torch.from_numpy(corners[(corners @ normals.T + offsets <= 0).all(axis=1)].astype(np.float32))


@cache
def _index(grid: int) -> Tensor:
    """The number of each corner's colour among those of `colour_grid`, -1 where it is none: ``(S, S)`` int64."""
    colours = (colour_grid(grid) / grid).long() + _REACH // grid + 1
    side = 2 * (_REACH // grid) + 3
    index = torch.full((side, side), -1)
    index[colours[:, 0], colours[:, 1]] = torch.arange(len(colours))
    return index


def nearest_colours(ab: Tensor, grid: int) -> Tensor:
    """The numbers in `colour_grid` of the colours nearest to ``ab``, ``(B, 2, h, w)`` to ``(B, h, w)`` int64."""
    a, b = ((ab / grid).round().long() + _REACH // grid + 1).unbind(1)
    return _index(grid).to(ab.device)[a, b]


@pretext_tasks.register("colourisation")
class Colourisation(PretextTask):
    """Lightness, repeated as three channels, through the backbone; a 1x1 convolution names each cell's colour."""

    family = "generative"
    paper = "Zhang et al. 2016, arXiv 1603.08511"
    recipe = Recipe("adamw", 3e-5, 40, 1e-3)
    options_type = ColourisationOptions

    options: ColourisationOptions

    @classmethod
    def build(cls, backbone: Backbone, options: Options, norm: Norm) -> Colourisation:
        """See `PretextTask.build`."""
        options = options_of(ColourisationOptions, options)
        task = cls(backbone, nn.Conv2d(backbone.feature_dim, len(colour_grid(options.grid)), 1))
        task.options = options
        return task

    @classmethod
    def decomposes_per_image(cls, norm: Norm) -> bool:
        """True without batch statistics."""
        return norm in PER_IMAGE_NORMS

    @classmethod
    def check(cls, options: Options, *, norm: Norm, batch_size: int, image_size: int, channels: int) -> None:
        """See `PretextTask.check`."""
        if channels != 3:
            raise InputError(
                f"colourisation needs colours: images.preset has {channels} channel(s); take a preset with 3, as"
                " dermoscopy, or another task"
            )

    def views(self, images: Tensor, augmentation: BatchAugmentation, generator: torch.Generator) -> tuple[Tensor, ...]:
        """``(B, 3, H, W)`` lightness, normalised as a grey image would be, and the colours ``(B, 2, H, W)``."""
        views = augmentation.true_colours()(images, generator)
        mean, std = (
            torch.tensor(own, device=views.device).view(1, -1, 1, 1) for own in (augmentation.mean, augmentation.std)
        )
        lab = rgb_to_lab(torch.addcmul(mean, views, std).clamp(0, 1))  # (B, 3, H, W)
        return (lab[:, :1] / 100 - mean) / std, lab[:, 1:]

    def loss(self, views: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """Cross-entropy over the colours, mean over the cells of the feature map."""
        lightness, ab = views
        logits = self.head(self.backbone.forward_map(lightness))  # (B, Q, h, w)
        targets = nearest_colours(F.adaptive_avg_pool2d(ab, logits.shape[2:]), self.options.grid)  # (B, h, w)
        return F.cross_entropy(logits.float(), targets)

    def chance_loss(self, batch_size: int) -> None:
        """None: ln Q tells little, for images of one kind have few of the colours."""
        return
