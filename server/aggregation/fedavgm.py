"""FedAvgM (Hsu et al. 2019, arXiv 1909.06335): FedAvg with momentum at the coordinator.

m <- beta m + d,   x <- x + lr m,   with d = mean - x
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from federation_configs.aggregation import FedAvgMOptions
from server.aggregation.base import Vector, aggregations
from server.aggregation.server_optimiser import ServerOptimiser


@aggregations.register("fedavgm")
class FedAvgM(ServerOptimiser):
    """State: ``momentum`` (P,) float32."""

    options_type = FedAvgMOptions

    def __init__(self, options: FedAvgMOptions, statistics: Sequence[slice] = ()) -> None:
        super().__init__(options, statistics)
        self.options = options

    def first_values(self) -> Mapping[str, float]:
        """No momentum yet."""
        return {"momentum": 0.0}

    def _step(self, current: Vector, mean: Vector, state: Mapping[str, Vector]) -> None:
        origin = current.astype(np.float64)
        momentum = self.options.beta * state["momentum"].astype(np.float64) + (mean - origin)
        state["momentum"][:] = momentum
        mean[:] = origin + self.options.lr * momentum
