"""How fast and how lean the streamed mean is: 100 replies of ResNet-50's size, made one at a time.

Run from the repository's root: ``python -m benchmarks.aggregation``. Prints one line of JSON. Memory is the process's
resident set beside the global model: the sums (2 models), one reply (1 model), and the cores' buffers. Speed is given
for the bytes that a fold has to move (4 read of the reply, 8 read and 8 written of the sums) and set against the
fastest loop over memory that NumPy can run: adding a constant to the sums in place, on as many threads.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

from server.aggregation import build_aggregation
from server.aggregation.chunks import on_all_cores

RESNET50 = 25_557_032
BYTES_PER_VALUE = 4 + 8 + 8


class PeakMemory:
    """The largest resident set since the start, sampled in a thread."""

    def __init__(self) -> None:
        self._process = psutil.Process(os.getpid())
        self._stop = threading.Event()
        self.start = self.peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._stop.wait(0.002):
            self.peak = max(self.peak, self._process.memory_info().rss)

    def stop(self) -> int:
        """Bytes at the peak beyond those at the start."""
        self._stop.set()
        self._thread.join()
        return int(self.peak - self.start)


def memory_bandwidth(size: int, repeats: int = 5) -> float:
    """Bytes per second of ``sums += 1`` on ``(size,)`` int64, the best of ``repeats``."""
    sums = np.zeros(size, dtype=np.int64)

    def add(parts: Iterator[slice]) -> None:
        for part in parts:
            np.add(sums[part], 1, out=sums[part])

    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        on_all_cores(size, add)
        best = min(best, time.perf_counter() - start)
    return 16 * size / best


def measure(replies: int, size: int) -> dict[str, float | int]:
    """Fold ``replies`` replies into a mean and check the result against a float64 sum on a sample."""
    generator = np.random.default_rng(0)
    current = (0.05 * generator.standard_normal(size, dtype=np.float32)).astype(np.float32)
    sample = generator.integers(0, size, 1000)
    weights = [int(weight) for weight in generator.integers(50, 5000, replies)]
    reference = np.zeros(sample.size)
    method = build_aggregation("fedavg")
    warm = build_aggregation("fedavg")  # the first fold also starts threads and loads code
    warm.start_round(current, 10, Path())
    warm.fold(current, 10)
    del warm

    memory = PeakMemory()
    folding: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        method.start_round(current, sum(weights), Path(scratch))
        for weight in weights:
            update = generator.random(size, dtype=np.float32)
            update -= 0.5
            update *= 0.1
            reference += weight * update[sample].astype(np.float64)
            start = time.perf_counter()
            method.fold(update, weight)
            folding.append(time.perf_counter() - start)
            del update
        start = time.perf_counter()
        result = method.finish_round()
        finish = time.perf_counter() - start
    extra = memory.stop()
    error = float(np.abs(result[sample] - reference / sum(weights)).max())
    median = float(np.median(folding))
    bandwidth = memory_bandwidth(size)
    fold_rate = BYTES_PER_VALUE * size / median
    return {
        "replies": replies,
        "values": size,
        "threads": len(os.sched_getaffinity(0)),
        "peak_extra_models": round(extra / current.nbytes, 2),
        "fold_ms_median": round(1e3 * median, 1),
        "fold_ms_best": round(1e3 * min(folding), 1),
        "finish_ms": round(1e3 * finish, 1),
        "fold_gb_per_s": round(fold_rate / 1e9, 1),
        "bandwidth_gb_per_s": round(bandwidth / 1e9, 1),
        "part_of_bandwidth": round(fold_rate / bandwidth, 2),
        "largest_error": error,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replies", type=int, default=100)
    parser.add_argument("--values", type=int, default=RESNET50)
    chosen = parser.parse_args()
    print(json.dumps(measure(chosen.replies, chosen.values)))


if __name__ == "__main__":
    main()
