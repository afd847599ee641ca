"""FedAvg (McMahan et al., AISTATS 2017, arXiv 1602.05629): the mean, weighted by the number of images."""

from __future__ import annotations

from federation_configs.aggregation import FedAvgOptions
from server.aggregation.base import aggregations
from server.aggregation.exact_mean import ExactMean


@aggregations.register("fedavg")
class FedAvg(ExactMean):
    """The weighted mean and nothing else; no options, no state."""

    options_type = FedAvgOptions
