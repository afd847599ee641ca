"""Masked image reconstruction: what was under the squares that were cut out?

Xie et al., "SimMIM: A Simple Framework for Masked Image Modeling", 2022 (arXiv 2111.09886): random squares, a decoder
of one layer, L1 on the hidden pixels only. A convolution has no mask token; the squares become 0, the images' mean.

Tian et al. 2023 (SparK, arXiv 2301.03580) show what a dense convolution pays for that: it sees statistics that whole
images do not have, and the holes close from layer to layer. Their way out, sparse convolutions with the mask at every
layer and a decoder over all scales, is not taken here: it needs another version of every backbone and norm, and a rule
of its own for each under differential privacy. Here every registered backbone does as it is.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from aiseeme_models.backbones import PER_IMAGE_NORMS, Backbone, Norm
from aiseeme_models.errors import InputError
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.options import Options
from aiseeme_models.pretext.base import PretextTask, Recipe, options_of, pretext_tasks
from aiseeme_models.pretext.statistics import own_statistics, remember_statistics

_SQUARES_A_SIDE = 6  # SimMIM: 32 px of 192
_SMALLEST_SQUARE = 4
_PROBED_SIDE = 64


class MaskedOptions(Options):
    """Options of `Masked`."""

    patch: int | None = Field(
        None,
        ge=1,
        description="side of the hidden squares in pixels; default: the largest that divides images.size and is at most"
        " a sixth of it",
    )
    mask_ratio: float = Field(0.6, gt=0, lt=1, description="part of an image that is hidden")

    def patch_of(self, image_size: int) -> int:
        """The side of the squares in images of ``image_size``."""
        if self.patch is not None:
            return self.patch
        return max(side for side in range(1, max(1, image_size // _SQUARES_A_SIDE) + 1) if image_size % side == 0)

    def hidden_of(self, squares: int) -> int:
        """How many of an image's ``squares`` are hidden."""
        return math.ceil(self.mask_ratio * squares - 1e-9)  # 0.55 of 100 is 55, not 55.00000000000001


def masked_l1(reconstructed: Tensor, images: Tensor, hidden: Tensor) -> Tensor:
    """Mean absolute error of the hidden pixels of each image, mean over the images; in float32.

    Args:
        reconstructed: ``(B, C, H, W)``.
        images: ``(B, C, H, W)``.
        hidden: ``(B, 1, H, W)`` bool; some of every image.
    """
    errors = (reconstructed.float() - images.float()).abs().mean(dim=1, keepdim=True)  # (B, 1, H, W)
    return ((errors * hidden).sum(dim=(1, 2, 3)) / hidden.sum(dim=(1, 2, 3))).mean()


@pretext_tasks.register("masked")
class Masked(PretextTask):
    """Images with squares cut out, the last feature map, and a 1x1 convolution that writes all pixels of a cell."""

    family = "generative"
    paper = "Xie et al. 2022, arXiv 2111.09886"
    recipe = Recipe("adamw", 8e-4, 2048, 0.05)
    options_type = MaskedOptions

    options: MaskedOptions

    @classmethod
    def build(cls, backbone: Backbone, options: Options, norm: Norm) -> Masked:
        """See `PretextTask.build`."""
        options = options_of(MaskedOptions, options)
        stride = _output_stride(backbone)
        pixels = backbone.in_channels * stride**2
        task = cls(backbone, nn.Sequential(nn.Conv2d(backbone.feature_dim, pixels, 1), nn.PixelShuffle(stride)))
        task.options = options
        return task

    @classmethod
    def decomposes_per_image(cls, norm: Norm) -> bool:
        """True without batch statistics."""
        return norm in PER_IMAGE_NORMS

    @classmethod
    def check(cls, options: Options, *, norm: Norm, batch_size: int, image_size: int, channels: int) -> None:
        """See `PretextTask.check`: squares must tile the image, and some must stay."""
        options = options_of(MaskedOptions, options)
        patch = options.patch_of(image_size)
        if image_size % patch:
            raise InputError(
                f"masked's squares must tile the image: images.size is {image_size}, patch is {patch}; "
                f"for instance patch = {MaskedOptions().patch_of(image_size)}"
            )
        if options.patch is None and patch < _SMALLEST_SQUARE:
            raise InputError(
                f"masked finds no squares of {_SMALLEST_SQUARE} px or more that tile {image_size} px: take an"
                " images.size of at least 24 that is a multiple of 8 or 12"
            )
        squares = (image_size // patch) ** 2
        if options.hidden_of(squares) == squares:
            raise InputError(
                f"masked would hide all {squares} squares of an image: take a lower mask_ratio or a smaller patch"
            )

    def views(self, images: Tensor, augmentation: BatchAugmentation, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Whole views ``(B, C, H, W)`` and what of them is hidden ``(B, 1, H, W)`` bool, the same area of each."""
        whole = augmentation(images, generator)
        patch = self.options.patch_of(images.shape[-1])
        rows, columns = (side // patch for side in images.shape[2:])
        chosen = torch.rand((len(images), rows * columns), generator=generator).argsort(dim=1)
        chosen = chosen[:, : self.options.hidden_of(rows * columns)]
        squares = torch.zeros((len(images), rows * columns), dtype=torch.bool).scatter_(1, chosen, True)
        squares = squares.view(-1, 1, rows, columns).to(images.device)
        return whole, squares.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)

    def loss(self, views: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """L1 on the hidden pixels, in units of the normalised images."""
        whole, hidden = views
        height, width = whole.shape[2:]
        with own_statistics(self.backbone):
            features = self.backbone.forward_map(whole.masked_fill(hidden, 0))  # (B, D, h, w)
        reconstructed = self.head(features)
        # The cells of a map of an image that the stride does not divide reach beyond its right and lower edge.
        return masked_l1(reconstructed[..., :height, :width], whole, hidden)

    def after_step(self, views: tuple[Tensor, ...], progress: float) -> None:
        """See `PretextTask.after_step`: the backbone remembers the statistics of images without holes."""
        if views:  # none where a private step drew nobody
            remember_statistics(self.backbone, views[0])

    def chance_loss(self, batch_size: int) -> None:
        """None: answering with the mean everywhere costs what the images' contrast is."""
        return


@torch.no_grad()
def _output_stride(backbone: Backbone) -> int:
    """Pixels a cell of the last feature map, found by looking at one (in evaluation mode: no statistic changes)."""
    was_training = backbone.training
    weight = next(backbone.parameters())
    probe = torch.zeros((1, backbone.in_channels, _PROBED_SIDE, _PROBED_SIDE), device=weight.device, dtype=weight.dtype)
    cells = backbone.eval().forward_map(probe).shape[-1]
    backbone.train(was_training)
    return _PROBED_SIDE // cells
