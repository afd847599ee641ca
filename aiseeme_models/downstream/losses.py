"""Losses of a classifier: one for each image, and what a batch or a class makes of them."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def image_losses(logits: Tensor, targets: Tensor, *, gamma: float = 0.0) -> Tensor:
    """``-(1 - p_t)^gamma log p_t`` of each image: cross-entropy, and with ``gamma`` above 0 the focal loss.

    Lin et al. 2017, "Focal Loss for Dense Object Detection" (arXiv 1708.02002), eq. 4, over a softmax. In float32 also
    under autocast.

    Args:
        logits: ``(B, C)``.
        targets: ``(B,)`` int64.
        gamma: how much less an image counts that is recognised already.

    Returns:
        ``(B,)`` float32.
    """
    losses = functional.cross_entropy(logits.float(), targets, reduction="none")  # (B,)
    return losses if gamma == 0 else (1.0 - (-losses).exp()) ** gamma * losses


def batch_loss(losses: Tensor, targets: Tensor, weights: Tensor, admitted: Tensor | None = None) -> Tensor:
    """The mean of a batch's losses by the weights of their classes, over the images of admitted classes only.

    An admitted image whose loss is exactly 0 still counts in the mean. Where no image is admitted it is 0, with a
    gradient of 0.

    Args:
        losses: ``(B,)``.
        targets: ``(B,)`` int64.
        weights: ``(C,)``.
        admitted: ``(C,)`` bool; None: all classes.
    """
    of_image = weights[targets]  # (B,)
    if admitted is not None:
        of_image = of_image * admitted[targets]
    total = of_image.sum()
    return (of_image * losses).sum() / total.clamp(min=1e-12)


def class_sums(losses: Tensor, targets: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The sum of the losses and the number of images of each class.

    Args:
        losses: ``(N,)``.
        targets: ``(N,)`` int64.
        classes: ``C``.

    Returns:
        ``(C,)`` float64 and ``(C,)`` int64.
    """
    sums = losses.new_zeros(classes, dtype=losses.dtype).double()
    return sums.index_add(0, targets, losses.detach().double()), targets.bincount(minlength=classes)
