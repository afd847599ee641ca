"""With which batch sizes memory is measured, the smallest first."""

from __future__ import annotations

from collections.abc import Iterable

STEPS_OF_A_SIZE = 2
"""Optimiser steps with each size: the optimiser makes its state in the first."""

_FIRST = 8


def ladder(sizes: Iterable[int]) -> list[int]:
    """``sizes`` and the powers of two below the largest: what one takes says what the next, at most twice it, will."""
    wanted = set(sizes)
    steps = {2**power for power in range(3, max(wanted, default=0).bit_length()) if _FIRST <= 2**power <= max(wanted)}
    return sorted(wanted | steps)
