"""Equal features: the mean squared difference of pooled features.

Romero et al., "FitNets: Hints for Thin Deep Nets", 2015 (arXiv 1412.6550), on the last layer, as the AISEEME project
did between the stages of a curriculum (its ``MoCoKD``).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from aiseeme_models.distillation.base import Distillation, distillations
from aiseeme_models.options import Options


class FeatureMSEOptions(Options):
    """The squared difference has nothing to choose."""


def feature_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over rows and features of ``(s - t)^2``, both ``(N, D)``."""
    with torch.autocast(student.device.type, enabled=False):
        return F.mse_loss(student.float(), teacher.float())


@distillations.register("mse")
class FeatureMSE(Distillation[FeatureMSEOptions]):
    """Mean squared difference."""

    paper = "Romero et al. 2015, arXiv 1412.6550"
    options_type = FeatureMSEOptions

    def loss(self, student: Tensor, teacher: Tensor, previous: Tensor | None) -> Tensor:
        """See `feature_mse`."""
        return feature_mse(student, teacher)
