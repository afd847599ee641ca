"""Multi-crop: two global views of an image, and cheap small ones of parts of it.

Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", 2020 (arXiv 2006.09882),
section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field, model_validator
from torch import Tensor

from aiseeme_models.errors import InputError
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.options import Options

GLOBAL_CROPS = 2
_LOCAL_SIDE = 96 / 224  # of the paper
_SMALLEST_CROP = 12


class MultiCropOptions(Options):
    """Options of the local crops; the global ones are the domain's usual views (ImageNet: 6 of 0.05 to 0.14)."""

    local_crops: int = Field(4, ge=0, le=32, description="local crops of an image, beside the two global ones")
    local_size: int | None = Field(None, ge=1, description="side of a local crop in px; default: 3/7 of the image's")
    local_min: float = Field(0.1, gt=0, le=1, description="smallest part of the area that a local crop shows")
    local_max: float = Field(0.4, gt=0, le=1, description="largest part of the area that a local crop shows")

    @model_validator(mode="after")
    def _ordered(self) -> MultiCropOptions:
        if self.local_min > self.local_max:
            raise ValueError("local_min must not exceed local_max")
        return self

    def local_side(self, image_size: int) -> int:
        """Side of a local crop of images of ``image_size``, in px."""
        return self.local_size or round(image_size * _LOCAL_SIDE)


def check_crops(name: str, options: MultiCropOptions, image_size: int) -> None:
    """Refuse local crops that do not fit the images of the task called ``name``; under 12 px they show nothing.

    Raises:
        InputError: with what is wrong and what would be right.
    """
    side = options.local_side(image_size)
    if options.local_crops and not _SMALLEST_CROP <= side <= image_size:
        raise InputError(
            f"{name}'s local crops are {side} px wide and images.size is {image_size}: local_size must be at least"
            f" {_SMALLEST_CROP} and at most images.size; local_crops = 0 does without them"
        )


def multi_crop(
    images: Tensor, augmentation: BatchAugmentation, generator: torch.Generator, options: MultiCropOptions
) -> tuple[Tensor, Tensor]:
    """The views of a batch, image by image.

    Args:
        images: ``(B, C, S, S)`` uint8.
        augmentation: the domain's random augmentation; local crops show other parts of the area.
        generator: CPU generator, the only source of randomness.
        options: number, size and scale of the local crops.

    Returns:
        Global crops ``(2B, C, S, S)`` and local crops ``(nB, C, s, s)``, float32 and normalised; n may be 0.
    """
    side = options.local_side(images.shape[-1])
    local = augmentation.cropped(options.local_min, options.local_max)
    wide = [augmentation(images, generator) for _ in range(GLOBAL_CROPS)]
    small = [local(images, generator, side) for _ in range(options.local_crops)]
    none = wide[0].new_zeros((0, images.shape[1], side, side))
    return _image_by_image(wide), _image_by_image(small) if small else none


def encode_crops(encode: Callable[[Tensor], Tensor], wide: Tensor, small: Tensor) -> Tensor:
    """One pass for each resolution (section 3.2), as a batch has images of one size only.

    Args:
        encode: ``(R, C, h, w)`` to ``(R, D)``, for instance the backbone.
        wide: global crops, see `multi_crop`.
        small: local crops.

    Returns:
        ``(B, 2 + n, D)``: of each image first its global crops.
    """
    images = len(wide) // GLOBAL_CROPS
    encoded = [torch.unflatten(encode(crops), 0, (images, -1)) for crops in (wide, small) if len(crops)]
    return torch.cat(encoded, dim=1)


def _image_by_image(views: list[Tensor]) -> Tensor:
    """``k`` views ``(B, C, h, w)`` of a batch to ``(kB, C, h, w)`` with an image's views together."""
    return torch.stack(views, dim=1).flatten(0, 1)
