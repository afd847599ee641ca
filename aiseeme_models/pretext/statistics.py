"""Running statistics of batch norm, for tasks that do not look at whole images.

Patches of 12 pixels, or images of which most is hidden, have other means and variances than images. A backbone that
remembers theirs is worse on images than it could be: on HAM10000 a linear probe of SimCLR, then relative location, had
0.417 with the statistics of patches and 0.456 with those of images, of the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from aiseeme_models.backbones import Backbone

# Of a batch: their mean over many steps is as good, for a fourth of the time. Never of a few: they leave a site.
_ONE_IN, _AT_LEAST = 4, 16


@contextmanager
def own_statistics(backbone: Backbone, *, wanted: bool = True) -> Iterator[None]:
    """What passes within the block is normalised by its own statistics, in evaluation too; none are remembered.

    Args:
        backbone: the network.
        wanted: whether that is so at all; with False the block is like any other.
    """
    before = [(layer, layer.training) for layer in _layers(backbone) if wanted and layer.track_running_stats]
    for layer, _ in before:
        layer.track_running_stats = False
        layer.train()
    try:
        yield
    finally:
        for layer, training in before:
            layer.track_running_stats = True
            layer.train(training)


def are_own(backbone: Backbone) -> bool:
    """Whether it is in the block of `own_statistics` now."""
    return any(not layer.track_running_stats for layer in _layers(backbone))


@torch.no_grad()
def remember_statistics(backbone: Backbone, images: Tensor) -> None:
    """Move the running statistics towards those of a batch of whole images.

    Args:
        backbone: in training mode; without batch norm nothing happens.
        images: ``(B, C, H, W)`` float32, normalised, in random order; the first quarter is used, 16 at least.
    """
    if _layers(backbone):
        backbone.forward_map(images[: max(_AT_LEAST, len(images) // _ONE_IN)])


def _layers(backbone: Backbone) -> list[_BatchNorm]:
    return [layer for layer in backbone.modules() if isinstance(layer, _BatchNorm) and layer.running_mean is not None]
