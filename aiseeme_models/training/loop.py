"""The training loop, once, for every pretext task. It adds nothing to the time of a plain PyTorch loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from aiseeme_models.errors import InputError
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.pretext.base import PretextTask
from aiseeme_models.seeding import generator
from aiseeme_models.training.optimizers import build_optimizer, load_optimizer_tensors, optimizer_tensors
from aiseeme_models.training.options import TrainingOptions
from aiseeme_models.training.schedules import learning_rate_factor

_STEPS_BETWEEN_LOOKS = 20  # reading a loss from a GPU makes it wait


class Images(Protocol):
    """What the loop needs of a site's images (see `images.cache.CachedImages`)."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Tensor:
        """``(B,)`` int64 to ``(B, C, H, W)`` uint8."""
        ...


class NonFiniteLoss(ArithmeticError):
    """Training diverged: the loss is NaN or infinite."""


@dataclass(frozen=True)
class RoundOutcome:
    """What a site did in a round.

    Attributes:
        images: images of the site's training set, the weight of its update.
        steps: optimiser steps.
        loss: mean over the steps.
        optimizer_state: flat name to contiguous CPU tensor; empty if it is not to be carried.
    """

    images: int
    steps: int
    loss: float
    optimizer_state: dict[str, Tensor]


def train_round(
    task: PretextTask,
    images: Images,
    options: TrainingOptions,
    *,
    augmentation: BatchAugmentation,
    seed: int,
    stage_progress: tuple[float, float],
    device: torch.device,
    proximal_mu: float = 0.0,
    optimizer_state: Mapping[str, Tensor] | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
) -> RoundOutcome:
    """Train ``task.shared`` for ``options.local_epochs`` passes over a site's images, at most ``options.max_steps``.

    The same arguments give the same bits on the same machine with the same number of threads: checked on CPUs only (for
    GPUs see `training.device.make_deterministic`). A last incomplete batch is dropped unless it is the only one.

    Args:
        task: holds the round's global weights; changed in place, and moved to ``device``.
        images: the site's training images.
        options: the stage's.
        augmentation: the domain's.
        seed: of this site and round.
        stage_progress: how much of the stage was done before this round and will be done after it, in [0, 1].
        device: where to train.
        proximal_mu: weight of FedProx' ``mu / 2 ||w - w_global||^2`` (Li et al. 2020, arXiv 1812.06127).
        optimizer_state: a former `RoundOutcome.optimizer_state` of this stage.
        on_step: called with (steps done, steps in all, loss); on a GPU not at every step.

    Raises:
        InputError: fewer images than the task needs.
        NonFiniteLoss: the loss is NaN or infinite.
    """
    count = len(images)
    batch_size = min(options.batch_size, count)
    if count < 1 or batch_size < task.minimum_batch:
        raise InputError(f"this task needs at least {task.minimum_batch} training images in a batch, there are {count}")
    task.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    task.train()
    task.begin_round()
    weights = list(task.shared.parameters())
    optimizer = build_optimizer(
        options.optimizer,
        task.shared,
        lr=options.learning_rate,
        weight_decay=options.decay,
        momentum=options.momentum,
    )
    if optimizer_state and options.carry_optimizer:
        load_optimizer_tensors(optimizer, task.shared, optimizer_state)
    anchor = [weight.detach().clone() for weight in weights] if proximal_mu > 0 else []
    views_generator = generator(seed, "views")
    loss_generator = generator(seed, "loss")
    begin, end = stage_progress
    steps = options.steps(count)
    look_every = 1 if device.type == "cpu" else _STEPS_BETWEEN_LOOKS
    losses: list[Tensor] = []
    batches = islice(_batches(count, batch_size, options.local_epochs, seed), steps)
    for step, indices in enumerate(batches, start=1):
        progress = begin + (end - begin) * (step - 1) / steps
        rate = options.learning_rate * learning_rate_factor(options.schedule, options.warmup, progress)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        with _autocast(options, device):
            views = task.views(_to(images.batch(indices), device), augmentation, views_generator)
            loss = task.loss(views, loss_generator)
        loss.backward()  # type: ignore[no-untyped-call]
        if anchor:
            _pull_towards(weights, anchor, proximal_mu)
        if options.gradient_clip is not None:
            clip_grad_norm_(weights, options.gradient_clip)
        losses.append(loss.detach())
        if step % look_every == 0 or step == steps:
            value = _finite(losses[-1], step)
            if on_step is not None:
                on_step(step, steps, value)
        optimizer.step()
        task.after_step(views, begin + (end - begin) * step / steps)
    mean = _finite(torch.stack(losses).double().cpu().mean(), steps)
    return RoundOutcome(
        images=count,
        steps=steps,
        loss=mean,
        optimizer_state=optimizer_tensors(optimizer, task.shared) if options.carry_optimizer else {},
    )


@torch.no_grad()
def heldout_loss(
    task: PretextTask,
    images: Images,
    options: TrainingOptions,
    *,
    augmentation: BatchAugmentation,
    seed: int,
    device: torch.device,
) -> tuple[float, int]:
    """The pretext loss on images that are not trained on, in evaluation mode; changes no state of the task.

    Batches are as in training, and the same seed gives the same views, so that rounds can be compared.

    Returns:
        The mean loss and the number of images behind it; ``(0.0, 0)`` where there are too few images for a batch.

    Raises:
        NonFiniteLoss: the loss is NaN or infinite.
    """
    count = len(images)
    batch_size = min(options.batch_size, count)
    if count < 1 or batch_size < task.minimum_batch:
        return 0.0, 0
    task.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    was_training = task.training
    task.eval()
    try:
        views_generator, loss_generator = generator(seed, "views"), generator(seed, "loss")
        losses = []
        for first in range(0, count - batch_size + 1, batch_size):
            indices = torch.arange(first, first + batch_size)
            with _autocast(options, device):
                views = task.views(_to(images.batch(indices), device), augmentation, views_generator)
                losses.append(task.loss(views, loss_generator))
    finally:
        task.train(was_training)
    mean = _finite(torch.stack(losses).double().mean(), len(losses))
    return mean, len(losses) * batch_size


def _batches(count: int, batch_size: int, epochs: int, seed: int) -> Iterator[Tensor]:
    """Full batches of a fresh permutation in every epoch, each ``(batch_size,)`` int64."""
    for epoch in range(epochs):
        order = torch.randperm(count, generator=generator(seed, "order", epoch))
        for first in range(0, count - batch_size + 1, batch_size):
            yield order[first : first + batch_size]


def _autocast(options: TrainingOptions, device: torch.device) -> AbstractContextManager[object]:
    wanted = options.precision == "bf16" or (options.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted)


def _to(batch: Tensor, device: torch.device) -> Tensor:
    """``batch`` on the device; on CUDA through pinned memory, so that the copy overlaps with the step before."""
    if device.type != "cuda":
        return batch.to(device)
    return batch.pin_memory().to(device, non_blocking=True)


def _pull_towards(weights: list[torch.nn.Parameter], anchor: list[Tensor], mu: float) -> None:
    """Add FedProx' gradient ``mu (w - w_global)``."""
    with torch.no_grad():
        for weight, fixed in zip(weights, anchor, strict=True):
            if weight.grad is not None:
                weight.grad.add_(weight - fixed, alpha=mu)


def _finite(loss: Tensor, step: int) -> float:
    value = float(loss)
    if value - value != 0:  # NaN and both infinities
        raise NonFiniteLoss(f"the loss is {value} at step {step}: the training diverged; a lower lr may help")
    return value
