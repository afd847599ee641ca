"""SwAV: tell from one view to which prototypes another view of the image was assigned.

Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", 2020 (arXiv 2006.09882).

The prototypes are shared by the sites, so they are normalised in the forward pass. The paper writes them back to length
1 before every step, which is no step of an optimiser: a mean of the sites' unit vectors is shorter than 1, and FedProx,
momentum and server optimisers would see jumps that no gradient made. Here any length means the same prototype.
"""

from __future__ import annotations

import math

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
from aiseeme_models.pretext.multi_crop import GLOBAL_CROPS, MultiCropOptions, check_crops, encode_crops, multi_crop


class SwAVOptions(MultiCropOptions):
    """Options of `SwAV`: for hospitals of thousands of images (ImageNet: prototypes 3000, queue 3840 at batch 256)."""

    prototypes: int = Field(64, ge=2, description="prototypes that views are assigned to, the same at all sites")
    epsilon: float = Field(0.05, gt=0, le=1, description="smoothness of the assignments")
    iterations: int = Field(3, ge=1, le=1000, description="iterations of Sinkhorn-Knopp")
    temperature: float = Field(0.1, gt=0, le=10, description="temperature of the softmax over prototypes")
    queue: int = Field(0, ge=0, description="earlier embeddings assigned along with a batch; they never leave the site")
    queue_from: float = Field(0.1, ge=0, lt=1, description="fraction of the stage after which the queue is filled")
    freeze: float = Field(
        0.01, ge=0, lt=1, description="fraction of the stage in which the prototypes stay as they are"
    )
    hidden_dim: int | None = Field(None, ge=1, description="hidden layer of the projector; default: the feature length")
    projection_dim: int = Field(128, ge=2, description="length of the embeddings and prototypes")


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Soft assignments that use all prototypes alike (eq. 3 to 5 of the paper), by Sinkhorn-Knopp on logarithms.

    Args:
        scores: ``(B, K)`` float32 similarities to the prototypes.
        epsilon: the larger, the closer to equal shares.
        iterations: of Sinkhorn-Knopp; ends with the images.

    Returns:
        ``(B, K)``, each row sums to 1.
    """
    codes = scores / epsilon
    for _ in range(iterations):
        codes = codes - codes.logsumexp(dim=0, keepdim=True)  # every prototype has the same share of the batch
        codes = codes - codes.logsumexp(dim=1, keepdim=True)  # every image is assigned once
    return codes.exp()


def swapped_prediction(scores: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of predicting a global crop's code from the image's other crops (eq. 2 and 6 of the paper).

    Args:
        scores: ``(B, V, K)`` similarities of all crops to the prototypes, of each image first its G global ones.
        codes: ``(B, G, K)`` assignments of the global crops.
        temperature: divides the similarities.
    """
    images, crops, _ = scores.shape
    predictions = F.log_softmax(scores / temperature, dim=2)  # (B, V, K)
    terms = -torch.einsum("bgk,bvk->gv", codes, predictions) / images  # (G, V)
    others = terms.sum() - terms.diagonal().sum()  # no crop predicts its own code
    return others / (codes.shape[1] * (crops - 1))


class _Head(nn.Module):
    """Projector and prototypes.

    Args:
        projector: ``(B, D)`` features to ``(B, P)``.
        prototypes: K.
        dim: P.
    """

    def __init__(self, projector: nn.Sequential, prototypes: int, dim: int) -> None:
        super().__init__()
        self.projector = projector
        self.prototypes = nn.Linear(dim, prototypes, bias=False)


class _Local(nn.Module):
    """What SwAV keeps at the site.

    ``queue`` ``(2, L, P)``: earlier embeddings of first and second global crops. ``entered``: how many images entered
    it so far. ``progress``: how much of the stage was done when the site's last step ended, in [0, 1].
    """

    queue: Tensor
    entered: Tensor
    progress: Tensor

    def __init__(self, queue: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("queue", torch.zeros(GLOBAL_CROPS, queue, dim))
        self.register_buffer("entered", torch.zeros((), dtype=torch.long))
        self.register_buffer("progress", torch.zeros((), dtype=torch.float64))


@pretext_tasks.register("swav")
class SwAV(PretextTask):
    """Two global crops and smaller local ones, an MLP projector, prototypes that the sites share."""

    family = "clustering"
    paper = "Caron et al. 2020, arXiv 2006.09882"
    recipe = Recipe("lars", 0.6, 256, 1e-6)  # for batches of 256 images; 4.8 for 4096
    options_type = SwAVOptions

    local: _Local
    options: SwAVOptions

    # `local.entered` and `local.progress`, read once a round: reading them from a GPU makes it wait.
    _entered: int = 0
    _progress: float = 0.0
    _embeddings: Tensor | None = None

    @classmethod
    def build(cls, backbone: Backbone, options: Options, norm: Norm) -> SwAV:
        """See `PretextTask.build`."""
        options = options_of(SwAVOptions, options)
        projector = mlp(backbone.feature_dim, options.hidden_dim or backbone.feature_dim, options.projection_dim, norm)
        head = _Head(projector, options.prototypes, options.projection_dim)
        task = cls(backbone, head, _Local(options.queue, options.projection_dim))
        task.options = options
        return task

    @classmethod
    def decomposes_per_image(cls, norm: Norm) -> bool:
        """False: the images of a batch share the prototypes out among themselves."""
        return False

    @classmethod
    def check(cls, options: Options, *, norm: Norm, batch_size: int, image_size: int, channels: int) -> None:
        """See `PretextTask.check`."""
        options = options_of(SwAVOptions, options)
        check_crops("swav", options, image_size)
        if batch_size < 2:
            raise InputError("swav shares prototypes out among the images of a batch: batch_size must be at least 2")
        if options.queue % batch_size:
            fitting = max(1, round(options.queue / batch_size)) * batch_size
            raise InputError(
                f"swav's queue must be a multiple of batch_size: queue is {options.queue}, batch_size is {batch_size};"
                f" for instance queue = {fitting}, or 0 for none"
            )

    @property
    def minimum_batch(self) -> int:
        """One image alone would be assigned to all prototypes alike."""
        return 2

    @property
    def _has_queue(self) -> bool:
        return 0 < self.options.queue <= self._entered

    def reset_local(self, generator: torch.Generator) -> None:
        """Empty the queue, at the beginning of the stage."""
        for buffer in (self.local.queue, self.local.entered, self.local.progress):
            buffer.zero_()
        self.begin_round()

    def begin_round(self) -> None:
        """Read where the site was in the stage."""
        self._entered, self._progress = int(self.local.entered), float(self.local.progress)

    def views(self, images: Tensor, augmentation: BatchAugmentation, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Global crops ``(2B, C, S, S)`` and local ones ``(nB, C, s, s)``."""
        return multi_crop(images, augmentation, generator, self.options)

    def loss(self, views: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """Swapped prediction; the global crops' embeddings are remembered for `after_step`."""
        wide, small = views
        head = self.head
        assert isinstance(head, _Head)
        encoded = encode_crops(lambda crops: head.projector(self.backbone(crops)), wide, small)  # (B, V, P)
        frozen = self._progress < self.options.freeze
        weight = head.prototypes.weight.detach() if frozen else head.prototypes.weight  # (K, P)
        with torch.autocast(wide.device.type, enabled=False):
            embeddings, prototypes = F.normalize(encoded.float(), dim=2), F.normalize(weight.float(), dim=1)
            self._embeddings = embeddings[:, :GLOBAL_CROPS].detach()
            scores = embeddings @ prototypes.T  # (B, V, K)
            codes = [self._codes(scores[:, crop], prototypes, crop) for crop in range(GLOBAL_CROPS)]
            return swapped_prediction(scores, torch.stack(codes, dim=1), self.options.temperature)

    @torch.no_grad()
    def _codes(self, scores: Tensor, prototypes: Tensor, crop: int) -> Tensor:
        """Assignments ``(B, K)`` of a batch's crops, along with the queue once that is full."""
        images = len(scores)
        if self._has_queue:
            scores = torch.cat([scores, self.local.queue[crop] @ prototypes.T])  # (B + L, K)
        return sinkhorn(scores, self.options.epsilon, self.options.iterations)[:images]

    def chance_loss(self, batch_size: int) -> float:
        """ln K: all prototypes equally likely."""
        return math.log(self.options.prototypes)

    @torch.no_grad()
    def after_step(self, views: tuple[Tensor, ...], progress: float) -> None:
        """Let the step's embeddings take the place of the oldest ones, from ``queue_from`` on."""
        queue, embeddings = self.local.queue, self._embeddings
        if self.options.queue and progress > self.options.queue_from and embeddings is not None:
            places = (self._entered + torch.arange(len(embeddings))) % self.options.queue  # (B,)
            queue.index_copy_(1, places.to(queue.device), embeddings.transpose(0, 1))
            self._entered += len(embeddings)
        self._progress = progress
        self.local.entered.fill_(self._entered)
        self.local.progress.fill_(progress)
