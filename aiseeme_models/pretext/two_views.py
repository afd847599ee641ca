"""What the methods have in common that compare two views of every image over a batch."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from aiseeme_models.backbones import Norm
from aiseeme_models.errors import InputError
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.options import Options
from aiseeme_models.pretext.base import PretextTask


class TwoViewsOfABatch(PretextTask):
    """Two views of every image go through backbone and projector, and the images of a batch are compared.

    Attributes:
        compares: what is done with a batch, with the task's name, for errors.
    """

    compares: ClassVar[str]

    @classmethod
    def decomposes_per_image(cls, norm: Norm) -> bool:
        """False: an image is compared with the others of its batch."""
        return False

    @classmethod
    def check(cls, options: Options, *, norm: Norm, batch_size: int, image_size: int, channels: int) -> None:
        """See `PretextTask.check`."""
        if batch_size < 2:
            raise InputError(f"{cls.compares}: batch_size must be at least 2")

    @property
    def minimum_batch(self) -> int:
        """One image alone has nothing to be compared with."""
        return 2

    def views(self, images: Tensor, augmentation: BatchAugmentation, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Two independent views, each ``(B, C, H, W)``."""
        return augmentation(images, generator), augmentation(images, generator)

    def projections(self, views: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """The projections of both views, each ``(B, P)``."""
        first, second = self.head(self.backbone(torch.cat(views))).chunk(2)
        return first, second
