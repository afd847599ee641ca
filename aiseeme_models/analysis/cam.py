"""Where a network looks: class activation maps of a backbone's last feature map."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from aiseeme_models.backbones import Backbone
from aiseeme_models.registry import Registry

ActivationMaps = Callable[[Backbone, nn.Module, Tensor, Tensor], Tensor]
"""From a backbone, the head on its pooled features, normalised images ``(B, C, H, W)`` and classes ``(B,)`` int64 to
maps ``(B, h, w)`` float32, none of them negative. Both networks are used in evaluation mode and left as they were."""

activation_maps: Registry[ActivationMaps] = Registry("kind of class activation map")

HEADLESS = frozenset({"eigen-cam"})
"""Kinds that look at neither the head nor the classes."""


@activation_maps.register("grad-cam")
def grad_cam(backbone: Backbone, head: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Channels weighted by the mean gradient of the class's logit, what speaks against the class left out.

    Selvaraju et al. 2017, "Grad-CAM" (arXiv 1610.02391), eq. 1 and 2.
    """
    features = _feature_map(backbone, images).requires_grad_()  # (B, D, h, w)
    with torch.enable_grad():
        logits = head(features.mean(dim=(2, 3)))  # (B, K)
        (gradient,) = torch.autograd.grad(logits.gather(1, classes.unsqueeze(1)).sum(), features)
    weights = gradient.mean(dim=(2, 3), keepdim=True)  # (B, D, 1, 1)
    return (weights * features.detach()).sum(dim=1).relu()


@activation_maps.register("eigen-cam")
def eigen_cam(backbone: Backbone, head: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """The feature map along its first principal direction, whatever the class: what stands out to the backbone.

    Muhammad and Yeasin 2020, "Eigen-CAM" (arXiv 2008.00299), eq. 1 and 2, not centred. A direction has no sign: the one
    is taken along which the map's sum is positive.
    """
    features = _feature_map(backbone, images)
    rows = features.flatten(2).transpose(1, 2).double()  # (B, h * w, D)
    direction: Tensor = torch.linalg.svd(rows, full_matrices=False).Vh[:, :1]  # (B, 1, D)
    projected = (rows @ direction.transpose(1, 2)).squeeze(2)  # (B, h * w)
    projected = projected * projected.sum(dim=1, keepdim=True).sign()
    return projected.relu().view(len(images), *features.shape[2:]).float()


def _feature_map(backbone: Backbone, images: Tensor) -> Tensor:
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            features: Tensor = backbone.forward_map(images).float()
            return features
    finally:
        backbone.train(was_training)
