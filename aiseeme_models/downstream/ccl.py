"""CCL, class-wise curriculum learning: train on the easy classes first, and let the hard ones in as they come.

Escudero-Viñolo and López-Cifuentes, "CCL: Class-Wise Curriculum Learning for Class Imbalance Problems", ICIP 2022.
In a federation the difficulty of a class is the mean of its losses over all sites, from each site's sum and count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from aiseeme_models.errors import InputError
from aiseeme_models.options import Options


class CCLOptions(Options):
    """How classes are let in.

    Attributes:
        order: ``self-paced``: by the losses of the round before, anew each round; ``static``: by ``difficulties``;
            ``anti``: the hardest of those first, the control.
        start: share of the classes that are in when the warm-up is over; at least one is.
        increment: share of the classes that join at a time; at least one does.
        every: rounds between two times.
        warmup: rounds at the start in which all classes are in, before which no difficulty is known.
        difficulties: mean loss of each class under a model that was trained before, by class; ``static`` and ``anti``.
    """

    order: Literal["self-paced", "static", "anti"] = "self-paced"
    start: float = Field(default=0.5, gt=0, le=1)
    increment: float = Field(default=0.1, gt=0, le=1)
    every: int = Field(default=1, ge=1)
    warmup: int = Field(default=1, ge=0)
    difficulties: Mapping[str, float] | None = None

    @model_validator(mode="after")
    def _knows_what_is_hard(self) -> Self:
        if (self.order == "self-paced") == (self.difficulties is not None):
            raise InputError(
                f"ccl.order = {self.order!r} "
                + ("measures difficulties itself: leave ccl.difficulties out" if self.difficulties is not None
                   else "goes by ccl.difficulties, the mean loss of each class under a trained model: give them")
            )  # fmt: skip
        if self.order == "self-paced" and self.warmup == 0:
            raise InputError("ccl.warmup = 0: 'self-paced' needs a round on all classes to know which are hard")
        return self

    def admitted_classes(self, round_in_stage: int, classes: int) -> int:
        """How many of ``classes`` are in, in a round counted from 0.

        Never more than there are, so that the end of the curriculum cannot be overshot.
        """
        after = round_in_stage - self.warmup
        if after < 0:
            return classes
        first = max(1, round(self.start * classes))
        return min(classes, first + max(1, round(self.increment * classes)) * (after // self.every))

    def all_in_from(self, classes: int) -> int:
        """The first round after the warm-up in which all classes are in."""
        first = max(1, round(self.start * classes))
        steps = math.ceil(max(0, classes - first) / max(1, round(self.increment * classes)))
        return self.warmup + steps * self.every

    def progress(self, progress: float, rounds: int, classes: int) -> float:
        """How far the learning rate's schedule is: it waits at its start until all classes are in.

        Args:
            progress: how much of the stage is done, in [0, 1].
            rounds: the stage's rounds.
            classes: their number.
        """
        waits = min(self.all_in_from(classes) / rounds, 1.0)
        return 0.0 if progress < waits or waits == 1.0 else (progress - waits) / (1.0 - waits)


def class_difficulties(sums: Sequence[Sequence[float]], counts: Sequence[Sequence[int]]) -> list[float | None]:
    """The mean loss of each class over all sites: ``d_c = sum_k S_kc / sum_k N_kc``.

    Args:
        sums: ``(sites, C)`` sum of the losses of each class's images.
        counts: ``(sites, C)`` how many images those are.

    Returns:
        ``C`` means, None for a class that no site has.
    """
    losses = [math.fsum(column) for column in zip(*sums, strict=True)]
    images = [sum(column) for column in zip(*counts, strict=True)]
    return [loss / number if number else None for loss, number in zip(losses, images, strict=True)]


def admitted(options: CCLOptions, difficulties: Sequence[float | None], how_many: int) -> list[bool]:
    """Which classes are in: the ``how_many`` easiest, or with ``anti`` the hardest.

    A class that nobody has is the last to join, as nothing can be learnt of it. Of equal ones the first comes first.
    """
    sign = -1.0 if options.order == "anti" else 1.0
    key = [math.inf if one is None else sign * one for one in difficulties]
    chosen = sorted(range(len(key)), key=lambda index: (key[index], index))[:how_many]
    return [index in chosen for index in range(len(key))]
