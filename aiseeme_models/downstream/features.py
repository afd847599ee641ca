"""Frozen features of a backbone, the only thing that a probe sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from aiseeme_models.errors import InputError


class ImageSource(Protocol):
    """Decoded images by position, as `aiseeme_models.images.cache.CachedImages` holds them."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Tensor:
        """``(B,)`` int64 positions -> ``(B, C, S, S)`` uint8."""
        ...


Normalise = Callable[[Tensor], Tensor]


def normalised_batches(
    images: ImageSource, normalise: Normalise, *, device: torch.device | str, batch_size: int = 256
) -> Iterator[Tensor]:
    """All images in order, ``(B, C, S, S)`` float32 on ``device``, as an evaluation sees them."""
    for start in range(0, len(images), batch_size):
        indices = torch.arange(start, min(start + batch_size, len(images)))
        yield normalise(images.batch(indices).to(device))


def extract_features(
    backbone: nn.Module,
    images: ImageSource,
    normalise: Normalise,
    *,
    device: torch.device | str,
    batch_size: int = 256,
) -> NDArray[np.float32]:
    """Pooled features of every image, in order, from the backbone in evaluation mode.

    Args:
        backbone: maps ``(B, C, S, S)`` float32 to ``(B, D)``; moved to ``device``, its mode is put back at the end.
        images: the images.
        normalise: ``(B, C, S, S)`` uint8 on ``device`` -> float32 of the same shape, without randomness.
        device: where to compute.
        batch_size: images per forward pass.

    Returns:
        ``(N, D)`` float32.

    Raises:
        InputError: there are no images.
    """
    if len(images) == 0:
        raise InputError("features: there are no images")
    backbone.to(device)
    parts = []
    with _mode(backbone, training=False), torch.inference_mode():
        for batch in normalised_batches(images, normalise, device=device, batch_size=batch_size):
            features: Tensor = backbone(batch)  # (B, D)
            parts.append(features.float().cpu().numpy())
    return np.concatenate(parts).astype(np.float32, copy=False)


def recalibrate_batch_norm(
    backbone: nn.Module,
    images: ImageSource,
    normalise: Normalise,
    *,
    device: torch.device | str,
    batch_size: int = 256,
) -> None:
    """Give batch-norm layers the statistics of ``images``: plain means over all batches, nothing else changes.

    With site-local batch norm (SiloBN) the coordinator's backbone has no statistics of its own. Each batch takes
    every n-th image: files that lie sorted by class would otherwise make batches with too small a variance.

    Args:
        backbone: its running means and variances are replaced in place.
        images: the probe's training images, at least two.
        normalise: see `extract_features`.
        device: where to compute.
        batch_size: upper bound of the images per forward pass.

    Raises:
        InputError: fewer than two images.
    """
    layers = [layer for layer in backbone.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    if not layers:
        return
    if len(images) < 2:
        raise InputError(f"batch-norm statistics need at least 2 images, there are {len(images)}")
    backbone.to(device)
    momenta = [layer.momentum for layer in layers]
    batches = -(-len(images) // max(batch_size, 2))
    batches = min(batches, len(images) // 2)
    with _mode(backbone, training=False), torch.inference_mode():
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # cumulative mean
            layer.train()
        for first in range(batches):
            backbone(normalise(images.batch(torch.arange(first, len(images), batches)).to(device)))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


@contextmanager
def _mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Put ``module`` into a mode and every submodule back into its own at the end."""
    before = [(part, part.training) for part in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for part, was_training in before:
            part.training = was_training
