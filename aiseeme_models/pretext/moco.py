"""MoCo v2: find an image's other view among a queue of earlier images, encoded by a slowly moving encoder.

He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", 2020 (arXiv 1911.05722); Chen et al.,
"Improved Baselines with Momentum Contrastive Learning", 2020 (arXiv 2003.04297).
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from aiseeme_models.backbones import Backbone, Norm
from aiseeme_models.errors import InputError
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.options import Options
from aiseeme_models.pretext.base import PretextTask, Recipe, options_of, pretext_tasks
from aiseeme_models.pretext.heads import mlp
from aiseeme_models.pretext.momentum import MomentumNetwork


class QueueOptions(Options):
    """Options of every MoCo: for hospitals of thousands of images (ImageNet: queue 65536, momentum 0.999)."""

    queue: int = Field(1024, ge=2, description="number of negatives; they never leave the site")
    momentum: float = Field(0.99, ge=0, lt=1, description="momentum of the key encoder")
    temperature: float = Field(0.2, gt=0, le=10, description="temperature of the softmax over similarities")
    projection_dim: int = Field(128, ge=2, description="length of the projections that are compared")


class MoCoOptions(QueueOptions):
    """Options of `MoCo`."""

    hidden_dim: int | None = Field(None, ge=1, description="hidden layer of the projector; default: the feature length")


def info_nce(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding a query's key among the negatives (eq. 1 of the paper), mean over the batch.

    In float32 also under autocast, whose bfloat16 similarities would be off by up to 0.4 %, times 1 / temperature.

    Args:
        queries: ``(B, D)``; need not be normalised.
        keys: ``(B, D)``, of length 1.
        negatives: ``(Q, D)``, of length 1.
        temperature: divides the cosine similarities.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys, negatives = F.normalize(queries.float(), dim=1), keys.float(), negatives.float()
        positive = (queries * keys).sum(dim=1, keepdim=True)  # (B, 1)
        logits = torch.cat([positive, queries @ negatives.T], dim=1) / temperature  # (B, 1 + Q)
        return F.cross_entropy(logits, torch.zeros(len(queries), dtype=torch.long, device=logits.device))


class _Local(nn.Module):
    """What MoCo keeps at the site."""

    queue: Tensor
    position: Tensor

    def __init__(self, key_encoder: MomentumNetwork, queue: int, dim: int) -> None:
        super().__init__()
        self.key_encoder = key_encoder
        self.register_buffer("queue", F.normalize(torch.eye(queue, dim) + 1.0, dim=1))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))


@pretext_tasks.register("moco")
class MoCo(PretextTask):
    """Queries from the online encoder, keys from its moving average, negatives from the queue."""

    family = "instance"
    comparable_sites = False  # negatives are the site's own queue
    paper = "Chen et al. 2020, arXiv 2003.04297"
    recipe = Recipe("sgd", 0.03, 256, 1e-4)
    options_type: ClassVar[type[QueueOptions]] = MoCoOptions
    rederived = ("key_encoder",)

    local: _Local
    options: QueueOptions

    @classmethod
    def projector(cls, features: int, options: QueueOptions) -> nn.Module:
        """``(B, features)`` to ``(B, projection_dim)``; as in the paper, without normalisation."""
        hidden = options_of(MoCoOptions, options).hidden_dim or features
        return mlp(features, hidden, options.projection_dim, None)

    @classmethod
    def build(cls, backbone: Backbone, options: Options, norm: Norm) -> Self:
        """See `PretextTask.build`."""
        options = options_of(QueueOptions, options)
        head = cls.projector(backbone.feature_dim, options)
        keys = MomentumNetwork(nn.Sequential(backbone, head))
        task = cls(backbone, head, _Local(keys, options.queue, options.projection_dim))
        task.options = options
        return task

    @classmethod
    def decomposes_per_image(cls, norm: Norm) -> bool:
        """False: through the queue an image is a negative of the images of later steps."""
        return False

    @classmethod
    def check(cls, options: Options, *, norm: Norm, batch_size: int, image_size: int, channels: int) -> None:
        """See `PretextTask.check`."""
        queue = options_of(QueueOptions, options).queue
        if queue % batch_size:
            fitting = max(1, round(queue / batch_size)) * batch_size
            raise InputError(
                f"moco's queue must be a multiple of batch_size: queue is {queue}, batch_size is {batch_size}; "
                f"for instance queue = {fitting}"
            )

    def reset_local(self, generator: torch.Generator) -> None:
        """Fill the queue with random directions."""
        queue = self.local.queue
        queue.copy_(F.normalize(torch.randn(queue.shape, generator=generator), dim=1))
        self.local.position.zero_()

    def begin_round(self) -> None:
        """Make the key encoder equal to the aggregated online network."""
        self.local.key_encoder.copy_from(self.shared)

    def views(self, images: Tensor, augmentation: BatchAugmentation, generator: torch.Generator) -> tuple[Tensor, ...]:
        """A view ``(B, C, H, W)`` for the query, and the key ``(B, P)`` of another one."""
        query, key = augmentation(images, generator), augmentation(images, generator)
        return query, F.normalize(self.local.key_encoder(key).float(), dim=1)

    def loss(self, views: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """InfoNCE against the queue."""
        images, keys = views
        return info_nce(self.head(self.backbone(images)), keys, self.local.queue, self.options.temperature)

    def chance_loss(self, batch_size: int) -> None:
        """None: ln(1 + Q) tells little, for stale keys are easy negatives: toy runs that learn end at 0.68 of it."""
        return

    @torch.no_grad()
    def after_step(self, views: tuple[Tensor, ...], progress: float) -> None:
        """Move the key encoder, and let the step's keys take the place of the oldest ones."""
        self.local.key_encoder.follow(self.shared, self.options.momentum)
        keys = views[-1]
        queue, position = self.local.queue, self.local.position
        places = (position + torch.arange(len(keys), device=queue.device)) % len(queue)  # (B,)
        queue.index_copy_(0, places, keys)
        position.copy_((position + len(keys)) % len(queue))
