"""DeepCluster-v2: cluster the site's images by their embeddings, then tell which cluster a view's image is in.

Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", 2020 (arXiv 2006.09882),
appendix on DeepCluster-v2, with one head: the embeddings are those of the round before, the clusters are found by
spherical k-means, and their centroids are the weights of the classifier, so that none is trained. Cluster numbers of
different sites never meet: what sites share is the backbone and the projector.
"""

from __future__ import annotations

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

_IMAGES_A_CLUSTER = 4  # fewer on average would make classes of single images
_FEWEST_CLUSTERS = 2


class DeepClusterOptions(Options):
    """Options of `DeepCluster`: for hospitals of thousands of images (ImageNet: clusters 3000)."""

    clusters: int = Field(50, ge=2, description="clusters of a site; a quarter of its images if these are fewer")
    iterations: int = Field(10, ge=1, le=1000, description="iterations of k-means at the beginning of a round")
    temperature: float = Field(0.1, gt=0, le=10, description="temperature of the softmax over centroids")
    hidden_dim: int | None = Field(None, ge=1, description="hidden layer of the projector; default: the feature length")
    projection_dim: int = Field(128, ge=2, description="length of the embeddings that are clustered")


@torch.no_grad()
def spherical_kmeans(
    points: Tensor, clusters: int, generator: torch.Generator, iterations: int
) -> tuple[Tensor, Tensor]:
    """Clusters on the unit sphere, by cosine similarity, begun at random points.

    Args:
        points: ``(N, D)`` float32, of length 1.
        clusters: K, at most N.
        generator: CPU generator.
        iterations: how often centroids move to the mean of their points; an empty cluster's stays where it is.

    Returns:
        Centroids ``(K, D)`` of length 1, and each point's nearest one, ``(N,)`` int64.
    """
    centroids = points[torch.randperm(len(points), generator=generator)[:clusters].to(points.device)]
    for _ in range(iterations):
        nearest = (points @ centroids.T).argmax(dim=1)  # (N,)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, points)
        filled = torch.bincount(nearest, minlength=clusters).unsqueeze(1) > 0  # (K, 1)
        centroids = torch.where(filled, F.normalize(sums, dim=1), centroids)
    return centroids, (points @ centroids.T).argmax(dim=1)


def cluster_logits(embeddings: Tensor, centroids: Tensor, temperature: float) -> Tensor:
    """Cosine similarities to the centroids over the temperature; -inf for centroids of zeros, which are not in use.

    In float32 also under autocast, whose bfloat16 similarities would be off by up to 0.4 %, times 1 / temperature.

    Args:
        embeddings: ``(B, D)``, of length 1.
        centroids: ``(K, D)``, of length 1 or 0.
        temperature: divides the similarities.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        unused = ~centroids.any(dim=1)  # (K,)
        return (embeddings @ centroids.T / temperature).masked_fill(unused, -torch.inf)  # (B, K)


class _Local(nn.Module):
    """What DeepCluster keeps at the site: embeddings, of zeros for images not yet seen, and the last centroids."""

    bank: Tensor
    centroids: Tensor

    def __init__(self, clusters: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(0, dim))
        self.register_buffer("centroids", torch.zeros(clusters, dim))


@pretext_tasks.register("deepcluster")
class DeepCluster(PretextTask):
    """Two views, an MLP projector, a memory bank that is clustered at the beginning of every round."""

    family = "clustering"
    paper = "Caron et al. 2020, arXiv 2006.09882 (DeepCluster-v2)"
    recipe = Recipe("lars", 4.8, 4096, 1e-6)
    options_type = DeepClusterOptions
    per_image = ("bank",)
    comparable_rounds = False  # the clusters are others in every round

    local: _Local
    options: DeepClusterOptions

    _rows: Tensor | None = None
    _embeddings: Tensor | None = None
    _assignments: Tensor | None = None  # of all images, for the round, (N,) int64 on the CPU; -1: not yet seen

    @classmethod
    def build(cls, backbone: Backbone, options: Options, norm: Norm) -> DeepCluster:
        """See `PretextTask.build`."""
        options = options_of(DeepClusterOptions, options)
        projector = mlp(backbone.feature_dim, options.hidden_dim or backbone.feature_dim, options.projection_dim, norm)
        task = cls(backbone, projector, _Local(options.clusters, options.projection_dim))
        task.options = options
        return task

    @classmethod
    def decomposes_per_image(cls, norm: Norm) -> bool:
        """False: an image moves the centroids, which are other images' targets."""
        return False

    @classmethod
    def check(cls, options: Options, *, norm: Norm, batch_size: int, image_size: int, channels: int) -> None:
        """See `PretextTask.check`."""
        if batch_size < _FEWEST_CLUSTERS:
            raise InputError("deepcluster finds its first clusters in a batch: batch_size must be at least 2")

    @property
    def minimum_batch(self) -> int:
        """One image alone is no two clusters."""
        return _FEWEST_CLUSTERS

    def reset_local(self, generator: torch.Generator) -> None:
        """Empty the bank; centroids are random directions until there are images to be clustered."""
        self.local.bank.zero_()
        centroids = self.local.centroids
        centroids.copy_(F.normalize(torch.randn(centroids.shape, generator=generator), dim=1))

    def begin_round(self) -> None:
        """Cluster anew, once the round's first images are looked at: a round is begun more than once."""
        self._assignments = None

    def look_at(self, indices: Tensor | None) -> None:
        """See `PretextTask.look_at`."""
        self._rows = indices

    def views(self, images: Tensor, augmentation: BatchAugmentation, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Two views of each image ``(2B, C, H, W)`` and their clusters ``(2B,)`` int64.

        These are the image's in the clustering of the round. An image that had no row of the bank then (held out, or
        not yet seen) has for each view the centroid that is nearest to its other view.
        """
        first, second = augmentation(images, generator), augmentation(images, generator)
        views = torch.stack([first, second], dim=1).flatten(0, 1)  # (2B, C, H, W)
        if self._rows is None:
            return views, self._nearest_of_the_other_view(views)
        if self._assignments is None:
            self._assignments = self._cluster(views, self._rows, generator)
        clusters = self._assignments[self._rows].repeat_interleave(2)  # (2B,)
        if bool((clusters < 0).any()):
            others = self._nearest_of_the_other_view(views)
            return views, torch.where(clusters.to(others.device) < 0, others, clusters.to(others.device))
        return views, clusters.to(views.device)

    def _embed(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, P)`` float32, of length 1."""
        return F.normalize(self.head(self.backbone(images)).float(), dim=1)

    @torch.no_grad()
    def _nearest_of_the_other_view(self, views: Tensor) -> Tensor:
        nearest = cluster_logits(self._embed(views), self.local.centroids, 1.0).argmax(dim=1)  # (2B,)
        return torch.unflatten(nearest, 0, (-1, 2)).flip(1).flatten()

    @torch.no_grad()
    def _cluster(self, views: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Find new centroids in the bank, or in this batch where that is empty; every image's nearest one, or -1."""
        bank, centroids = self.local.bank, self.local.centroids
        if not bool(bank.any()):
            bank[rows.to(bank.device)] = self._embed(views)[::2]
        seen = bank.any(dim=1)  # (N,)
        points = bank[seen]
        count = max(_FEWEST_CLUSTERS, min(self.options.clusters, len(points) // _IMAGES_A_CLUSTER))
        found, nearest = spherical_kmeans(points, count, generator, self.options.iterations)
        centroids.zero_()
        centroids[:count] = found
        assignments = torch.full((len(bank),), -1)
        assignments[seen.cpu()] = nearest.cpu()
        return assignments

    def loss(self, views: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """Cross-entropy of the clusters; the embeddings of first views are remembered for `after_step`."""
        images, clusters = views
        embeddings = self._embed(images)
        self._embeddings = embeddings.detach()[::2]
        return F.cross_entropy(cluster_logits(embeddings, self.local.centroids, self.options.temperature), clusters)

    def chance_loss(self, batch_size: int) -> None:
        """None: a network that learnt nothing tells the clusters of its own embeddings, and K depends on the site."""
        return

    @torch.no_grad()
    def after_step(self, views: tuple[Tensor, ...], progress: float) -> None:
        """Put the step's embeddings into the images' rows, for the clusters of the next round."""
        if self._rows is None or self._embeddings is None:
            return
        bank = self.local.bank
        bank[self._rows.to(bank.device)] = self._embeddings
