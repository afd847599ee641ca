"""Normalisation layers by the name that configurations use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

Norm = Literal["group", "group-ws", "batch", "batch-local"]
"""``group``: no statistics at all. ``group-ws``: the same with weight-standardised convolutions (Qiao et al. 2019).

``batch``: statistics are averaged by the coordinator. ``batch-local``: SiloBN (Andreux et al. 2020): affine parameters
are shared, running statistics stay at the site.
"""

PER_IMAGE_NORMS: frozenset[Norm] = frozenset({"group", "group-ws"})
"""The norms under which what an image becomes does not depend on the other images of its batch."""


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose filters have mean 0 and variance 1 over their inputs (Qiao et al. 2019, arXiv 1903.10520).

    With GroupNorm it takes the place of what batch statistics do for BYOL (Richemond et al. 2020, arXiv 2010.10241).
    """

    def forward(self, input: Tensor) -> Tensor:
        """``(B, in, h, w)`` to ``(B, out, h', w')``."""
        fan_in = self.weight[0].numel()
        filters = self.weight.flatten(1)  # (out, in * k * k)
        centred = filters - filters.mean(dim=1, keepdim=True)
        scale = torch.rsqrt(centred.square().mean(dim=1, keepdim=True) * fan_in + 1e-6)
        out: Tensor = self._conv_forward(input, (centred * scale).view_as(self.weight), self.bias)
        return out


@dataclass(frozen=True)
class Layers:
    """What a backbone is made of: its class of convolution, and the factory of its normalisation layers."""

    conv: type[nn.Conv2d]
    norm: Callable[[int], nn.Module]


def group_norm_2d(channels: int) -> nn.Module:
    """GroupNorm with 16 channels a group and at most 32 groups (Wu & He 2018, both settings of their table 3)."""
    groups = max(1, min(32, channels // 16))
    return nn.GroupNorm(groups, channels)


def layers_2d(norm: Norm) -> Layers:
    """The layers for ``(B, C, H, W)`` feature maps."""
    kinds: dict[Norm, Layers] = {
        "group": Layers(nn.Conv2d, group_norm_2d),
        "group-ws": Layers(StandardisedConv2d, group_norm_2d),
        "batch": Layers(nn.Conv2d, nn.BatchNorm2d),
        "batch-local": Layers(nn.Conv2d, nn.BatchNorm2d),
    }
    return kinds[norm]


def norm_1d(norm: Norm, *, affine: bool = True) -> Callable[[int], nn.Module]:
    """The factory of normalisation layers for ``(B, D)`` features, with or without trained weights and biases."""
    layer, batch = partial(nn.LayerNorm, elementwise_affine=affine), partial(nn.BatchNorm1d, affine=affine)
    factories: dict[Norm, Callable[[int], nn.Module]] = {
        "group": layer,
        "group-ws": layer,
        "batch": batch,
        "batch-local": batch,
    }
    return factories[norm]
