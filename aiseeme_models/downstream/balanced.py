"""Batches in which every class is equally frequent."""

from __future__ import annotations

import torch
from torch import Tensor

from aiseeme_models.training.loop import BatchGradients
from aiseeme_models.training.options import TrainingOptions


class BalancedGradients(BatchGradients):
    """The gradients of batches of an epoch in which all classes are there equally often.

    As many images are drawn as there are. Of a rare class each is drawn several times, once before any comes again; of
    a frequent one some are left out, others in each epoch.

    Args:
        targets: ``(N,)`` int64, the class of each image.
        options: the stage's.
        seed: of the draws.
    """

    def __init__(self, targets: Tensor, options: TrainingOptions, seed: int) -> None:
        super().__init__(len(targets), options, seed)
        self._of_class = [torch.nonzero(targets == name).squeeze(1) for name in sorted(set(targets.tolist()))]

    def order(self, generator: torch.Generator) -> Tensor:
        """See `BatchGradients.order`."""
        share = -(-self.count // len(self._of_class))
        drawn = [_drawn(images, share, generator) for images in self._of_class]
        # Which classes give one image less, where the number does not divide, is drawn too.
        mixed = torch.cat(drawn)
        return mixed[torch.randperm(len(mixed), generator=generator)[: self.count]]


def _drawn(images: Tensor, number: int, generator: torch.Generator) -> Tensor:
    times = -(-number // len(images))
    rounds = [images[torch.randperm(len(images), generator=generator)] for _ in range(times)]
    return torch.cat(rounds)[:number]
