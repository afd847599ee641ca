"""SimCLR: tell which two views are of one image, among all views of a batch.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020 (arXiv 2002.05709).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from aiseeme_models.backbones import Backbone, Norm
from aiseeme_models.options import Options
from aiseeme_models.pretext.base import Recipe, options_of, pretext_tasks
from aiseeme_models.pretext.heads import mlp
from aiseeme_models.pretext.two_views import TwoViewsOfABatch


class SimCLROptions(Options):
    """Options of `SimCLR`. The paper's temperature of 0.1 is for batches of thousands."""

    temperature: float = Field(0.2, gt=0, le=10, description="temperature of the softmax over similarities")
    hidden_dim: int | None = Field(None, ge=1, description="hidden layer of the projector; default: the feature length")
    projection_dim: int = Field(128, ge=2, description="length of the projections that are compared")


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """The normalised temperature-scaled cross-entropy (eq. 1 of the paper), mean over the 2B views.

    In float32 also under autocast, whose bfloat16 similarities would be off by up to 0.4 %, times 1 / temperature.

    Args:
        first: ``(B, D)`` projections of one view of every image; need not be normalised.
        second: ``(B, D)`` projections of the other view, in the same order.
        temperature: divides the cosine similarities.
    """
    batch = len(first)
    with torch.autocast(first.device.type, enabled=False):
        z = F.normalize(torch.cat([first, second]).float(), dim=1)  # (2B, D)
        logits = (z @ z.T / temperature).fill_diagonal_(-math.inf)  # (2B, 2B): no view is its own partner
        partner = torch.arange(2 * batch, device=z.device).roll(batch)  # (2B,)
        return F.cross_entropy(logits, partner)


@pretext_tasks.register("simclr")
class SimCLR(TwoViewsOfABatch):
    """Two views, an MLP projector, NT-Xent over the batch."""

    family = "instance"
    paper = "Chen et al. 2020, arXiv 2002.05709"
    recipe = Recipe("lars", 0.3, 256, 1e-6)
    options_type = SimCLROptions
    compares = "simclr compares the images of a batch"

    options: SimCLROptions

    @classmethod
    def build(cls, backbone: Backbone, options: Options, norm: Norm) -> SimCLR:
        """See `PretextTask.build`."""
        options = options_of(SimCLROptions, options)
        hidden = options.hidden_dim or backbone.feature_dim
        task = cls(backbone, mlp(backbone.feature_dim, hidden, options.projection_dim, norm))
        task.options = options
        return task

    def loss(self, views: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """NT-Xent of the projections."""
        first, second = self.projections(views)
        return nt_xent(first, second, self.options.temperature)

    def chance_loss(self, batch_size: int) -> float:
        """ln(2B - 1): all projections alike."""
        return math.log(2 * batch_size - 1)
