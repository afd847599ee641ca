"""Coordinate-wise trimmed mean (Yin et al., ICML 2018, arXiv 1803.01498): the extremes on both sides are cut off."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from federation_configs.aggregation import TrimmedMeanOptions
from server.aggregation.base import Vector, aggregations
from server.aggregation.kept_replies import KeptReplies


@aggregations.register("trimmed-mean")
class TrimmedMean(KeptReplies):
    """The mean of the values that are left in the middle."""

    options_type = TrimmedMeanOptions

    def __init__(self, options: TrimmedMeanOptions, statistics: Sequence[slice] = ()) -> None:
        super().__init__(options, statistics)
        self.options = options

    def cut(self, replies: int) -> int:
        """Values cut off at each end.

        Rounded up, so that few sites do not quietly turn it into the plain mean; one or two values are always left.
        """
        wanted = math.ceil(round(self.options.trim * replies, 9))
        return min(wanted, (replies - 1) // 2)

    def _combine(self, replies: Vector) -> Vector:
        cut = self.cut(len(replies))
        kept = replies[cut : len(replies) - cut]
        mean: Vector = kept.mean(axis=0, dtype=np.float64).astype(np.float32)
        return mean
