"""Whether training has made all features one, as non-contrastive and badly tuned tasks may: no loss need tell it.

Measured on toy images, chest radiographs (Kermany) and dermoscopy (HAM10000), `spread` of what the backbone gives for
the task's own views of 32 held-out images: collapsed 0.02 to 0.06 (BYOL with plain group norm; MoCo whose loss has
risen to that of chance), and at most a third of the same backbone's before training; trained SimCLR, rotation, BYOL
with batch norm 0.2 to 0.7; untrained 0.05 (ResNet-50 with group norm on radiographs) to 0.6. Neither bound alone does:
images that are much alike give an untrained backbone a small spread, and a healthy one may halve a large one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from aiseeme_models.analysis.rank import spread
from aiseeme_models.backbones import Backbone
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.pretext.base import PretextTask
from aiseeme_models.pretext.statistics import own_statistics
from aiseeme_models.seeding import generator
from aiseeme_models.training.loop import Images

IMAGES = 16
"""Held-out images that are looked at: so few that it takes about the time of a third of a training step."""

FEWEST = 8
_SPREAD, _OF_UNTRAINED = 0.06, 1 / 3


@torch.inference_mode()
def has_collapsed(
    task: PretextTask,
    images: Images,
    augmentation: BatchAugmentation,
    *,
    seed: int,
    device: torch.device,
    untrained: Callable[[], Backbone],
) -> bool | None:
    """Whether the task's backbone gives nearly the same features for all views of held-out images.

    The task's own views, because that is where features must differ: rotation may well give all upright images the same
    ones. Changes no state.

    Args:
        task: on ``device``.
        images: held-out images, of which the first `IMAGES` are looked at.
        augmentation: the domain's.
        seed: of the views.
        device: where the task is.
        untrained: makes the backbone as it was before training; asked only where the spread is small.

    Returns:
        None where there are fewer than `FEWEST` images.
    """
    count = min(IMAGES, len(images))
    if count < FEWEST:
        return None
    was_training = task.training
    task.eval()
    try:
        task.look_at(None)
        pixels = images.batch(torch.arange(count)).to(device)
        inputs = task.views(pixels, augmentation, generator(seed, "views"))[0]
        with own_statistics(task.backbone, wanted=task.in_patches):
            now = _spread(task.backbone, inputs)
        if not now < _SPREAD:
            return False
        return now < _OF_UNTRAINED * _spread(untrained().to(device).eval(), inputs)
    finally:
        task.train(was_training)


def _spread(backbone: Backbone, inputs: Tensor) -> float:
    return spread(backbone(inputs).float())
