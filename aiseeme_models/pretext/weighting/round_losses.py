"""Weights that follow from the tasks' mean losses in earlier rounds, kept at the site."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from aiseeme_models.pretext.weighting.base import OptionsT, Weighting

FIRST_ROUNDS = 2
"""In so many rounds of a site every task counts alike: before, there are no two rounds to be compared."""


class RoundLosses(nn.Module):
    """The tasks' mean losses in the rounds of a stage in which a site took part, ``(T,)`` float64 each.

    Attributes:
        first: of its first round.
        before: of the last round but one.
        last: of the last round.
        rounds: how many are done.
        running: the sum over the steps of the round that is going on.
        steps: how many these are.
        progress: how much of the stage was done after the last step, in [0, 1].
    """

    first: Tensor
    before: Tensor
    last: Tensor
    rounds: Tensor
    running: Tensor
    steps: Tensor
    progress: Tensor

    def __init__(self, tasks: int) -> None:
        super().__init__()
        for name in ("first", "before", "last", "running"):
            self.register_buffer(name, torch.zeros(tasks, dtype=torch.float64))
        for name in ("rounds", "steps"):
            self.register_buffer(name, torch.zeros((), dtype=torch.long))
        self.register_buffer("progress", torch.zeros((), dtype=torch.float64))

    def reset(self) -> None:
        """As before the first round."""
        for buffer in self.buffers():
            buffer.zero_()

    def close_round(self) -> None:
        """What was added since the last call becomes the last round; without a step in between nothing changes."""
        if not self.steps:
            return
        mean = self.running / self.steps
        if not self.rounds:
            self.first.copy_(mean)
        self.before.copy_(self.last)
        self.last.copy_(mean)
        self.rounds.add_(1)
        self.running.zero_()
        self.steps.zero_()

    def add(self, losses: Tensor, progress: float) -> None:
        """A step's losses ``(T,)``, and how much of the stage is done after it."""
        self.running.add_(losses)
        self.steps.add_(1)
        self.progress.fill_(progress)


class RoundWeighting(Weighting[OptionsT]):
    """Weights that are the same in all steps of a round."""

    privacy_obstacle = (
        "weighs its tasks by losses that are kept without noise, which tell of patients: use weighting = 'equal'"
    )

    local: RoundLosses

    def __init__(self, tasks: int, options: OptionsT) -> None:
        super().__init__(tasks, options)
        self.local = RoundLosses(tasks)
        self.weights = [1.0] * tasks

    @abstractmethod
    def weigh(self, losses: RoundLosses) -> list[float]:
        """The weights of the round to come, after `FIRST_ROUNDS` rounds or more."""

    def reset_local(self) -> None:
        """See `Weighting.reset_local`."""
        self.local.reset()
        self.weights = [1.0] * self.tasks

    def begin_round(self) -> None:
        """Look back at the rounds that are done."""
        self.local.close_round()
        self.weights = self.weigh(self.local) if self.local.rounds >= FIRST_ROUNDS else [1.0] * self.tasks

    def after_step(self, losses: Tensor, progress: float) -> None:
        """See `Weighting.after_step`."""
        self.local.add(losses, progress)
