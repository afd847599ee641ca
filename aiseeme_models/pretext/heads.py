"""Projection heads."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from aiseeme_models.backbones.norm import Norm, norm_1d


def mlp(in_dim: int, hidden_dim: int, out_dim: int, norm: Norm | None, *, layers: int = 2) -> nn.Sequential:
    """Linear layers with normalisation (if any) and ReLU between them: ``(B, in_dim)`` to ``(B, out_dim)``."""
    modules: list[nn.Module] = []
    for width in (in_dim, *[hidden_dim] * (layers - 2)):
        normalise: list[nn.Module] = [] if norm is None else [norm_1d(norm)(hidden_dim)]
        modules += [nn.Linear(width, hidden_dim, bias=norm is None), *normalise, nn.ReLU()]
    return nn.Sequential(*modules, nn.Linear(hidden_dim, out_dim))


class PrototypeLayer(nn.Linear):
    """Inner products with directions of length 1: a linear layer that is weight-normalised, with gain 1 and no bias.

    The weight itself keeps its length, so that optimisers and the mean of several sites see an ordinary matrix.
    """

    def __init__(self, in_dim: int, prototypes: int) -> None:
        super().__init__(in_dim, prototypes, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """``(B, in_dim)`` to ``(B, prototypes)``."""
        return F.linear(input, F.normalize(self.weight, dim=1))
