"""How many directions a representation really uses, and whether it has collapsed."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_RANKME_EPSILON = 1e-7


def effective_rank(features: Tensor) -> float:
    """``exp(H(p))`` with ``p`` the singular values over their sum (Roy & Vetterli 2007, def. 2), in [1, min(N, D)].

    Args:
        features: ``(N, D)``, as they are (centre them before where their mean is not to count).

    Returns:
        1.0 also for features that are all 0.
    """
    return float(_entropy(_shares(features)).exp())


def rankme(features: Tensor) -> float:
    """RankMe (Garrido et al. 2023, arXiv 2210.02885, eq. 1 and 2): `effective_rank` with ``p + 1e-7`` for ``p``."""
    return float(_entropy(_shares(features) + _RANKME_EPSILON).exp())


def spread(features: Tensor) -> float:
    """The collapse measure of SimSiam (Chen & He 2021, arXiv 2011.10566, section 4.1).

    The standard deviation of each dimension of the L2-normalised features, mean over the dimensions, over ``1 /
    sqrt(D)``, which it has where they are spread over the whole sphere: 0 where all are one vector, about 1 at best.

    Args:
        features: ``(N, D)``, at least two images.
    """
    directions = F.normalize(features.double(), dim=1)
    deviation: Tensor = directions.std(dim=0, correction=0).mean()
    return float(deviation) * math.sqrt(features.shape[1])


def _shares(features: Tensor) -> Tensor:
    """``(min(N, D),)`` float64 singular values over their sum."""
    values: Tensor = torch.linalg.svdvals(features.double())
    return values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)


def _entropy(shares: Tensor) -> Tensor:
    entropy: Tensor = -torch.xlogy(shares, shares).sum()
    return entropy
