"""FedAdam (Reddi et al., ICLR 2021, arXiv 2003.00295, algorithm 2), without bias correction, as in the paper.

    m <- beta1 m + (1 - beta1) d,   v <- beta2 v + (1 - beta2) d^2,   x <- x + lr m / (sqrt(v) + tau)

with d = mean - x, and v starting at tau^2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from federation_configs.aggregation import FedAdamOptions
from server.aggregation.base import Vector, aggregations
from server.aggregation.server_optimiser import ServerOptimiser


@aggregations.register("fedadam")
class FedAdam(ServerOptimiser):
    """State: ``momentum`` and ``variance``, (P,) float32 each."""

    options_type = FedAdamOptions

    def __init__(self, options: FedAdamOptions, statistics: Sequence[slice] = ()) -> None:
        super().__init__(options, statistics)
        self.options = options

    def first_values(self) -> Mapping[str, float]:
        """Moments of no step yet; the paper starts the second one at ``tau^2``."""
        return {"momentum": 0.0, "variance": self.options.tau**2}

    def _step(self, current: Vector, mean: Vector, state: Mapping[str, Vector]) -> None:
        chosen = self.options
        origin = current.astype(np.float64)
        step = mean - origin
        momentum = chosen.beta1 * state["momentum"].astype(np.float64) + (1 - chosen.beta1) * step
        variance = chosen.beta2 * state["variance"].astype(np.float64) + (1 - chosen.beta2) * step**2
        state["momentum"][:], state["variance"][:] = momentum, variance
        mean[:] = origin + chosen.lr * momentum / (np.sqrt(variance) + chosen.tau)
