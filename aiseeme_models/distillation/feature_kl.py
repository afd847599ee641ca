"""Softened feature distributions: the pooled features are treated as logits.

Hinton et al., "Distilling the Knowledge in a Neural Network", 2015 (arXiv 1503.02531), on features instead of class
scores, as the AISEEME project did between the stages of a curriculum (its ``SwAVKD``: T = 4).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from aiseeme_models.distillation.base import Distillation, distillations
from aiseeme_models.options import Options


class FeatureKLOptions(Options):
    """Options of `FeatureKL`."""

    temperature: float = Field(4.0, gt=0, le=100, description="softens both distributions")


def feature_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(softmax(t / T) || softmax(s / T))``, summed over the features and averaged over the rows.

    Args:
        student: ``(N, D)``.
        teacher: ``(N, D)``.
        temperature: T.
    """
    with torch.autocast(student.device.type, enabled=False):
        own = F.log_softmax(student.float() / temperature, dim=1)
        target = F.log_softmax(teacher.float() / temperature, dim=1)
        return F.kl_div(own, target, reduction="batchmean", log_target=True) * temperature**2


@distillations.register("kl")
class FeatureKL(Distillation[FeatureKLOptions]):
    """KL divergence of softened features."""

    paper = "Hinton et al. 2015, arXiv 1503.02531"
    options_type = FeatureKLOptions

    def loss(self, student: Tensor, teacher: Tensor, previous: Tensor | None) -> Tensor:
        """See `feature_kl`."""
        return feature_kl(student, teacher, self.options.temperature)
