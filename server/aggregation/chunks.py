"""Work on long vectors piece by piece, on all cores, with buffers that stay in the cache."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")

CHUNK = 16_384
"""Values per piece: 128 kB of float64; a core's caches hold both buffers."""

MAX_THREADS = 8


def chunks(start: int, stop: int, size: int = CHUNK) -> Iterator[slice]:
    """The pieces of ``start .. stop`` in order, each of at most ``size`` values."""
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


def on_all_cores(size: int, work: Callable[[Iterator[slice]], T]) -> list[T]:
    """Call ``work`` once per core with that core's pieces of ``0 .. size``; the results in the order of the pieces.

    NumPy lets go of the interpreter lock inside its loops, so that threads are enough. What ``work`` computes for an
    element must not depend on the piece it is in: the number of cores would then change the result.
    """
    pieces = -(-size // CHUNK)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, min(cores, MAX_THREADS, pieces))
    edges = [min(size, pieces * part // threads * CHUNK) for part in range(threads + 1)]
    parts = [chunks(first, last) for first, last in itertools.pairwise(edges)]
    if threads == 1:
        return [work(parts[0])]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, parts))


def value_range(vector: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Smallest and largest value of a non-empty ``(P,)`` vector; both NaN where it holds a NaN."""

    def extremes(parts: Iterator[slice]) -> npt.NDArray[np.float32]:
        with np.errstate(invalid="ignore"):
            found = [(vector[part].min(), vector[part].max()) for part in parts]
            lows, highs = zip(*found, strict=True)
            return np.array([np.min(lows), np.max(highs)])  # np.min and not min: it passes a NaN on

    lows, highs = np.stack(on_all_cores(vector.size, extremes), axis=1)
    return float(np.min(lows)), float(np.max(highs))
