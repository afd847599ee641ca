"""Whether a backbone still tells images apart after a short training."""

from __future__ import annotations

import torch

from aiseeme_models.training.loop import train_round
from aiseeme_models.training.options import TrainingOptions


def spread_before_and_after(task, images, augmentation) -> tuple[float, float]:
    """How far apart the features of different images are, in units of their mean, untrained and trained."""

    def spread() -> float:
        with torch.no_grad():
            features = task.eval().backbone(augmentation.plain(images.batch(torch.arange(len(images)))))
        return float(features.std(dim=0).norm() / features.mean(dim=0).norm())

    untrained = spread()
    options = TrainingOptions(batch_size=16, local_epochs=8, lr=2e-3, schedule="constant")
    device = torch.device("cpu")
    train_round(task, images, options, augmentation=augmentation, seed=2, stage_progress=(0.0, 1.0), device=device)
    return untrained, spread()
