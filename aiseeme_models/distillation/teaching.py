"""A pretext task's loss together with the distance of its backbone's features from a frozen backbone's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from aiseeme_models.backbones import Backbone
from aiseeme_models.distillation.base import distillations
from aiseeme_models.distillation.options import DistillOptions
from aiseeme_models.pretext.base import PretextTask
from aiseeme_models.pretext.statistics import are_own, own_statistics


class Teaching:
    """Adds distillation to the losses of one round.

    The student's features are those that the pretext task computes anyway: every pass of its backbone that takes a
    gradient is also made by the frozen backbones, in evaluation mode, and counts alike (so do the resolutions of
    multi-crop). What the student normalises by its own statistics (patches, images with holes) they do too. A step
    costs one more forward pass, and two with a previous backbone.

    Args:
        options: of the stage.
        teacher: a backbone of the student's kind; frozen here.
        previous: the site's own backbone of the round before; None where there is none.
    """

    def __init__(self, options: DistillOptions, teacher: Backbone, previous: Backbone | None = None) -> None:
        self._options = options
        self._kind = distillations[options.kind](options.options)
        self._frozen = [_frozen(one) for one in (teacher, previous) if one is not None]

    def to(self, device: torch.device) -> None:
        """Move the frozen backbones."""
        for backbone in self._frozen:
            backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(self, task: PretextTask, pretext: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """The loss to be minimised and, detached, the pretext task's alone.

        Args:
            task: whose backbone is the student.
            pretext: computes its loss.
        """
        passes: list[_Pass] = []
        with _watched(task.backbone, passes):
            alone = pretext()
        apart = [self._distance(one) for one in passes]
        total = self._options.pretext_weight * alone + self._options.weight * torch.stack(apart).mean()
        return total, alone.detach()

    def _distance(self, one: _Pass) -> Tensor:
        teacher, *previous = [_features(backbone, one) for backbone in self._frozen]
        return self._kind.loss(one.features, teacher, previous[0] if previous else None)


@dataclass(frozen=True)
class _Pass:
    """A pass of the student: images ``(N, C, H, W)``, pooled features ``(N, D)``, whether by their own statistics."""

    images: Tensor
    features: Tensor
    own: bool


@torch.no_grad()
def _features(frozen: Backbone, one: _Pass) -> Tensor:
    with own_statistics(frozen, wanted=one.own):
        found: Tensor = frozen(one.images)
    return found


def _frozen(backbone: Backbone) -> Backbone:
    return backbone.requires_grad_(False).eval()


@contextmanager
def _watched(backbone: Backbone, passes: list[_Pass]) -> Iterator[None]:
    """Note every pass that takes a gradient."""
    forward_map = backbone.forward_map

    def watched(images: Tensor) -> Tensor:
        features = forward_map(images)
        if features.requires_grad:
            passes.append(_Pass(images.detach(), features.mean(dim=(2, 3)), are_own(backbone)))
        return features

    backbone.forward_map = watched  # type: ignore[method-assign]
    try:
        yield
    finally:
        del backbone.forward_map
