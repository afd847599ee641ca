"""FedEMA (Zhuang et al., ICLR 2022, arXiv 2204.04385): sites that keep a part of what they have become.

At the coordinator it is the weighted mean. A site begins a round with ``mu * own + (1 - mu) * global``, where ``own``
is what it trained in the round before and ``mu`` grows with the distance of the two (see `client.own_model`).
"""

from __future__ import annotations

from collections.abc import Sequence

from federation_configs.aggregation import FedEMAOptions
from server.aggregation.base import aggregations
from server.aggregation.exact_mean import ExactMean


@aggregations.register("fedema")
class FedEMA(ExactMean):
    """The weighted mean, with ``ema_tau`` for the sites."""

    options_type = FedEMAOptions

    def __init__(self, options: FedEMAOptions, statistics: Sequence[slice] = ()) -> None:
        super().__init__(options, statistics)
        self.ema_tau = options.tau
