"""A trained classifier as one network: what is exported, and what predicts."""

from __future__ import annotations

from torch import Tensor, nn

from aiseeme_models.backbones import Backbone


class ClassifyingNetwork(nn.Module):
    """Backbone, last layer and softmax at a temperature.

    Args:
        backbone: gives pooled features ``(B, D)``.
        head: from them to logits ``(B, C)``.
        temperature: what logits are divided by (Guo et al. 2017, arXiv 1706.04599); 1: they are as they are.
    """

    def __init__(self, backbone: Backbone, head: nn.Linear, temperature: float = 1.0) -> None:
        super().__init__()
        self.backbone, self.fc = backbone, head
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` float32 normalised images to ``(B, classes)`` float32 probabilities."""
        logits: Tensor = self.fc(self.backbone(images))
        return (logits / self.temperature).softmax(dim=1)
