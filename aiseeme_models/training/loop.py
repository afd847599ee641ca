"""The training loop, once, for every pretext task. It adds nothing to the time of a plain PyTorch loop."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from aiseeme_models.distillation import Teaching
from aiseeme_models.errors import InputError
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.pretext.base import PretextTask
from aiseeme_models.seeding import generator
from aiseeme_models.training.optimizers import build_optimizer, load_optimizer_tensors, optimizer_tensors
from aiseeme_models.training.options import TrainingOptions
from aiseeme_models.training.schedules import learning_rate_factor

_STEPS_BETWEEN_LOOKS = 20  # reading a loss from a GPU makes it wait

Views = tuple[Tensor, ...]
ViewsOf = Callable[[Tensor], Views]
LossOf = Callable[[Views], Tensor]


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
        images: images of the site's training set (patients, where they are protected): the weight of its update.
        steps: optimiser steps.
        loss: mean over the steps. Where patients are protected it must stay at the site.
        optimizer_state: flat name to contiguous CPU tensor; empty if it is not to be carried.
    """

    images: int
    steps: int
    loss: float
    optimizer_state: dict[str, Tensor]


class StepGradients(Protocol):
    """Which images a step uses, and how its gradients come about.

    Attributes:
        count: what an epoch passes over: images, or patients.
    """

    count: int

    def batches(self, steps: int) -> Iterator[Tensor]:
        """Indices of the images of each of ``steps`` steps, ``(B,)`` int64."""
        ...

    def fill(self, task: PretextTask, indices: Tensor, views_of: ViewsOf, loss_of: LossOf) -> tuple[Tensor, Views]:
        """Fill ``.grad`` of the task's shared parameters.

        Args:
            task: what is trained.
            indices: of the step's images.
            views_of: the task's views of images, by their indices.
            loss_of: the task's loss of views, a mean over the images.

        Returns:
            The step's loss, a detached scalar, and views for `PretextTask.after_step`.
        """
        ...


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
    gradients: StepGradients | None = None,
    teaching: Teaching | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
    factor: Callable[[float], float] | None = None,
    look_every: int | None = None,
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
        gradients: how gradients come about; default: those of the batches' losses.
        teaching: distillation beside the task's loss; the losses that are told stay the task's alone.
        on_step: called with (steps done, steps in all, loss); on a GPU not at every step.
        factor: what the learning rate is multiplied by at a progress of the stage; default: by the stage's schedule.
        look_every: steps between two looks at the loss, which a GPU waits for; default: 1 on a CPU, 20 on a GPU.

    Raises:
        InputError: fewer images than the task needs.
        NonFiniteLoss: the loss is NaN or infinite.
    """
    source = BatchGradients(len(images), options, seed) if gradients is None else gradients
    count = source.count
    if count < 1 or min(options.batch_size, count) < task.minimum_batch:
        raise InputError(f"this task needs at least {task.minimum_batch} training images in a batch, there are {count}")
    task.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    task.train()
    task.begin_round()
    if teaching is not None:
        teaching.to(device)
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
    if look_every is None:
        look_every = 1 if device.type == "cpu" else _STEPS_BETWEEN_LOOKS
    if factor is None:
        factor = partial(learning_rate_factor, options.schedule, options.warmup)
    losses: list[Tensor] = []
    alone: list[Tensor] = []  # the task's losses of a step, where something is added to them

    def views_of(indices: Tensor) -> Views:
        task.look_at(indices)
        with _autocast(options, device):
            return task.views(_to(images.batch(indices), device), augmentation, views_generator)

    def loss_of(views: Views) -> Tensor:
        with _autocast(options, device):
            if teaching is None:
                return task.loss(views, loss_generator)
            loss, own = teaching.loss(task, lambda: task.loss(views, loss_generator))
            alone.append(own)
            return loss

    for step, indices in enumerate(source.batches(steps), start=1):
        progress = begin + (end - begin) * (step - 1) / steps
        rate = options.learning_rate * factor(progress)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss, views = source.fill(task, indices, views_of, loss_of)
        if alone:
            loss = torch.stack(alone).mean()
            alone.clear()
        if anchor:
            _pull_towards(weights, anchor, proximal_mu)
        if options.gradient_clip is not None:
            clip_grad_norm_(weights, options.gradient_clip)
        losses.append(loss)
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
            task.look_at_heldout(indices)
            with _autocast(options, device):
                views = task.views(_to(images.batch(indices), device), augmentation, views_generator)
                losses.append(task.loss(views, loss_generator))
    finally:
        task.train(was_training)
    mean = _finite(torch.stack(losses).double().mean(), len(losses))
    return mean, len(losses) * batch_size


class BatchGradients:
    """The gradients of full batches, of a fresh permutation in every epoch.

    Args:
        images: how many there are.
        options: the stage's.
        seed: of the permutations.
    """

    def __init__(self, images: int, options: TrainingOptions, seed: int) -> None:
        self.count = images
        self._batch_size, self._seed = min(options.batch_size, images), seed

    def order(self, generator: torch.Generator) -> Tensor:
        """The images of one epoch, ``(count,)`` int64."""
        return torch.randperm(self.count, generator=generator)

    def batches(self, steps: int) -> Iterator[Tensor]:
        """See `StepGradients.batches`."""
        return islice(self._epochs(), steps)

    def _epochs(self) -> Iterator[Tensor]:
        for epoch in itertools.count():
            order = self.order(generator(self._seed, "order", epoch))
            for first in range(0, self.count - self._batch_size + 1, self._batch_size):
                yield order[first : first + self._batch_size]

    def fill(self, task: PretextTask, indices: Tensor, views_of: ViewsOf, loss_of: LossOf) -> tuple[Tensor, Views]:
        """See `StepGradients.fill`."""
        views = views_of(indices)
        loss = loss_of(views)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), views


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
