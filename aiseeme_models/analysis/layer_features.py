"""Features of a backbone after every block, flattened as a map and pooled: what an association test looks at."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from aiseeme_models.backbones import Backbone
from aiseeme_models.downstream.features import ImageSource, Normalise, normalised_batches

LARGEST_MAP = 16_384
"""Most numbers of an image's map: a larger one is averaged over neighbouring places first."""

_BATCH = 64


def layer_names(backbone: Backbone) -> list[str]:
    """Two layers for each block, in order: ``BLOCK/map`` and ``BLOCK/pooled``."""
    return [f"{block}/{form}" for block in backbone.blocks for form in ("map", "pooled")]


def layer_features(
    backbone: Backbone,
    images: ImageSource,
    normalise: Normalise,
    *,
    layers: Collection[str],
    device: torch.device | str,
) -> dict[str, NDArray[np.float32]]:
    """Features of every image from a backbone in evaluation mode.

    Args:
        backbone: moved to ``device`` and left in evaluation mode.
        images: ``N``, at least one.
        normalise: see `downstream.features.extract_features`.
        layers: some of `layer_names`.
        device: where to compute.

    Returns:
        By layer, in the order of `layer_names`: of a map ``(N, C * h * w)``, at most `LARGEST_MAP` numbers an image
        where it has no more channels than that; pooled ``(N, C)``.
    """
    backbone.to(device).eval()
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in layer_names(backbone) if name in layers}
    with torch.inference_mode():
        for batch in normalised_batches(images, normalise, device=device, batch_size=_BATCH):
            for block, maps in backbone.block_maps(batch):
                for form, features in _FORMS.items():
                    if (name := f"{block}/{form}") in parts:
                        parts[name].append(features(maps).float().cpu().numpy())
    return {name: np.concatenate(features) for name, features in parts.items()}


def _flattened(maps: Tensor) -> Tensor:
    """``(B, C, h, w)`` to ``(B, C * h' * w')``."""
    side = max(1, math.isqrt(LARGEST_MAP // maps.shape[1]))
    return F.adaptive_avg_pool2d(maps, (min(maps.shape[2], side), min(maps.shape[3], side))).flatten(1)


def _pooled(maps: Tensor) -> Tensor:
    """``(B, C, h, w)`` to ``(B, C)``."""
    return maps.mean(dim=(2, 3))


_FORMS = {"map": _flattened, "pooled": _pooled}
