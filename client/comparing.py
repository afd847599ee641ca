"""Comparing two backbones on the site's own held-out images: only figures of whole batches leave, no feature does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from client.policy import check_comparison
from client.protection import Protection
from client.refusals import Refusal
from client.site import Site
from federation_configs.site_errors import SiteError
from federation_configs.wire import (
    PROTOCOL,
    AnalyseReply,
    AnalyseRequest,
    BlockFigures,
    ComparedModel,
    WeightedRequest,
    told_likeness,
    told_rank,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from aiseeme_models.backbones import Backbone


def expected_size(request: AnalyseRequest) -> int:
    """How many floats the weights beside a request must have: those of both backbones.

    Raises:
        Refusal: weights that are laid out otherwise than here.
    """
    import torch

    with torch.device("meta"):  # names and shapes, no memory
        return sum(built(request, model)[1] for model in request.models)


def analyse(site: Site, request: AnalyseRequest, weights: NDArray[np.float32]) -> AnalyseReply:
    """Compare the two backbones whose ``weights`` ``(P1 + P2,)`` stand one behind the other.

    The images are always the first ones of the same order: no two answers are on batches that differ by a few.
    """
    from aiseeme_models.analysis.comparison import compare_backbones, whole_batches
    from aiseeme_models.images.augmentation import BatchAugmentation
    from aiseeme_models.training.shared_state import backbone_layout, load_backbone

    started = time.perf_counter()
    config = request.config
    if Protection(site, config).is_any:  # figures without noise
        raise Refusal(SiteError.WITHHELD)
    images = site.images(config.images, "validation", config.holdout)
    check_comparison(len(images))
    (first, size), (second, _) = (built(request, model) for model in request.models)
    load_backbone(first, backbone_layout(first), weights[:size])
    load_backbone(second, backbone_layout(second), weights[size:])
    count = whole_batches(len(images), request.images)
    plain = BatchAugmentation.of(config.images.resolved_preset).plain
    rows = compare_backbones(first, second, images, plain, count=count, device=site.device)
    return AnalyseReply(
        site=site.name,
        images=count,
        seconds=time.perf_counter() - started,
        blocks=tuple(
            BlockFigures(
                cka=told_likeness(row.cka),
                svcca=told_likeness(row.svcca),
                ranks=(told_rank(row.ranks[0]), told_rank(row.ranks[1])),
            )
            for row in rows
        ),
    )


def built(request: WeightedRequest, model: ComparedModel) -> tuple[Backbone, int]:
    """A backbone that a request names, with no weights yet, and how many floats they are.

    Raises:
        Refusal: the weights beside the request are laid out otherwise than here.
    """
    from aiseeme_models.backbones import build_backbone
    from aiseeme_models.training.shared_state import backbone_layout

    if request.protocol != PROTOCOL:
        raise Refusal(SiteError.VERSION_MISMATCH)
    channels = request.config.images.resolved_preset.channels
    backbone = build_backbone(model.backbone, norm=model.norm, in_channels=channels)
    layout = backbone_layout(backbone)
    if layout.digest != model.layout_sha256:
        raise Refusal(SiteError.VERSION_MISMATCH)
    return backbone, layout.size
