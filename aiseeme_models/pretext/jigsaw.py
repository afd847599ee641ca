"""Jigsaw: by which of a fixed set of permutations were the nine patches of the image shuffled?

Noroozi & Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles", 2016 (arXiv 1603.09246),
with the head of VISSL: a layer for each patch, concatenation in the shuffled order, an MLP classifier.

The paper also brings every patch to the same mean and standard deviation. VISSL does not, and it gained nothing here: a
linear probe on HAM10000 had 0.372 with it and 0.370 without.
"""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from aiseeme_models.backbones import Backbone, Norm
from aiseeme_models.backbones.norm import norm_1d
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.options import Options
from aiseeme_models.pretext.base import Recipe, options_of, pretext_tasks
from aiseeme_models.pretext.heads import mlp
from aiseeme_models.pretext.patches import CELLS, PatchTask, check_image_size, cut_patches


class JigsawOptions(Options):
    """Options of `Jigsaw`: for hospitals of thousands of images (ImageNet: 2000 permutations, patch_dim 1000)."""

    permutations: int = Field(100, ge=2, le=2000, description="number of permutations to tell apart")
    patch_dim: int = Field(128, ge=1, description="length of what the head keeps of each patch")
    hidden_dim: int = Field(512, ge=1, description="hidden layer of the classifier")
    grayscale_p: float = Field(
        0.0, ge=0, le=1, description="probability that an image loses its colours (paper: 0.3; 3 channels only)"
    )


@cache
def permutation_set(count: int) -> Tensor:
    """Permutations of the nine cells that differ in many places, chosen greedily (algorithm 1 of the paper).

    The next one is that with the largest smallest Hamming distance to those before it, of these that with the largest
    mean distance. By the mean distance alone, as the algorithm is printed, some of 100 differ in two places only; like
    this every two of them differ in at least six, and the mean distance is the same (8.1 of 9).

    No random number is drawn (the first is the unshuffled grid, and a tie goes to the first in lexicographic order):
    hospitals must mean the same permutation by a class, whatever version of a library they have.

    Args:
        count: P, at most 9!.

    Returns:
        ``(P, 9)`` int64: the cell whose patch comes first, second, ...
    """
    flat = itertools.chain.from_iterable(itertools.permutations(range(CELLS)))
    every = np.fromiter(flat, np.int8).reshape(-1, CELLS).T.copy()  # (9, 9!): fast to compare along
    nearest = np.full(every.shape[1], CELLS, np.int32)
    total = np.zeros(every.shape[1], np.int32)
    chosen = [0]
    while len(chosen) < count:
        distance = (every != every[:, chosen[-1], None]).sum(axis=0, dtype=np.int8)  # (9!,)
        np.minimum(nearest, distance, out=nearest)
        total += distance
        chosen.append(int((nearest * (CELLS * count) + total).argmax()))
    return torch.from_numpy(every[:, chosen].T.astype(np.int64))


@pretext_tasks.register("jigsaw")
class Jigsaw(PatchTask):
    """One puzzle of every image: nine patches that are encoded once each, a classifier of their order."""

    paper = "Noroozi & Favaro 2016, arXiv 1603.09246"
    recipe = Recipe("sgd", 0.1, 256, 1e-4)  # VISSL
    options_type = JigsawOptions

    options: JigsawOptions

    @classmethod
    def build(cls, backbone: Backbone, options: Options, norm: Norm) -> Jigsaw:
        """See `PretextTask.build`."""
        options = options_of(JigsawOptions, options)
        head = nn.Sequential(
            nn.Linear(backbone.feature_dim, options.patch_dim, bias=False),
            norm_1d(norm)(options.patch_dim),
            nn.ReLU(),
            nn.Unflatten(0, (-1, CELLS)),  # (B, 9, patch_dim)
            nn.Flatten(),
            mlp(CELLS * options.patch_dim, options.hidden_dim, options.permutations, norm),
        )
        task = cls(backbone, head)
        task.options = options
        return task

    @classmethod
    def check(cls, options: Options, *, norm: Norm, batch_size: int, image_size: int, channels: int) -> None:
        """See `PretextTask.check`."""
        check_image_size("jigsaw", image_size)

    def views(self, images: Tensor, augmentation: BatchAugmentation, generator: torch.Generator) -> tuple[Tensor, ...]:
        """``(9B, C, p, p)`` patches in the shuffled order, the images, and ``(B,)`` int64 permutations."""
        upright = augmentation.upright().grayscale(self.options.grayscale_p)(images, generator)  # (B, C, H, W)
        patches = cut_patches(upright, generator)  # (9B, C, p, p)
        puzzles = torch.randint(self.options.permutations, (len(images),), generator=generator)  # (B,)
        order = permutation_set(self.options.permutations)[puzzles] + CELLS * torch.arange(len(images)).unsqueeze(1)
        shuffled = patches[order.flatten().to(patches.device)]
        return shuffled, augmentation.plain(images), puzzles.to(images.device)

    def loss(self, views: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """Cross-entropy over the permutations."""
        patches, _, puzzles = views
        logits = self.head(self.encoded(patches))  # (B, P)
        return F.cross_entropy(logits.float(), puzzles)

    def chance_loss(self, batch_size: int) -> float:
        """ln P."""
        return math.log(self.options.permutations)
