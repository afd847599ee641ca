"""Association tests on the site's own test patients: what a backbone ties together, of which only figures leave."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from aiseeme_models.analysis.image_sets import Columns, columns_of, draw_sets
from client.comparing import built
from client.policy import check_comparison
from client.protection import Protection
from client.refusals import Refusal
from client.site import Site
from federation_configs.audit_messages import (
    AssociationFigures,
    AuditReply,
    AuditRequest,
    LayerFigures,
    told_effect,
    told_p,
    told_size,
)
from federation_configs.site_errors import SiteError
from federation_configs.wire import SMALLEST_COUNT

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from aiseeme_models.analysis.bias import ImageSets, Measured
    from aiseeme_models.backbones import Backbone


def expected_size(request: AuditRequest) -> int:
    """How many floats the weights beside a request must have.

    Raises:
        Refusal: weights that are laid out otherwise than here, or layers that the backbone does not have.
    """
    import torch

    from aiseeme_models.analysis.layer_features import layer_names

    with torch.device("meta"):  # names and shapes, no memory
        backbone, size = built(request, request.model)
    if not set(request.layers) <= set(layer_names(backbone)):
        raise Refusal(SiteError.BAD_REQUEST)
    return size


def audit(site: Site, request: AuditRequest, weights: NDArray[np.float32]) -> AuditReply:
    """Test the backbone with the ``weights`` ``(P,)``, beside networks of its kind that were never trained.

    One image of each patient counts, the first in the order of their content. A test one of whose sets has fewer than 5
    patients is not made.
    """
    from aiseeme_models.analysis.bias import measure
    from aiseeme_models.analysis.layer_features import layer_features
    from aiseeme_models.downstream.features import recalibrate_batch_norm
    from aiseeme_models.images.augmentation import BatchAugmentation
    from aiseeme_models.training.shared_state import backbone_layout, load_backbone

    started = time.perf_counter()
    config = request.config
    if Protection(site, config).is_any:  # figures without noise
        raise Refusal(SiteError.WITHHELD)
    images = site.images(config.images, "test", config.holdout)
    check_comparison(len(images))
    places, known = _patients(site, request)
    drawn = [draw_sets(test, known, seed=request.seed) for test in request.tests]
    large = [sets for sets in drawn if min(map(len, (sets.x, sets.y, sets.a, sets.b))) >= SMALLEST_COUNT]
    if not large:
        raise Refusal(SiteError.TOO_FEW_COMPARED)
    used, plain = images.only(places), BatchAugmentation.of(config.images.resolved_preset).plain

    def features(network: Backbone, statistics: bool) -> dict[str, NDArray[np.float32]]:
        if statistics:
            recalibrate_batch_norm(network, used, plain, device=site.device)
        return layer_features(network, used, plain, layers=request.layers, device=site.device)

    backbone, _ = built(request, request.model)
    load_backbone(backbone, backbone_layout(backbone), weights)
    trained = features(backbone, backbone.norm == "batch-local")
    untrained = (features(network, True) for network in _untrained(request))
    measured = {(one.test, one.layer): one for one in measure(large, trained, untrained, seed=request.seed)}
    return AuditReply(
        site=site.name,
        images=told_size(len(used)),
        seconds=time.perf_counter() - started,
        tests=tuple(_told(sets, request, measured) if sets in large else None for sets in drawn),
    )


def _patients(site: Site, request: AuditRequest) -> tuple[list[int], Sequence[Columns]]:
    """The places of the images that are looked at, and what is known of each: those of no set of any test are not."""
    config, columns = request.config, columns_of(request.tests)
    rows = site.rows_of_images(config.images, "test", config.holdout)
    first = {row.group: place for place, row in reversed(list(enumerate(rows)))}
    known: dict[int, Columns] = {
        place: {column: rows[place].told(column) for column in columns} for place in first.values()
    }
    conditions = [condition for test in request.tests for condition in test.conditions]
    wanted = [place for place in sorted(known) if any(condition.holds(known[place]) for condition in conditions)]
    return wanted[: request.images], [known[place] for place in wanted[: request.images]]


def _untrained(request: AuditRequest) -> Iterator[Backbone]:
    """The same networks at every site, made one at a time."""
    from aiseeme_models.backbones.initialise import initialise
    from aiseeme_models.seeding import generator

    for number in range(request.untrained):
        backbone, _ = built(request, request.model)
        initialise(backbone, generator(request.seed, "untrained", number))
        yield backbone


def _told(sets: ImageSets, request: AuditRequest, measured: dict[tuple[str, str], Measured]) -> AssociationFigures:
    x, y, a, b = (told_size(len(places)) for places in (sets.x, sets.y, sets.a, sets.b))
    found = [measured.get((sets.name, layer)) for layer in request.layers]
    return AssociationFigures(sizes=(x, y, a, b), layers=tuple(None if one is None else _figures(one) for one in found))


def _figures(one: Measured) -> LayerFigures:
    return LayerFigures(
        effect=told_effect(one.association.effect),
        p_value=told_p(one.association.p_value),
        opposite=told_p(one.association.opposite),
        control=told_p(one.control),
        untrained=tuple(told_effect(effect) for effect in one.untrained),
    )
