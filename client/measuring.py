"""What a site measures to find a stage's settings: how high the rate may be, and how large a batch fits."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from aiseeme_models.seeding import derive_seed
from client.classifying import begin_classes
from client.protection import Protection
from client.refusals import Refusal
from client.rounds import loaded_bench, reporting
from client.site import Site
from client.stage_images import StageImages, stage_images
from federation_configs.site_errors import SiteError
from federation_configs.wire import (
    SMALLEST_COUNT,
    FitReply,
    FitRequest,
    RangeReply,
    RangeRequest,
    RoundRequest,
    told_rate,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def find_rate(site: Site, request: RangeRequest, weights: NDArray[np.float32]) -> RangeReply:
    """Train from the global ``weights`` ``(P,)`` with a rising rate; only the rate that this suggests leaves."""
    from aiseeme_models.training.range_test import range_test

    started = time.perf_counter()
    data = _training_images(site, request)
    images = data.images
    if len(images) < request.config.curriculum.stage[request.stage].batch_size:
        raise Refusal(SiteError.BATCH_EXCEEDS_IMAGES)
    training = _training(site, request, weights, "range", data)
    rate = range_test(rates=request.rates, steps=request.steps, **training)
    return RangeReply(
        site=site.name,
        round=request.round,
        stage=request.stage,
        images=len(images),
        rate=None if rate is None else told_rate(rate),
        seconds=time.perf_counter() - started,
    )


def find_batch(site: Site, request: FitRequest, weights: NDArray[np.float32]) -> FitReply:
    """Make steps with batches of each size, as long as memory is there."""
    from aiseeme_models.training.memory import largest_batch

    started = time.perf_counter()
    data = _training_images(site, request)
    largest = largest_batch(sizes=request.sizes, **_training(site, request, weights, "fit", data))
    return FitReply(
        site=site.name,
        round=request.round,
        stage=request.stage,
        images=0,
        largest=largest,
        seconds=time.perf_counter() - started,
    )


def _training(
    site: Site, request: RoundRequest, weights: NDArray[np.float32], purpose: str, data: StageImages
) -> dict[str, Any]:
    """What a training for a ``purpose`` is given, as `training.loop.train_round` calls it."""
    import torch

    bench = loaded_bench(site, request, weights)
    begin_classes(bench.task, request, data.targets)
    return {
        "task": bench.task,
        "images": data.images,
        "options": request.config.curriculum.stage[request.stage],
        "augmentation": bench.augmentation,
        "seed": derive_seed(request.config.seed, purpose, site.name, request.stage),
        "device": torch.device(site.device),
        "on_step": reporting(site),
    }


def _training_images(site: Site, request: RoundRequest) -> StageImages:
    config = request.config
    if Protection(site, config).is_any:  # nothing accounts for what these figures tell
        raise Refusal(SiteError.WITHHELD)
    data = stage_images(site, config, request.stage, "train")
    if len(data.images) == 0:
        raise Refusal(SiteError.NO_IMAGES)
    if data.targets is not None and len(data.images) < SMALLEST_COUNT:
        raise Refusal(SiteError.TOO_FEW_IMAGES)
    return data
