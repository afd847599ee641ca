"""Self-pacing: easy tasks first; a task joins when its loss is below a threshold that grows over the stage.

Kumar et al., "Self-Paced Learning for Latent Variable Models", NeurIPS 2010, with tasks for samples, as the AISEEME
project has it: losses are divided by what they were at the start, for those of different tasks have different scales.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field, model_validator
from torch import Tensor

from aiseeme_models.options import Options
from aiseeme_models.pretext.weighting.base import weightings
from aiseeme_models.pretext.weighting.round_losses import RoundLosses, RoundWeighting

_TINY = 1e-12


class SelfPacedOptions(Options):
    """Options of `SelfPaced`. A task that learns nothing stays at 1, and joins half way by the defaults."""

    first_threshold: float = Field(0.5, gt=0, le=1000, description="at the stage's start; 1 is a task's first loss")
    last_threshold: float = Field(2.0, gt=0, le=1000, description="at the stage's end")
    soft: bool = Field(False, description="weights between 0 and 1 instead of in or out")

    @model_validator(mode="after")
    def _grows(self) -> SelfPacedOptions:
        if self.last_threshold < self.first_threshold:
            raise ValueError("last_threshold must not be below first_threshold: harder tasks join, none leaves")
        return self

    def threshold(self, progress: float) -> float:
        """λ, which grows by the same factor in equal parts of the stage, as in the paper."""
        return float(self.first_threshold * (self.last_threshold / self.first_threshold) ** progress)


def self_paced_weights(relative: Sequence[float], threshold: float, *, soft: bool) -> list[float]:
    """Which tasks count: what minimises ``sum_t v_t L_t - λ sum_t v_t`` over ``v_t`` in {0, 1}.

    Args:
        relative: each task's loss over the one it began with.
        threshold: λ.
        soft: ``v_t = max(0, 1 - L_t / λ)`` instead (Jiang et al. 2014, linear soft weighting).

    Returns:
        v. Where no task is below the threshold, the easiest one counts alone: a round must train something.
    """
    if min(relative) >= threshold:
        easiest = relative.index(min(relative))
        return [float(task == easiest) for task in range(len(relative))]
    return [max(0.0, 1 - loss / threshold) if soft else float(loss < threshold) for loss in relative]


@weightings.register("self-paced")
class SelfPaced(RoundWeighting[SelfPacedOptions]):
    """Tasks in or out by the last round, of each site its own; a task that is out is measured all the same."""

    paper = "Kumar et al. 2010, NeurIPS 23"
    options_type = SelfPacedOptions

    _knows_starts = False

    def reset_local(self) -> None:
        """See `Weighting.reset_local`."""
        super().reset_local()
        self._knows_starts = False

    def begin_round(self) -> None:
        """See `RoundWeighting.begin_round`."""
        super().begin_round()
        self._knows_starts = bool(self.local.rounds)

    def weigh(self, losses: RoundLosses) -> list[float]:
        """See `self_paced_weights`."""
        relative: list[float] = (losses.last / losses.first.clamp(min=_TINY)).tolist()
        return self_paced_weights(relative, self.options.threshold(float(losses.progress)), soft=self.options.soft)

    def objective(self, losses: Sequence[Tensor]) -> Tensor:
        """``sum_t v_t L_t / L_t(0)``; in the first round, a step's own loss stands for ``L_t(0)``."""
        starts = list(self.local.first.float()) if self._knows_starts else [loss.detach() for loss in losses]
        terms = [
            weight * loss / start.clamp(min=_TINY)
            for weight, loss, start in zip(self.weights, losses, starts, strict=True)
            if weight > 0
        ]
        return torch.stack(terms).sum()
