"""Linear centred kernel alignment: how alike two networks see the same images, layer by layer.

Kornblith et al., "Similarity of Neural Network Representations Revisited", 2019 (arXiv 1905.00414). Over minibatches
with the unbiased estimator of Nguyen, Raghu & Kornblith, "Do Wide and Deep Networks Learn the Same Things?", 2021
(arXiv 2010.15327), so that no more than a batch of features is in memory, and its value does not depend on the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SMALLEST_BATCH = 4
"""HSIC_1 looks at four different images at once."""

_ROUNDING = 1e-12  # of the power: variation below this is that of float32's rounding


def linear_cka(first: Tensor, second: Tensor) -> float | None:
    """``||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F)`` with centred columns (eq. 5 of Kornblith et al.), in [0, 1].

    Biased upwards where there are few images for the number of features; see `MinibatchCKA`.

    Args:
        first: ``(N, D1)`` features of N images.
        second: ``(N, D2)`` features of the same images.

    Returns:
        None where either does not vary.
    """
    x, y = _centred(first), _centred(second)
    own = float(torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y))
    return None if own == 0.0 else float((y.T @ x).square().sum()) / own


def unbiased_hsic(first: Tensor, second: Tensor) -> float:
    """HSIC_1 of two linear kernels (eq. 3 of Nguyen et al.; Song et al. 2012), whose mean over batches is unbiased.

    Args:
        first: ``(N, D1)``, at least 4 images.
        second: ``(N, D2)``.

    Raises:
        ValueError: fewer than 4 images.
    """
    n = len(first)
    return float((_u_centred_gram(first) * _u_centred_gram(second)).sum()) / (n * (n - 3))


class MinibatchCKA:
    """Linear CKA from the sums of HSIC_1 over batches (eq. 2 of Nguyen et al.), in [-1, 1].

    A feature that only one image of a batch has, whatever its size, changes nothing: HSIC_1 compares pairs of images.
    """

    def __init__(self) -> None:
        self._cross = self._first = self._second = 0.0

    def add(self, first: Tensor, second: Tensor) -> None:
        """Count a batch: ``(B, D1)`` and ``(B, D2)`` features of the same images.

        Raises:
            ValueError: fewer than 4 images.
        """
        n, x, y = len(first), _u_centred_gram(first), _u_centred_gram(second)
        scale = 1.0 / (n * (n - 3))
        self._cross += scale * float((x * y).sum())
        self._first += scale * float(x.square().sum())
        self._second += scale * float(y.square().sum())

    @property
    def value(self) -> float | None:
        """CKA over the batches so far; None where either network's features do not vary."""
        if self._first == 0.0 or self._second == 0.0:
            return None
        return self._cross / math.sqrt(self._first * self._second)


def _u_centred_gram(features: Tensor) -> Tensor:
    """``(N, N)`` float64 Gram matrix, U-centred (Székely & Rizzo 2014, eq. 2.8).

    ``sum(A * B) / (N (N - 3))`` of two of them is HSIC_1. So that is an inner product, and CKA stays in [-1, 1].
    """
    n = len(features)
    if n < SMALLEST_BATCH:
        raise ValueError(f"HSIC_1 needs at least {SMALLEST_BATCH} images in a batch, there are {n}")
    x = _centred(features)  # changes nothing but the rounding
    gram = (x @ x.T).fill_diagonal_(0.0)
    rows = gram.sum(dim=1, keepdim=True) / (n - 2)  # (N, 1)
    return (gram - rows - rows.T + rows.sum() / (n - 1)).fill_diagonal_(0.0)


def _centred(features: Tensor) -> Tensor:
    """``(N, D)`` in float64 with mean 0 over the images; 0 where they differ by rounding only."""
    x = features.double()
    centred = x - x.mean(dim=0, keepdim=True)
    return centred if centred.square().sum() > _ROUNDING * x.square().sum() else torch.zeros_like(x)
