"""How well frozen features tell the site's own labels: a probe at the site, of which one figure leaves."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from client.policy import check_comparison
from client.protection import Protection
from client.refusals import Refusal
from client.rounds import loaded_bench
from client.site import Site
from federation_configs.site_errors import SiteError
from federation_configs.wire import ScoreReply, ScoreRequest, told_score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def score(site: Site, request: ScoreRequest, weights: NDArray[np.float32]) -> ScoreReply:
    """Probe the backbone in the global ``weights`` ``(P,)``: fitted on labelled training images, scored on validation.

    The test split is not touched: what chooses an order, an end or a learning rate must not have seen it.
    """
    from aiseeme_models.downstream.features import extract_features
    from aiseeme_models.downstream.probe import knn_probe, linear_probe

    started = time.perf_counter()
    config = request.config
    if Protection(site, config).is_any:  # an exact figure over patients
        raise Refusal(SiteError.WITHHELD)
    fitted_on = site.labelled(config.images, "train", config.holdout)
    scored_on = site.labelled(config.images, "validation", config.holdout)
    if len(set(fitted_on.labels)) < 2:
        raise Refusal(SiteError.NO_LABELS)
    check_comparison(len(scored_on.labels))
    bench = loaded_bench(site, request, weights)
    x, x_test = (
        extract_features(bench.task.backbone, one.images, bench.augmentation.plain, device=site.device)
        for one in (fitted_on, scored_on)
    )
    y, y_test = fitted_on.labels, scored_on.labels
    probes = {
        "knn": lambda: knn_probe(x, y, x_test, y_test, k=config.probe.k),
        "linear": lambda: linear_probe(x, y, x_test, y_test, seed=config.seed),
    }
    found = probes[request.probe]()
    return ScoreReply(
        site=site.name,
        round=request.round,
        stage=request.stage,
        images=len(y_test),
        score=told_score(found.balanced_accuracy),
        seconds=time.perf_counter() - started,
    )
