"""Dynamic weight average: a task whose loss falls more slowly than the others' counts more.

Liu et al., "End-to-End Multi-Task Learning with Attention", 2019 (arXiv 1803.10704), eq. 7, with rounds for epochs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from aiseeme_models.options import Options
from aiseeme_models.pretext.weighting.base import weightings
from aiseeme_models.pretext.weighting.round_losses import RoundLosses, RoundWeighting

_TINY = 1e-12  # a loss of 0 has nothing left to fall


class DynamicAverageOptions(Options):
    """Options of `DynamicAverage`."""

    temperature: float = Field(2.0, gt=0, le=100, description="the larger, the more equal the weights (paper: 2)")


def dynamic_average(last: Tensor, before: Tensor, temperature: float) -> Tensor:
    """``T softmax(r / temperature)`` with ``r_t = L_t(e-1) / L_t(e-2)``: ``(T,)`` weights whose mean is 1.

    Args:
        last: mean losses of the last round, ``(T,)`` float64, at least 0.
        before: those of the round before it.
        temperature: of the softmax.
    """
    ratios = last.clamp(min=_TINY) / before.clamp(min=_TINY)
    return len(ratios) * torch.softmax(ratios / temperature, dim=0)


@weightings.register("dwa")
class DynamicAverage(RoundWeighting[DynamicAverageOptions]):
    """Weights from the two rounds before, of each site its own."""

    paper = "Liu et al. 2019, arXiv 1803.10704"
    options_type = DynamicAverageOptions

    def weigh(self, losses: RoundLosses) -> list[float]:
        """See `dynamic_average`."""
        weights: list[float] = dynamic_average(
            losses.last.cpu(), losses.before.cpu(), self.options.temperature
        ).tolist()
        return weights

    def objective(self, losses: Sequence[Tensor]) -> Tensor:
        """``sum_t w_t L_t``."""
        return torch.stack([weight * loss for weight, loss in zip(self.weights, losses, strict=True)]).sum()
