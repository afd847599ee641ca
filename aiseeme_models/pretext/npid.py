"""NPID: every image is a class of its own, whose weights are a running mean of its embeddings in a memory bank.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", 2018 (arXiv 1805.01978). The loss
is the softmax over the image's own row and drawn negatives (InfoNCE), as in OpenSelfSup and MMSelfSup; the paper itself
estimates the same softmax by NCE with a constant for its denominator.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from aiseeme_models.backbones import Backbone, Norm
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.options import Options
from aiseeme_models.pretext.base import PretextTask, Recipe, options_of, pretext_tasks


class NPIDOptions(Options):
    """Options of `NPID`: for hospitals of thousands of images (ImageNet: negatives 65536)."""

    negatives: int = Field(
        1024, ge=1, description="images drawn as negatives of each image; all others if it has fewer"
    )
    momentum: float = Field(0.5, ge=0, lt=1, description="how much of an image's row stays when it is seen again")
    temperature: float = Field(0.07, gt=0, le=10, description="temperature of the softmax over similarities")
    projection_dim: int = Field(128, ge=2, description="length of the embeddings that are compared")


def instance_discrimination(
    embeddings: Tensor, positives: Tensor, bank: Tensor, negatives: Tensor, temperature: float
) -> Tensor:
    """Cross-entropy of finding an image's positive among its negatives, mean over the batch.

    With all other rows as negatives it is the full non-parametric softmax (eq. 2 of the paper). In float32 also under
    autocast, whose bfloat16 similarities would be off by up to 0.4 %, times 1 / temperature.

    Args:
        embeddings: ``(B, D)``, of length 1.
        positives: ``(B, D)``, of length 1.
        bank: ``(N, D)``, of length 1.
        negatives: ``(B, K)`` int64, each image's own rows of the bank.
        temperature: divides the cosine similarities.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        positive = (embeddings * positives).sum(dim=1, keepdim=True)  # (B, 1)
        # All similarities are cheaper than gathering B * K rows: hospitals have thousands of images.
        others = (embeddings @ bank.T).gather(1, negatives)  # (B, K)
        logits = torch.cat([positive, others], dim=1) / temperature  # (B, 1 + K)
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


class _Local(nn.Module):
    """What NPID keeps at the site."""

    bank: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(0, dim))


@pretext_tasks.register("npid")
class NPID(PretextTask):
    """One view, a linear head, a memory bank with a row for every training image of the site."""

    family = "instance"
    paper = "Wu et al. 2018, arXiv 1805.01978"
    recipe = Recipe("sgd", 0.03, 256, 1e-4)
    options_type = NPIDOptions
    per_image = ("bank",)
    comparable_rounds = False  # the random rows that a bank begins with are easy negatives: the loss rises at first

    local: _Local
    options: NPIDOptions

    _rows: Tensor | None = None
    _embeddings: Tensor | None = None

    @classmethod
    def build(cls, backbone: Backbone, options: Options, norm: Norm) -> NPID:
        """See `PretextTask.build`."""
        options = options_of(NPIDOptions, options)
        head = nn.Linear(backbone.feature_dim, options.projection_dim)
        task = cls(backbone, head, _Local(options.projection_dim))
        task.options = options
        return task

    @classmethod
    def decomposes_per_image(cls, norm: Norm) -> bool:
        """False: through the bank an image is a negative of the images of later steps."""
        return False

    def reset_local(self, generator: torch.Generator) -> None:
        """Fill the bank with random directions."""
        bank = self.local.bank
        bank.copy_(F.normalize(torch.randn(bank.shape, generator=generator), dim=1))

    def look_at(self, indices: Tensor | None) -> None:
        """See `PretextTask.look_at`."""
        self._rows = indices

    def views(self, images: Tensor, augmentation: BatchAugmentation, generator: torch.Generator) -> tuple[Tensor, ...]:
        """A view ``(B, C, H, W)``, its positive ``(B, P)`` and the rows of its negatives ``(B, K)`` int64.

        The positive is the image's row. An image that is held out has none: there it is the embedding of another view.
        """
        view = augmentation(images, generator)
        bank = self.local.bank
        if self._rows is None:
            with torch.no_grad():
                positives = self._embed(augmentation(images, generator))
        else:
            positives = bank[self._rows.to(bank.device)]
        return view, positives, self._draw_negatives(len(images), generator).to(bank.device)

    def _embed(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, P)`` float32, of length 1."""
        return F.normalize(self.head(self.backbone(images)).float(), dim=1)

    def _draw_negatives(self, batch: int, generator: torch.Generator) -> Tensor:
        """Rows ``(B, K)`` of the bank, never an image's own: drawn with replacement, or each other one once."""
        own = torch.full((batch,), len(self.local.bank)) if self._rows is None else self._rows  # (B,)
        others = len(self.local.bank) - (self._rows is not None)
        if others <= self.options.negatives:
            rows = torch.arange(others).expand(batch, -1)  # (B, N - 1)
        else:
            rows = torch.randint(others, (batch, self.options.negatives), generator=generator)  # (B, K)
        return rows + (rows >= own.unsqueeze(1))

    def loss(self, views: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """InfoNCE of the embeddings against the bank; they are remembered for `after_step`."""
        images, positives, negatives = views
        embeddings = self._embed(images)
        self._embeddings = embeddings.detach()
        return instance_discrimination(embeddings, positives, self.local.bank, negatives, self.options.temperature)

    def chance_loss(self, batch_size: int) -> None:
        """None: ln(1 + K) depends on how many images a site has."""
        return

    @torch.no_grad()
    def after_step(self, views: tuple[Tensor, ...], progress: float) -> None:
        """Move the images' rows towards the step's embeddings, back on the sphere."""
        if self._rows is None or self._embeddings is None:
            return
        bank, momentum = self.local.bank, self.options.momentum
        rows = self._rows.to(bank.device)
        bank[rows] = F.normalize(momentum * bank[rows] + (1 - momentum) * self._embeddings, dim=1)
