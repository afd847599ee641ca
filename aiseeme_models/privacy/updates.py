"""A whole update as the unit: clipped to a norm, and noised."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aiseeme_models.privacy.noise import Draws


def clipped_change(weights: NDArray[np.float32], start: NDArray[np.float32], bound: float) -> NDArray[np.float64]:
    """``(weights - start) * min(1, bound / ||weights - start||)``, ``(P,)``; nothing, where that is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        change: NDArray[np.float64] = weights.astype(np.float64) - start
        norm = float(np.linalg.norm(change))
        if not np.isfinite(norm):
            return np.zeros_like(change)
        return change if norm <= bound else change * (bound / norm)


def clipped_update(weights: NDArray[np.float32], start: NDArray[np.float32], bound: float) -> NDArray[np.float32]:
    """``start + (weights - start) * min(1, bound / ||weights - start||)``, ``(P,)``.

    An update of zeros stays one; one that is not finite stays so, for whoever refuses it.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        change = weights.astype(np.float64) - start
        norm = float(np.linalg.norm(change))
        if norm <= bound:
            return weights
        result: NDArray[np.float32] = (start + change * (bound / norm)).astype(np.float32)
    return result


def noisy(weights: NDArray[np.floating], deviation: float, draws: Draws) -> NDArray[np.float32]:
    """``weights`` ``(P,)`` with normal noise of that standard deviation, added in double precision."""
    noise: NDArray[np.float64] = draws.normal(weights.size).numpy()
    result: NDArray[np.float32] = (weights + noise * deviation).astype(np.float32)
    return result
