"""Projection heads."""

from __future__ import annotations

from torch import nn

from aiseeme_models.backbones.norm import Norm, norm_1d


def mlp(in_dim: int, hidden_dim: int, out_dim: int, norm: Norm | None) -> nn.Sequential:
    """Linear, normalisation (if any), ReLU, linear: ``(B, in_dim)`` to ``(B, out_dim)``."""
    normalise: list[nn.Module] = [] if norm is None else [norm_1d(norm)(hidden_dim)]
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim, bias=norm is None), *normalise, nn.ReLU(), nn.Linear(hidden_dim, out_dim)
    )
