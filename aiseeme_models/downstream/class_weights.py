"""What an image of each class counts in a loss, from how many images each class has."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from aiseeme_models.registry import Registry

Weighting = Callable[[Tensor], Tensor]
"""From the images of each class, ``(C,)`` int64, to their weights, ``(C,)`` float32, also of a class without images."""

class_weightings: Registry[Weighting] = Registry("class weighting")

_BETA = 0.9999


@class_weightings.register("none")
def equal_weights(counts: Tensor) -> Tensor:
    """1 for every class."""
    return torch.ones(len(counts))


@class_weightings.register("frequency")
def one_less_frequency(counts: Tensor) -> Tensor:
    """``w_c = 1 - n_c / N``, the weights of the project's fine-tuning: the rarer a class, the more its images count."""
    return (1.0 - counts.double() / counts.sum()).float()


@class_weightings.register("inverse")
def inverse_frequency(counts: Tensor) -> Tensor:
    """``w_c = N / (C n_c)``, so that all classes count the same; scikit-learn calls it ``balanced``."""
    return (counts.sum().double() / (len(counts) * counts.clamp(min=1).double())).float()


@class_weightings.register("effective-number")
def effective_number(counts: Tensor) -> Tensor:
    """``w_c = (1 - beta) / (1 - beta^{n_c})`` with beta 0.9999, scaled to a sum of ``C``.

    Cui et al. 2019, "Class-Balanced Loss Based on Effective Number of Samples" (arXiv 1901.05555), eq. 3.
    """
    weights = (1.0 - _BETA) / (1.0 - _BETA ** counts.clamp(min=1).double())
    return (weights * (len(counts) / weights.sum())).float()
