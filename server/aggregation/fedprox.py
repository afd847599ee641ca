"""FedProx (Li et al., MLSys 2020, arXiv 1812.06127): FedAvg with sites that are held near the global model.

At the coordinator it is the weighted mean; the sites add ``mu / 2 * ||x - x_global||^2`` to their loss.
"""

from __future__ import annotations

from collections.abc import Sequence

from federation_configs.aggregation import FedProxOptions
from server.aggregation.base import aggregations
from server.aggregation.exact_mean import ExactMean


@aggregations.register("fedprox")
class FedProx(ExactMean):
    """The weighted mean, with ``proximal_mu`` for the sites."""

    options_type = FedProxOptions

    def __init__(self, options: FedProxOptions, statistics: Sequence[slice] = ()) -> None:
        super().__init__(options, statistics)
        self.proximal_mu = options.mu
