"""Keeping a backbone near an earlier one while it learns a pretext task: one file for each way to compare features."""

from aiseeme_models.distillation import feature_kl, feature_mse, moon  # noqa: F401  (registers them)
from aiseeme_models.distillation.base import Distillation, distillations
from aiseeme_models.distillation.options import DistillOptions
from aiseeme_models.distillation.teaching import Teaching

__all__ = ["DistillOptions", "Distillation", "Teaching", "distillations"]
