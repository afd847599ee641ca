"""The mean score of a backbone's probes at the sites."""

from __future__ import annotations

from collections.abc import Mapping

from federation_configs.records import Enclosure
from federation_configs.wire import ScoreReply, ScoreRequest
from server.observer import Observer
from server.questions import Questions
from server.replies import NO_ANSWER, Refused, check_score
from server.run_state import SiteState, mean_over_sites


def score_at_sites(
    questions: Questions,
    asked: ScoreRequest,
    nodes: Mapping[int, str],
    sites: Mapping[str, SiteState],
    beside: Enclosure,
    observer: Observer,
) -> float | None:
    """Balanced accuracy, the sites' weighted by their images; None where no site could tell it.

    Sites may have different classes: the mean is one of what each site can tell apart.

    Args:
        questions: how sites are asked.
        asked: the request.
        nodes: whom to ask, with their sites' names.
        sites: what they declared.
        beside: the stage's whole vector.
        observer: told of sites that did not tell.
    """
    scores = []
    for answer in questions.ask("score", asked, nodes, beside):
        reply: ScoreReply | Refused = NO_ANSWER
        if answer.message is not None:
            declared = sites[answer.site].validation
            reply = check_score(answer.message, site=answer.site, asked=asked, nonce=answer.nonce, declared=declared)
        if isinstance(reply, Refused):
            observer.note(f"{answer.site} did not score the backbone: {reply.sentence}")
        else:
            scores.append((reply.score, reply.images))
    return mean_over_sites(scores)
