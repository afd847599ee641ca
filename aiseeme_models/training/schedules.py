"""Learning-rate schedules as functions of a stage's progress, since sites take different numbers of steps."""

from __future__ import annotations

import math
from collections.abc import Callable

from aiseeme_models.registry import Registry

Schedule = Callable[[float], float]
schedules: Registry[Schedule] = Registry("schedule")


@schedules.register("constant")
def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


@schedules.register("cosine")
def cosine(progress: float) -> float:
    """From 1 to 0 along half a cosine (Loshchilov & Hutter 2017, arXiv 1608.03983)."""
    return (1 + math.cos(math.pi * progress)) / 2


@schedules.register("step")
def step(progress: float) -> float:
    """1, then 0.1 from 60 % and 0.01 from 80 % of the stage (MoCo v1's epochs 120 and 160 of 200)."""
    return 1.0 if progress < 0.6 else 0.1 if progress < 0.8 else 0.01


@schedules.register("one-cycle")
def one_cycle(progress: float) -> float:
    """From 1/25 up to 1 at 30 % and down to 1/250000, both along cosines (Smith & Topin 2019, arXiv 1708.07120)."""
    first, peak, last = 1 / 25, 0.3, 1 / 250_000
    if progress < peak:
        return first + (1 - first) * (1 - math.cos(math.pi * progress / peak)) / 2
    return last + (1 - last) * (1 + math.cos(math.pi * (progress - peak) / (1 - peak))) / 2


def learning_rate_factor(schedule: str, warmup: float, progress: float) -> float:
    """What the learning rate is multiplied by at ``progress`` in [0, 1] of a stage.

    During the first ``warmup`` (a fraction of the stage) the rate rises linearly; the schedule runs over the rest.

    Raises:
        InputError: no such schedule.
    """
    if progress < warmup:
        return progress / warmup
    return schedules[schedule]((progress - warmup) / (1 - warmup))
