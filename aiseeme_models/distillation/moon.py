"""MOON: features nearer to the global model's than to those that the site itself had a round ago.

Li et al., "Model-Contrastive Federated Learning", CVPR 2021 (arXiv 2103.16257), eq. 3. The teacher is the global
backbone of the round (``teacher = "round"``); features are compared before any projector.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from aiseeme_models.distillation.base import Distillation, distillations
from aiseeme_models.options import Options


class MoonOptions(Options):
    """Options of `Moon`."""

    temperature: float = Field(0.5, gt=0, le=10, description="divides the cosine similarities")


def model_contrastive(student: Tensor, teacher: Tensor, previous: Tensor, temperature: float) -> Tensor:
    """``-log(exp(cos(s, t) / T) / (exp(cos(s, t) / T) + exp(cos(s, p) / T)))``, mean over the rows.

    Args:
        student: ``(N, D)``.
        teacher: ``(N, D)`` features of the global model.
        previous: ``(N, D)`` features of the site's own model of the round before.
        temperature: T.
    """
    with torch.autocast(student.device.type, enabled=False):
        nearer = F.cosine_similarity(student.float(), teacher.float(), dim=1)  # (N,)
        further = F.cosine_similarity(student.float(), previous.float(), dim=1)  # (N,)
        return F.softplus((further - nearer) / temperature).mean()


@distillations.register("moon")
class Moon(Distillation[MoonOptions]):
    """Model-contrastive loss; 0 in a site's first round of a stage, when it has no earlier model."""

    paper = "Li et al. 2021, arXiv 2103.16257"
    options_type = MoonOptions
    needs_previous = True

    def loss(self, student: Tensor, teacher: Tensor, previous: Tensor | None) -> Tensor:
        """See `model_contrastive`."""
        if previous is None:
            return student.new_zeros((), dtype=torch.float32)
        return model_contrastive(student, teacher, previous, self.options.temperature)
