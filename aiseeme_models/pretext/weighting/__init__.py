"""How the losses of several tasks on one backbone are weighed against each other: one file each."""

from aiseeme_models.pretext.weighting import (  # noqa: F401  (registers them)
    dynamic_average,
    equal,
    self_paced,
    uncertainty,
)
from aiseeme_models.pretext.weighting.base import Weighting, weightings

__all__ = ["Weighting", "weightings"]
