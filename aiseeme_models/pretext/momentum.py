"""A network that follows another one slowly and gives its targets."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class MomentumNetwork(nn.Module):
    """An exponential moving average of ``source``, without gradients.

    Always in evaluation mode, its batch norms using the averaged statistics (EMAN, Cai et al. 2021, arXiv 2101.08482):
    a target then depends on one image only, and MoCo's shuffling of batches is not needed.

    Args:
        source: the online network.
    """

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(source).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> MomentumNetwork:
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """What the followed network gives for ``images``."""
        output: Tensor = self.network(images)
        return output

    @torch.no_grad()
    def copy_from(self, source: nn.Module) -> None:
        """Become ``source``, statistics included."""
        for own, other in zip(_tensors(self.network), _tensors(source), strict=True):
            own.copy_(other)

    @torch.no_grad()
    def follow(self, source: nn.Module, momentum: float) -> None:
        """``own = momentum * own + (1 - momentum) * source`` for parameters and statistics."""
        own = [tensor for tensor in _tensors(self.network) if tensor.is_floating_point()]
        other = [tensor.detach() for tensor in _tensors(source) if tensor.is_floating_point()]
        torch._foreach_lerp_(own, other, 1 - momentum)


def cosine_momentum(start: float, progress: float) -> float:
    """The momentum that goes from ``start`` to 1 along a half cosine while ``progress`` goes from 0 to 1 (BYOL)."""
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
