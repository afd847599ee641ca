"""How much of a network's attention lies where the disease is: inside the mask of a lesion, or of the lungs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from aiseeme_models.errors import InputError

THRESHOLD = 0.5


def resized_to(maps: Tensor, masks: Tensor) -> Tensor:
    """Maps ``(B, h, w)`` at the size of the masks ``(B, H, W)``, interpolated linearly.

    Raises:
        InputError: there are not as many maps as masks.
    """
    if len(maps) != len(masks):
        raise InputError(f"attention: {len(maps)} maps, but {len(masks)} masks")
    larger = functional.interpolate(maps.unsqueeze(1), size=masks.shape[1:], mode="bilinear", align_corners=False)
    return larger.squeeze(1)


def energy_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of each map that lies in its mask (the energy-based pointing game): ``sum_mask CAM / sum CAM``.

    Wang et al. 2020, "Score-CAM" (arXiv 1910.01279), section 4.3. A map that is the same everywhere has the mask's
    share of the image, which a figure must be held against.

    Args:
        maps: ``(B, h, w)``, none negative.
        masks: ``(B, H, W)`` bool.

    Returns:
        ``(B,)`` float32 in [0, 1], NaN for a map that is 0 everywhere.
    """
    larger = resized_to(maps, masks).double()
    return ((larger * masks).sum(dim=(1, 2)) / larger.sum(dim=(1, 2))).float()


def overlap(maps: Tensor, masks: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Intersection over union of the mask and of where the map is at least ``threshold`` of its maximum.

    Args:
        maps: ``(B, h, w)``, none negative.
        masks: ``(B, H, W)`` bool.
        threshold: in (0, 1].

    Returns:
        ``(B,)`` float32 in [0, 1], NaN for a map that is 0 everywhere.
    """
    larger = resized_to(maps, masks)
    highest = larger.amax(dim=(1, 2), keepdim=True)
    hot = larger >= threshold * highest
    both, either = (hot & masks).sum(dim=(1, 2)), (hot | masks).sum(dim=(1, 2))
    share = both / either
    return torch.where(highest[:, 0, 0] > 0, share, torch.nan)


def mask_share(masks: Tensor) -> Tensor:
    """Share of the image that each mask ``(B, H, W)`` covers, ``(B,)``: the energy of a map that knows nothing."""
    return masks.float().mean(dim=(1, 2))
