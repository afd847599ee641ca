"""What is tried to find a stage's learning rate and batch size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from aiseeme_models.options import Options
from aiseeme_models.seeding import generator

_FACTOR = 30.0  # how far the rates that are tried reach to both sides of the optimiser's default

Rate = Annotated[float, Field(gt=0, le=1e3)]
Batch = Annotated[int, Field(ge=1, le=65536)]


@dataclass(frozen=True)
class Setting:
    """A learning rate and a batch size."""

    lr: float
    batch_size: int

    @property
    def title(self) -> str:
        """For people: ``"lr 0.003, batch 64"``."""
        return f"lr {self.lr:.3g}, batch {self.batch_size}"


class TuneOptions(Options):
    """``[curriculum.stage.tune]``; ``lr = "auto"`` in a stage is short for all of its defaults.

    Attributes:
        method: ``"asha"``: successive halving over rounds (Li et al. 2020, arXiv 1810.05934); ``"range"``: a
            learning-rate range test (Smith 2017, arXiv 1506.01186) at each site, of which the median is taken.
        lr: smallest and largest rate; None: a 30th of the optimiser's default to 30 times it.
        candidates: how many settings are tried (asha).
        batch_sizes: batch sizes that are tried. Those that are too large for a site's images or for its memory, which
            it measures, are left out. With ``"range"`` the largest that is left is taken. Empty: the stage's own.
        reduction: of the settings that have come so far, one in this many goes on (asha; the paper's eta).
        min_rounds: rounds of a setting when it is judged for the first time; None: the stage's / ``reduction`` (asha).
        max_rounds: rounds of a setting when it is judged for the last time; None: the stage's (asha).
        score: ``"heldout"``: by the pretext loss of held-out images; ``"probe"``: by the sites' k-NN probes on their
            own labels. None: by the loss, where losses can be compared: one batch size, one task, and a loss that
            tells if the task was learnt better; else by the probe.
        sites: sites that train a setting in one round; the others try other settings meanwhile (asha).
        steps: optimiser steps of a range test.
    """

    method: Literal["asha", "range"] = "asha"
    lr: tuple[Rate, Rate] | None = Field(default=None, strict=False)
    candidates: int = Field(default=9, ge=2, le=256)
    batch_sizes: tuple[Batch, ...] = Field(default=(), strict=False, max_length=16)
    reduction: int = Field(default=3, ge=2, le=16)
    min_rounds: int | None = Field(default=None, ge=1)
    max_rounds: int | None = Field(default=None, ge=1)
    score: Literal["heldout", "probe"] | None = None
    sites: int = Field(default=1, ge=1)
    steps: int = Field(default=100, ge=20, le=10_000)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.lr is not None and self.lr[0] >= self.lr[1]:
            raise ValueError(f"lr is the smallest and the largest rate that are tried: {list(self.lr)} do not rise")
        if len(set(self.batch_sizes)) < len(self.batch_sizes):
            raise ValueError("batch_sizes names a size twice")
        if self.max_rounds is not None and self.min_rounds is not None and self.max_rounds < self.min_rounds:
            raise ValueError(f"max_rounds = {self.max_rounds} is less than min_rounds = {self.min_rounds}")
        if self.method == "asha" and len(self.batch_sizes) > self.candidates:
            raise ValueError(f"{len(self.batch_sizes)} batch_sizes are more than the {self.candidates} candidates")
        if len(self.batch_sizes) > 1 and self.score == "heldout" and self.method == "asha":
            raise ValueError("losses of other batch sizes cannot be compared: leave score out, or take 'probe'")
        return self

    def rates(self, default: float) -> tuple[float, float]:
        """Smallest and largest rate; ``default`` is the optimiser's own."""
        return self.lr or (default / _FACTOR, default * _FACTOR)

    def settings(self, default: float, batch_sizes: Sequence[int], seed: int) -> list[Setting]:
        """What is tried: rates in equal ratios, dealt to the batch sizes in turn, in an order that the seed gives.

        The order matters: successive halving judges what has come so far, and that should be a fair sample.

        Args:
            default: the optimiser's own rate.
            batch_sizes: those that fit.
            seed: the federation's.
        """
        import torch

        rates = np.geomspace(*self.rates(default), self.candidates)
        sizes = sorted(batch_sizes)
        found = [Setting(float(f"{rate:.3g}"), sizes[place % len(sizes)]) for place, rate in enumerate(rates.tolist())]
        order = torch.randperm(len(found), generator=generator(seed, "tune"))
        return [found[place] for place in order.tolist()]

    def rungs(self, rounds: int) -> list[int]:
        """Rounds of the trainings after which a setting is judged, each ``reduction`` times as long as the one before.

        At the last rung there are at least two settings to choose from, and it is not above ``max_rounds``.

        Args:
            rounds: the stage's own.
        """
        most = max(self.min_rounds or 1, self.max_rounds or rounds)
        rungs, left = [self.min_rounds or min(most, -(-rounds // self.reduction))], self.candidates // self.reduction
        while left >= 2 and rungs[-1] < most:
            rungs.append(min(most, rungs[-1] * self.reduction))
            left //= self.reduction
        return rungs
