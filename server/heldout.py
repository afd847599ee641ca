"""Mean figures of the sites' held-out images: the pretext loss of a global model, and the score of its probes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from federation_configs.records import Enclosure
from federation_configs.wire import EvaluateRequest, ScoreRequest
from server.observer import Observer
from server.questions import Questions
from server.replies import Refused, check_evaluation, check_score
from server.run_state import SiteState, mean_over_sites


def heldout_at_sites(
    questions: Questions,
    asked: EvaluateRequest,
    nodes: Mapping[int, str],
    sites: Mapping[str, SiteState],
    beside: Enclosure,
    observer: Observer,
    refused: Callable[[str, Refused], None] = lambda site, why: None,
) -> tuple[float | None, float]:
    """The pretext loss, the sites' weighted by their images (None where no site told it), and the seconds it took them.

    Args:
        questions: how sites are asked.
        asked: the request.
        nodes: whom to ask, with their sites' names.
        sites: what they declared.
        beside: the stage's whole vector.
        observer: told of sites that did not tell.
        refused: called with such a site, and why.
    """

    def note(site: str, why: Refused) -> None:
        observer.note(f"{site} did not measure the held-out loss: {why.sentence}")
        refused(site, why)

    replies = [
        reply
        for _, reply in questions.valid(
            "evaluate",
            asked,
            nodes,
            beside,
            lambda message, site, nonce: check_evaluation(
                message, site=site, asked=asked, nonce=nonce, declared=sites[site].validation
            ),
            note,
        )
    ]
    return mean_over_sites((reply.loss, reply.images) for reply in replies), sum(reply.seconds for reply in replies)


def score_at_sites(
    questions: Questions,
    asked: ScoreRequest,
    nodes: Mapping[int, str],
    sites: Mapping[str, SiteState],
    beside: Enclosure,
    observer: Observer,
) -> float | None:
    """Balanced accuracy, the sites' weighted by their images; None where no site could tell it.

    Sites may have different classes: the mean is one of what each site can tell apart. The arguments are those of
    `heldout_at_sites`.
    """
    replies = questions.valid(
        "score",
        asked,
        nodes,
        beside,
        lambda message, site, nonce: check_score(
            message, site=site, asked=asked, nonce=nonce, declared=sites[site].validation
        ),
        lambda site, why: observer.note(f"{site} did not score the backbone: {why.sentence}"),
    )
    return mean_over_sites((reply.score, reply.images) for _, reply in replies)
