"""SVCCA: the mean canonical correlation of the directions that hold most of the variance.

Raghu et al., "SVCCA: Singular Vector Canonical Correlation Analysis for Deep Learning Dynamics and Interpretability",
2017 (arXiv 1706.05806).
"""

from __future__ import annotations

import torch
from torch import Tensor

KEPT_VARIANCE = 0.99


def svcca(first: Tensor, second: Tensor, *, kept: float = KEPT_VARIANCE) -> float | None:
    """Mean canonical correlation after each side was cut to the directions that hold ``kept`` of its variance.

    In [0, 1]. With few images it says little: k directions of each of two unrelated networks have a mean correlation of
    nearly ``sqrt(k / N)`` (0.49 for 40 directions and 128 images).

    Args:
        first: ``(N, D1)`` features of N images.
        second: ``(N, D2)`` features of the same images.
        kept: share of the variance, in (0, 1].

    Returns:
        None where either does not vary.
    """
    x, y = _directions(first, kept), _directions(second, kept)
    if x is None or y is None:
        return None
    # Between orthonormal bases the canonical correlations are the cosines of the principal angles.
    correlations = torch.linalg.svdvals(x.T @ y).clamp(max=1.0)  # (min(k1, k2),)
    return float(correlations.mean())


def _directions(features: Tensor, kept: float) -> Tensor | None:
    """``(N, k)`` orthonormal float64: the first left singular vectors of the centred features."""
    x = features.double()
    centred = x - x.mean(dim=0, keepdim=True)
    left: Tensor
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    variance = values.square().cumsum(dim=0)
    if not variance[-1] > 1e-12 * x.square().sum():  # float32's rounding
        return None
    count = int((variance < kept * variance[-1]).sum()) + 1
    return left[:, :count]
