"""First weights from a given random stream, without global random state."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@runtime_checkable
class KnowsItsStart(Protocol):
    """A layer with first values of its own."""

    def start(self, generator: torch.Generator) -> None:
        """Give the layer's own parameters their first values."""
        ...


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Give every parameter and running statistic of ``module`` its first value.

    Convolutions: He normal, fan-out (He et al. 2015, as torchvision's ResNets). Linear layers: uniform in
    ``+-1/sqrt(fan_in)``. Normalisation: weight 1, bias 0, statistics reset. A layer that `KnowsItsStart`: what it says.

    Raises:
        TypeError: a layer type with parameters that has no rule here.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()
        elif isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            layer.weight.uniform_(-bound, bound, generator=generator)
            if layer.bias is not None:
                layer.bias.uniform_(-bound, bound, generator=generator)
        elif isinstance(layer, (_BatchNorm, nn.GroupNorm, nn.LayerNorm)):
            if isinstance(layer, _BatchNorm):
                layer.reset_running_stats()
            if layer.weight is not None:
                layer.weight.fill_(1)
            if layer.bias is not None:
                layer.bias.zero_()
        elif isinstance(layer, KnowsItsStart):
            layer.start(generator)
        elif any(True for _ in layer.parameters(recurse=False)):
            raise TypeError(f"no rule to initialise {type(layer).__name__} at {name!r}")
