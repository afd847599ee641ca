"""Testing a classifier on the site's own labelled test patients, of which counts and grouped scores leave."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from client.classifying import classifier
from client.policy import check_comparison
from client.protection import Protection
from client.refusals import Refusal
from client.rounds import loaded_bench
from client.site import Site
from client.stage_images import stage_images
from federation_configs.site_errors import SiteError
from federation_configs.wire import AssessReply, AssessRequest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def assess(site: Site, request: AssessRequest, weights: NDArray[np.float32]) -> AssessReply:
    """Test the classifier in the global ``weights`` ``(P,)`` on the test split, which no training has seen."""
    from aiseeme_models.downstream.answers import told_answers
    from aiseeme_models.downstream.classification import predicted

    started = time.perf_counter()
    config = request.config
    if Protection(site, config).is_any:  # exact figures over patients
        raise Refusal(SiteError.WITHHELD)
    bench = loaded_bench(site, request, weights)
    task = classifier(bench.task)
    if task is None:
        raise Refusal(SiteError.BAD_REQUEST)
    data = stage_images(site, config, request.stage, "test")
    check_comparison(len(data.images))
    assert data.targets is not None
    probabilities = predicted(task, data.images, bench.augmentation.plain, device=site.device)
    return AssessReply(
        site=site.name,
        round=request.round,
        stage=request.stage,
        images=len(data.images),
        classes=told_answers(probabilities, data.targets.numpy()),
        seconds=time.perf_counter() - started,
    )
