"""From sRGB to CIE 1976 L*a*b*, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

# IEC 61966-2-1: linear sRGB to XYZ, D65, 2 degrees; its white is RGB (1, 1, 1).
_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_LINEAR_UP_TO = 0.04045
_DELTA = 6 / 29


def rgb_to_lab(pixels: Tensor) -> Tensor:
    """L* in [0, 100], a* and b* in about [-108, 99], under illuminant D65.

    Args:
        pixels: ``(B, 3, H, W)`` float32 sRGB in [0, 1].

    Returns:
        ``(B, 3, H, W)`` float32.
    """
    with torch.autocast(pixels.device.type, enabled=False):
        linear = torch.where(pixels > _LINEAR_UP_TO, ((pixels + 0.055) / 1.055) ** 2.4, pixels / 12.92)
        to_xyz = torch.tensor(_TO_XYZ, device=pixels.device)
        relative = torch.einsum("ij,bjhw->bihw", to_xyz / to_xyz.sum(dim=1, keepdim=True), linear)  # to the white
        f = torch.where(relative > _DELTA**3, relative ** (1 / 3), relative / (3 * _DELTA**2) + 4 / 29)
        x, y, z = f.unbind(1)
        return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)
