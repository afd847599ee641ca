"""When a stage has learnt what it can."""

from __future__ import annotations

from collections.abc import Sequence


def plateau(history: Sequence[float], patience: int, min_improvement: float) -> bool:
    """Whether the last ``patience`` held-out losses brought no improvement.

    An improvement is a loss below the best one before by more than ``min_improvement`` times its magnitude: losses of
    different tasks have different scales.

    Args:
        history: held-out losses of a stage's rounds, oldest first.
        patience: rounds that must pass without an improvement, at least 1.
        min_improvement: smallest relative improvement that counts, at least 0.
    """
    best, waited = float("inf"), 0
    for loss in history:
        if best == float("inf") or loss < best - min_improvement * abs(best):
            best, waited = loss, 0
        else:
            waited += 1
    return waited >= patience
