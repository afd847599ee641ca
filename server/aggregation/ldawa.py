"""L-DAWA (Rehman et al., ICCV 2023, arXiv 2307.07393): layer by layer, sites that go with the global model count more.

A site's layer counts by its number of images times the cosine of the angle between its weights and the global ones.
The paper multiplies the layers by that and divides by the number of sites, so that they shrink from round to round, and
a layer that starts at zero (a bias) stays there. Here the products are weights of a mean, which keeps the layers' size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aiseeme_models.options import Options
from federation_configs.aggregation import LDAWAOptions
from server.aggregation.base import Vector, aggregations
from server.aggregation.chunks import chunks
from server.aggregation.exact_mean import ExactMean

_MOST_BITS, _LEAST_BITS = 16, 4


@aggregations.register("l-dawa")
class LDAWA(ExactMean):
    """The mean of each layer, weighted by images times agreement. A layer with which nobody agrees stays as it was."""

    options_type = LDAWAOptions

    def __init__(self, options: Options, statistics: Sequence[slice] = (), variances: Sequence[slice] = ()) -> None:
        super().__init__(options, statistics, variances)
        self._bits = 0
        self._weights: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def _open(self, scratch: Path) -> None:
        # Agreement becomes a whole number of so many bits: integers add up exactly, whatever the order of the sites.
        spare = 62 - self._bound_bits - self._max_weight.bit_length()
        self._bits = max(_LEAST_BITS, min(_MOST_BITS, spare // 2))
        super()._open(scratch)
        self._scale_bits -= self._bits
        self._weights = np.zeros(len(self._parts), dtype=np.int64)

    @property
    def _parts(self) -> Sequence[slice]:
        return self.layers or (slice(0, self._opened().size),)

    def _take(self, update: Vector, weight: int) -> None:
        current = self._opened()
        plain = {(part.start, part.stop) for part in self.statistics}
        for index, part in enumerate(self._parts):
            agrees = 1.0 if (part.start, part.stop) in plain else agreement(update[part], current[part])
            counts = weight * round(agrees * (1 << self._bits))
            self._weights[index] += counts
            if counts:
                self._add(update, counts, chunks(part.start, part.stop))

    def _close(self, current: Vector) -> Vector:
        divisors = [math.ldexp(float(weight), self._scale_bits) for weight in self._weights]
        return self._divided(current, zip(self._parts, divisors, strict=True))


def agreement(update: Vector, current: Vector) -> float:
    """The cosine of the angle between two layers, at least 0; 1 where the global one is zero and has no direction."""
    ours, theirs = current.astype(np.float64), update.astype(np.float64)
    own, other = float(np.linalg.norm(ours)), float(np.linalg.norm(theirs))
    if own == 0:
        return 1.0
    return 0.0 if other == 0 else min(1.0, max(0.0, float(ours @ theirs) / (own * other)))
