"""A learning-rate range test: how high the rate may be, from one short training with a rising one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import numpy as np
import torch

from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.pretext.base import PretextTask
from aiseeme_models.training.loop import Images, NonFiniteLoss, train_round
from aiseeme_models.training.options import TrainingOptions

_DIVERGED = 4.0  # times the smallest loss so far
_MARGIN = 10.0  # how far the rate is taken below the one at which the loss turns
_SURE = 5.0  # standard deviations: the lowest of many is low by chance
_FEWEST = 10


def range_test(
    task: PretextTask,
    images: Images,
    options: TrainingOptions,
    *,
    rates: tuple[float, float],
    steps: int,
    augmentation: BatchAugmentation,
    seed: int,
    device: torch.device,
    on_step: Callable[[int, int, float], None] | None = None,
) -> float | None:
    """The rate that a training with a rate rising in equal ratios suggests (Smith 2017, arXiv 1506.01186).

    The task is trained on the way, so its weights are of no use afterwards.

    Args:
        task: holds the weights to start from; changed in place.
        images: the site's training images.
        options: the stage's, of which rate, schedule, rounds and steps are left aside.
        rates: smallest and largest rate.
        steps: optimiser steps, over as many passes as they take.
        augmentation, seed, device, on_step: as in `training.loop.train_round`.

    Returns:
        See `suggested_rate`.

    Raises:
        InputError: fewer images than the task needs.
    """
    low, high = rates
    an_epoch = max(1, len(images) // options.batch_size)
    rising = options.model_copy(update={"local_epochs": -(-steps // an_epoch), "max_steps": steps, "lr": high})
    losses: list[float] = []

    def note(step: int, of: int, loss: float) -> None:
        losses.append(loss)
        if on_step is not None:
            on_step(step, of, loss)

    # What a rate does that is too high is no error here; the losses up to there tell where.
    with contextlib.suppress(NonFiniteLoss):
        train_round(
            task,
            images,
            rising,
            augmentation=augmentation,
            seed=seed,
            stage_progress=(0.0, 1.0),
            device=device,
            factor=lambda progress: (low / high) ** (1 - progress),
            look_every=1,
            on_step=note,
        )
    return suggested_rate([low * (high / low) ** (step / steps) for step in range(len(losses))], losses)


def suggested_rate(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """A tenth of the rate at which the loss is smallest before it diverges, the loss smoothed over its neighbours.

    Args:
        rates: of each step, rising in equal ratios.
        losses: of each step; fewer than were planned where training diverged.

    Returns:
        The rate; None where there are too few steps, or the loss falls by no more than it scatters.
    """
    if len(losses) < _FEWEST:
        return None
    reach = max(1, len(rates) // 40)
    values = np.asarray(losses, dtype=np.float64)
    smooth = np.array([values[max(0, step - reach) : step + reach + 1].mean() for step in range(len(values))])
    diverged = np.flatnonzero(smooth > _DIVERGED * np.minimum.accumulate(smooth))
    smooth = smooth[: diverged[0] if len(diverged) else None]
    lowest, beginning = int(smooth.argmin()), slice(0, max(_FEWEST, len(rates) // 5))
    scatter = float((values[: len(smooth)] - smooth)[beginning].std()) / np.sqrt(reach + 1)
    if smooth[0] - smooth[lowest] <= _SURE * scatter:
        return None
    return max(rates[0], rates[lowest] / _MARGIN)
