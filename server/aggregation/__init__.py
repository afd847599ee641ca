"""How the coordinator turns the sites' updates into the next global model: one file per method."""

from __future__ import annotations

from server.aggregation import (  # noqa: F401  (registers them)
    fedadam,
    fedavg,
    fedavgm,
    fedema,
    fedprox,
    ldawa,
    median,
    trimmed_mean,
)
from server.aggregation.base import Aggregation, UpdateRefused, aggregations, build_aggregation

__all__ = ["Aggregation", "UpdateRefused", "aggregations", "build_aggregation"]
