"""Testing a classifier where the test patients are: each site tells counts and grouped scores, and no prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from aiseeme_models.downstream.classification import ClassificationOptions
from aiseeme_models.downstream.pooled import pool
from federation_configs.wire import AssessReply, AssessRequest
from server.replies import check_assessment
from server.results import FederatedTest

if TYPE_CHECKING:
    from federation_configs.records import Enclosure
    from server.observer import Observer
    from server.questions import Questions


def test_at_sites(
    questions: Questions, asked: AssessRequest, nodes: Mapping[int, str], beside: Enclosure, observer: Observer
) -> FederatedTest | None:
    """The classifier's figures over the test patients of all sites that tell of them; None where none does.

    Args:
        questions: how sites are asked.
        asked: the request.
        nodes: whom to ask, with their sites' names.
        beside: the stage's whole vector.
        observer: told of sites that did not tell.
    """
    options = asked.config.curriculum.stage[asked.stage].options
    assert isinstance(options, ClassificationOptions)
    replies: dict[str, AssessReply] = dict(
        questions.valid(
            "assess",
            asked,
            nodes,
            beside,
            lambda message, site, nonce: check_assessment(message, site=site, asked=asked, nonce=nonce),
            lambda site, why: observer.note(f"{site} did not test the classifier: {why.sentence}"),
        )
    )
    if not replies:
        return None
    order = sorted(replies)
    return FederatedTest(
        sites={site: replies[site].images for site in order},
        score=pool([replies[site].classes for site in order], options.names),
    )
