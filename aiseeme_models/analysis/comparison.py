"""Two backbones on the same images, block by block: figures of which none is of one image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aiseeme_models.analysis.cka import MinibatchCKA
from aiseeme_models.analysis.rank import rankme
from aiseeme_models.analysis.svcca import svcca
from aiseeme_models.backbones import Backbone
from aiseeme_models.downstream.features import ImageSource, Normalise, recalibrate_batch_norm
from aiseeme_models.errors import InputError

BATCH = 64
"""Images of a batch of HSIC_1; comparisons use whole batches."""


@dataclass(frozen=True)
class BlockLikeness:
    """How alike two backbones are behind one block.

    Attributes:
        cka: linear CKA in [-1, 1]; None where one of them gives the same for all images.
        svcca: in [0, 1]; None likewise.
        ranks: effective rank (RankMe) of the first and of the second, at least 1.
    """

    cka: float | None
    svcca: float | None
    ranks: tuple[float, float]


def paired_blocks(first: Backbone, second: Backbone) -> list[tuple[str, str]]:
    """Which blocks are compared: all, in order, where both have the same names; else the last of each."""
    if first.blocks == second.blocks:
        return list(zip(first.blocks, second.blocks, strict=True))
    return [(first.blocks[-1], second.blocks[-1])]


def whole_batches(images: int, most: int) -> int:
    """How many of ``images`` a comparison of at most ``most`` uses: whole batches of `BATCH`."""
    return min(images, most) // BATCH * BATCH


def compare_backbones(
    first: Backbone,
    second: Backbone,
    images: ImageSource,
    normalise: Normalise,
    *,
    count: int,
    device: torch.device | str,
) -> list[BlockLikeness]:
    """Compare two backbones in evaluation mode on the first ``count`` images.

    Batch norms that keep their statistics at the site are given those of these images. The features of all blocks are
    in memory at once: 32 MB for two ResNet-50 and 1,024 images.

    Args:
        first: moved to ``device`` and left in evaluation mode.
        second: likewise; of any architecture with as many channels.
        images: at least ``count``.
        normalise: see `downstream.features.extract_features`.
        count: a multiple of `BATCH`, at least one.
        device: where to compute.

    Returns:
        A row for each of `paired_blocks`.

    Raises:
        InputError: backbones for images of different channels.
    """
    if first.in_channels != second.in_channels:
        raise InputError(
            f"one backbone takes images of {first.in_channels} channels, the other of {second.in_channels}: they cannot"
            " be compared"
        )
    parts = [_features(backbone, _First(images, count), normalise, device) for backbone in (first, second)]
    rows = []
    for pair in paired_blocks(first, second):
        x, y = (features[block] for features, block in zip(parts, pair, strict=True))
        cka = MinibatchCKA()
        for start in range(0, count, BATCH):
            cka.add(x[start : start + BATCH], y[start : start + BATCH])
        rows.append(BlockLikeness(cka.value, svcca(x, y), (rankme(x), rankme(y))))
    return rows


class _First:
    """The first ``count`` of ``images``: the others have no part in anything, batch statistics included."""

    def __init__(self, images: ImageSource, count: int) -> None:
        self._images, self._count = images, count

    def __len__(self) -> int:
        return self._count

    def batch(self, indices: Tensor) -> Tensor:
        return self._images.batch(indices)


def _features(
    backbone: Backbone, images: ImageSource, normalise: Normalise, device: torch.device | str
) -> dict[str, Tensor]:
    """``(N, D_block)`` float32 on the CPU by block."""
    if backbone.norm == "batch-local":
        recalibrate_batch_norm(backbone, images, normalise, device=device)
    backbone.to(device).eval()
    parts: dict[str, list[Tensor]] = {}
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            pixels = images.batch(torch.arange(start, start + BATCH)).to(device)
            for name, features in backbone.forward_blocks(normalise(pixels)).items():
                parts.setdefault(name, []).append(features.float().cpu())
    return {name: torch.cat(features) for name, features in parts.items()}
