"""Normalisation layers by the name that configurations use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import nn

Norm = Literal["group", "batch", "batch-local"]
"""``group``: no statistics at all. ``batch``: statistics are averaged by the coordinator.

``batch-local``: SiloBN (Andreux et al. 2020): affine parameters are shared, running statistics stay at the site.
"""


def group_norm_2d(channels: int) -> nn.Module:
    """GroupNorm with 16 channels a group and at most 32 groups (Wu & He 2018, both settings of their table 3)."""
    groups = max(1, min(32, channels // 16))
    return nn.GroupNorm(groups, channels)


def norm_2d(norm: Norm) -> Callable[[int], nn.Module]:
    """The factory of normalisation layers for ``(B, C, H, W)`` feature maps."""
    factories: dict[Norm, Callable[[int], nn.Module]] = {
        "group": group_norm_2d,
        "batch": nn.BatchNorm2d,
        "batch-local": nn.BatchNorm2d,
    }
    return factories[norm]


def norm_1d(norm: Norm) -> Callable[[int], nn.Module]:
    """The factory of normalisation layers for ``(B, D)`` features."""
    factories: dict[Norm, Callable[[int], nn.Module]] = {
        "group": nn.LayerNorm,
        "batch": nn.BatchNorm1d,
        "batch-local": nn.BatchNorm1d,
    }
    return factories[norm]
