"""Uncertainty: each task has a variance that is learnt, and counts the less the larger it is.

Kendall et al., "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics", 2018 (arXiv
1705.07115), with ``s_t`` for the logarithm of the variance. Where ``L_t`` stays the same, ``s_t`` goes to ``ln L_t``: a
weight of ``1 / L_t``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from aiseeme_models.options import Options
from aiseeme_models.pretext.weighting.base import Weighting, weightings


class UncertaintyOptions(Options):
    """There is nothing to choose."""


def uncertainty_objective(losses: Tensor, log_variances: Tensor) -> Tensor:
    """``sum_t exp(-s_t) L_t + s_t``; may be below 0.

    Args:
        losses: ``(T,)`` float32.
        log_variances: s, ``(T,)`` float32.
    """
    return (torch.exp(-log_variances) * losses + log_variances).sum()


class LogVariances(nn.Module):
    """The trained ``s_t`` of the tasks. As a vector it is neither decayed nor adapted by LARS."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(tasks))

    def start(self, generator: torch.Generator) -> None:
        """All variances are 1: every task counts alike."""
        self.values.zero_()

    def forward(self, losses: Tensor) -> Tensor:
        """See `uncertainty_objective`."""
        return uncertainty_objective(losses, self.values)


@weightings.register("uncertainty")
class Uncertainty(Weighting[UncertaintyOptions]):
    """Log variances that all sites train together."""

    paper = "Kendall et al. 2018, arXiv 1705.07115"
    options_type = UncertaintyOptions
    privacy_obstacle = (
        "trains its weights on the losses of whole batches (weighting = 'uncertainty'), where no patient's part of a "
        "gradient can be told and clipped: use weighting = 'equal'"
    )

    shared: LogVariances

    def __init__(self, tasks: int, options: UncertaintyOptions) -> None:
        super().__init__(tasks, options)
        self.shared = LogVariances(tasks)

    def objective(self, losses: Sequence[Tensor]) -> Tensor:
        """See `Weighting.objective`."""
        value: Tensor = self.shared(torch.stack(list(losses)))
        return value
