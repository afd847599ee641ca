"""The floor under every probe: what a thumbnail and the colours alone tell about the labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from aiseeme_models.downstream.features import ImageSource
from aiseeme_models.downstream.metrics import ProbeScore
from aiseeme_models.downstream.probe import linear_probe

_SIDE = 20
_BINS = 16


def thumbnail_features(images: ImageSource, *, batch_size: int = 256) -> NDArray[np.float32]:
    """A 20x20 thumbnail (area means) and one 16-bin histogram per channel of every image.

    Returns:
        ``(N, C * (400 + 16))`` float32 in [0, 1].
    """
    parts = [
        _features(images.batch(torch.arange(start, min(start + batch_size, len(images)))))
        for start in range(0, len(images), batch_size)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, 0), dtype=np.float32)


def thumbnail_floor(
    train_images: ImageSource,
    train_y: Sequence[str],
    test_images: ImageSource,
    test_y: Sequence[str],
    *,
    test_patients: Sequence[str] | None = None,
) -> ProbeScore:
    """`linear_probe` on `thumbnail_features`: a representation that does not beat this has learned nothing.

    Raises:
        InputError: see `linear_probe`.
    """
    x, x_test = thumbnail_features(train_images), thumbnail_features(test_images)
    return linear_probe(x, train_y, x_test, test_y, seed=0, test_patients=test_patients)


def _features(batch: Tensor) -> NDArray[np.float32]:
    """``(B, C, H, W)`` uint8 -> ``(B, C * (400 + 16))``."""
    size, channels = batch.shape[:2]
    thumbnails = functional.adaptive_avg_pool2d(batch.float() / 255.0, _SIDE).flatten(1)  # (B, C * 400)
    bins = (batch.flatten(2).long() * _BINS) // 256  # (B, C, H * W)
    counts = torch.zeros(size, channels, _BINS).scatter_add_(2, bins, torch.ones(bins.shape))
    histograms = counts / max(bins.shape[2], 1)
    features: NDArray[np.float32] = torch.cat([thumbnails, histograms.flatten(1)], dim=1).numpy()
    return features
