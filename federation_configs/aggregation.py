"""The typed options of every aggregation method; the methods themselves stand in `server.aggregation`."""

from __future__ import annotations

from pydantic import Field

from aiseeme_models.options import Options
from aiseeme_models.registry import Registry

aggregation_options: Registry[type[Options]] = Registry("aggregation")


@aggregation_options.register("fedavg")
class FedAvgOptions(Options):
    """Mean weighted by the sites' numbers of images (McMahan et al. 2017)."""


@aggregation_options.register("fedprox")
class FedProxOptions(Options):
    """FedAvg with a proximal term mu/2 |w - w_global|^2 in the sites' loss (Li et al. 2020)."""

    mu: float = Field(default=0.01, gt=0)


@aggregation_options.register("fedavgm")
class FedAvgMOptions(Options):
    """FedAvg with server momentum (Hsu et al. 2019): step size ``lr``, momentum ``beta``."""

    lr: float = Field(default=1.0, gt=0)
    beta: float = Field(default=0.9, ge=0, lt=1)


@aggregation_options.register("fedadam")
class FedAdamOptions(Options):
    """Adam on the mean update (Reddi et al. 2021, algorithm 2); ``tau`` is the adaptivity constant."""

    lr: float = Field(default=0.01, gt=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    tau: float = Field(default=1e-3, gt=0)


@aggregation_options.register("fedema")
class FedEMAOptions(Options):
    """FedAvg whose sites begin a round between the global model and their own (Zhuang et al. 2022)."""

    tau: float = Field(default=0.7, ge=0, le=1)


@aggregation_options.register("l-dawa")
class LDAWAOptions(Options):
    """Mean of each layer, weighted by images times the cosine with the global layer (Rehman et al. 2023)."""


@aggregation_options.register("median")
class MedianOptions(Options):
    """Coordinate-wise median over the sites, unweighted (Yin et al. 2018)."""


@aggregation_options.register("trimmed-mean")
class TrimmedMeanOptions(Options):
    """Coordinate-wise mean without the ``trim`` smallest and largest share, unweighted (Yin et al. 2018)."""

    trim: float = Field(default=0.2, gt=0, lt=0.5)
