"""Coordinate-wise median (Yin et al., ICML 2018, arXiv 1803.01498): half of the sites may be wrong."""

from __future__ import annotations

import numpy as np

from federation_configs.aggregation import MedianOptions
from server.aggregation.base import Vector, aggregations
from server.aggregation.kept_replies import KeptReplies


@aggregations.register("median")
class Median(KeptReplies):
    """The middle value; for an even number of replies the mean of the two in the middle."""

    options_type = MedianOptions

    def _combine(self, replies: Vector) -> Vector:
        upper = len(replies) // 2
        lower = (len(replies) - 1) // 2
        middle: Vector = ((replies[lower].astype(np.float64) + replies[upper]) / 2).astype(np.float32)
        return middle
