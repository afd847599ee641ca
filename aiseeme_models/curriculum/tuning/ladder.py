"""With which batch sizes memory is measured, the smallest first."""

from __future__ import annotations

from collections.abc import Iterable

STEPS_OF_A_SIZE = 2
"""Optimiser steps with each size: the optimiser makes its state in the first."""

_FIRST = 3  # the power of two to begin with


def ladder(sizes: Iterable[int]) -> list[int]:
    """``sizes`` and the powers of two below the largest: what one takes says what the next, at most twice it, will."""
    wanted = set(sizes)
    return sorted(wanted | {2**power for power in range(_FIRST, max(wanted, default=0).bit_length())})
