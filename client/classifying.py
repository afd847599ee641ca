"""What is particular to a round that learns labels: whose classes count for what, and what of them may be told."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from client.refusals import Refusal
from federation_configs.site_errors import SiteError
from federation_configs.wire import SMALLEST_COUNT, RoundRequest, TrainRequest, told_counts, told_loss

if TYPE_CHECKING:
    from torch import Tensor

    from aiseeme_models.downstream.classification import Classification
    from aiseeme_models.pretext.base import PretextTask
    from aiseeme_models.training.loop import BatchGradients
    from federation_configs.schema import FederationConfig


def classifier(task: PretextTask) -> Classification | None:
    """The stage's task where it learns labels, else None."""
    from aiseeme_models.downstream.classification import Classification

    return task if isinstance(task, Classification) else None


def begin_classes(task: PretextTask, request: RoundRequest, targets: Tensor | None) -> None:
    """Tell a task that learns labels what it is asked; one that does not needs no telling.

    Args:
        task: the stage's.
        request: says what each class counts, and to a training which are in.
        targets: ``(N,)`` the classes of the images that come.

    Raises:
        Refusal: BAD_REQUEST, where the request speaks of another number of classes than the stage has.
    """
    learner = classifier(task)
    if learner is None or targets is None:
        return
    admitted = request.admitted if isinstance(request, TrainRequest) else None
    for told in (request.class_images, admitted):
        if told is not None and len(told) != len(learner.options.classes):
            raise Refusal(SiteError.BAD_REQUEST)
    learner.learn(targets)
    learner.pace(request.class_images, admitted)


def balanced(task: Classification, request: TrainRequest, targets: Tensor, seed: int) -> BatchGradients | None:
    """Batches in which all classes are equally frequent, where the stage wants them."""
    from aiseeme_models.downstream.balanced import BalancedGradients

    if task.options.sampling == "shuffled":
        return None
    return BalancedGradients(targets, request.config.curriculum.stage[request.stage], seed)


def told_classes(config: FederationConfig, targets: Tensor | None) -> tuple[int, ...] | None:
    """How many training images of each class there are; None where that may not be told, or no label is learnt.

    Args:
        config: the federation's.
        targets: ``(N,)`` the classes of the first stage's training images.
    """
    from aiseeme_models.downstream.classification import ClassificationOptions

    options = config.curriculum.stage[0].options
    if targets is None or not isinstance(options, ClassificationOptions):
        return None
    return told_counts(targets.bincount(minlength=len(options.classes)).tolist())


def rate_factor(task: Classification, request: TrainRequest) -> Callable[[float], float] | None:
    """The learning rate's factor under a class-wise curriculum: it falls only when all classes are in."""
    from aiseeme_models.training.schedules import learning_rate_factor

    ccl, stage = task.options.ccl, request.config.curriculum.stage[request.stage]
    if ccl is None:
        return None
    schedule = partial(learning_rate_factor, stage.schedule, stage.warmup)
    return lambda progress: schedule(ccl.progress(progress, stage.rounds, len(task.options.classes)))


def told_class_losses(task: Classification | None, targets: Tensor | None) -> tuple[float | None, ...] | None:
    """How hard each class was in the round, where the coordinator orders classes by it.

    Args:
        task: has been trained; None: it learns no labels.
        targets: ``(N,)`` the classes of the images: what counts is how many a class has, not how often they were seen.
    """
    if task is None or targets is None or task.options.ccl is None or task.options.ccl.order != "self-paced":
        return None
    images = targets.bincount(minlength=len(task.options.classes)).tolist()
    return tuple(
        told_loss(total / seen) if count >= SMALLEST_COUNT and seen else None
        for total, seen, count in zip(*task.class_losses(), images, strict=True)
    )
