"""Patches of the cells of a 3x3 grid, and what the tasks that ask where a patch belongs have in common.

As in OpenSelfSup, every cell is cropped to 3/4 of its side at a random place, which leaves a gap between patches and
jitters them, so that continued lines do not give the answer away.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aiseeme_models.backbones import PER_IMAGE_NORMS, Norm
from aiseeme_models.errors import InputError
from aiseeme_models.pretext.base import PretextTask
from aiseeme_models.pretext.statistics import own_statistics, remember_statistics

GRID = 3
CELLS = GRID * GRID
_SMALLEST_IMAGE = 48


def check_image_size(task: str, image_size: int) -> None:
    """Refuse images whose patches would be smaller than 12 px: they show nothing.

    Raises:
        InputError: with the smallest size that would do.
    """
    if image_size < _SMALLEST_IMAGE:
        raise InputError(
            f"{task} cuts an image into a 3x3 grid: images.size is {image_size}, it must be at least {_SMALLEST_IMAGE}"
        )


def cut_patches(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random patch of every cell, in row-major order of the grid.

    Args:
        images: ``(B, C, H, W)``.
        generator: CPU generator of the places.

    Returns:
        ``(9B, C, p, p)`` with p = 3/4 of a third of the shorter side; nine consecutive rows an image.
    """
    batch, channels, height, width = images.shape
    cell = min(height, width) // GRID
    side = cell * 3 // 4
    device = images.device
    jitter = torch.randint(0, cell - side + 1, (batch, CELLS, 2), generator=generator).to(device)  # (B, 9, 2)
    corner = torch.cartesian_prod(torch.arange(GRID), torch.arange(GRID)).to(device) * cell  # (9, 2)
    span = torch.arange(side, device=device)
    rows = (corner[:, 0] + jitter[..., 0])[..., None] + span  # (B, 9, p)
    columns = (corner[:, 1] + jitter[..., 1])[..., None] + span  # (B, 9, p)
    flat = (rows[..., :, None] * width + columns[..., None, :]).view(batch, 1, -1)  # (B, 1, 9*p*p)
    picked = images.reshape(batch, channels, -1).gather(2, flat.expand(-1, channels, -1))  # (B, C, 9*p*p)
    patches = picked.view(batch, channels, CELLS, side, side).transpose(1, 2)  # (B, 9, C, p, p)
    return patches.reshape(-1, channels, side, side)  # (9B, C, p, p)


class PatchTask(PretextTask):
    """A task whose views are patches ``(9B, C, p, p)``, the plain images ``(B, C, H, W)``, and what else it needs."""

    family = "geometric"
    in_patches = True

    @classmethod
    def decomposes_per_image(cls, norm: Norm) -> bool:
        """True without batch statistics; the unit is an image with its nine patches."""
        return norm in PER_IMAGE_NORMS

    def encoded(self, patches: Tensor) -> Tensor:
        """The features ``(9B, D)`` of patches, normalised by their own statistics."""
        with own_statistics(self.backbone):
            features: Tensor = self.backbone(patches)
        return features

    def after_step(self, views: tuple[Tensor, ...], progress: float) -> None:
        """See `PretextTask.after_step`: the backbone remembers the statistics of images."""
        if views:  # none where a private step drew nobody
            remember_statistics(self.backbone, views[1])
