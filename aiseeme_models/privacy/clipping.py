"""How much of a patient's gradient counts: never more than a norm."""

from __future__ import annotations

import math
from typing import Literal, TypeVar

import torch
from torch import Tensor

Clipping = Literal["flat", "per-layer", "adaptive"]
_TINY = 1e-12


Parameter = TypeVar("Parameter")


def factors(squared_norms: dict[Parameter, Tensor], clipping: Clipping, bound: float) -> dict[Parameter, Tensor]:
    """What every patient's gradient is multiplied by, for each parameter.

    ``flat`` and ``adaptive``: the whole gradient has at most the norm ``bound`` (Abadi et al. 2016, arXiv 1607.00133).
    ``per-layer``: that of each of ``n`` parameters has at most ``bound / sqrt(n)``, so that the whole has the same.

    Args:
        squared_norms: for each parameter ``(B,)``.
        clipping: the kind.
        bound: the largest norm ``C``.

    Returns:
        For each parameter ``(B,)`` in [0, 1].
    """
    if clipping == "per-layer":
        share = bound / math.sqrt(len(squared_norms))
        return {name: _factor(squares, share) for name, squares in squared_norms.items()}
    factor = _factor(torch.stack(list(squared_norms.values())).sum(0), bound)
    return dict.fromkeys(squared_norms, factor)


def _factor(squares: Tensor, bound: float) -> Tensor:
    return (bound / (squares.sqrt() + _TINY)).clamp(max=1.0)
