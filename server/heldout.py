"""The mean held-out loss of a global model at the sites."""

from __future__ import annotations

from collections.abc import Mapping

from federation_configs.records import Enclosure
from federation_configs.wire import EvaluateReply, EvaluateRequest
from server.observer import Observer
from server.questions import Questions
from server.replies import NO_ANSWER, Refused, check_evaluation
from server.run_state import SiteState, mean_over_sites


def heldout_at_sites(
    questions: Questions,
    asked: EvaluateRequest,
    nodes: Mapping[int, str],
    sites: Mapping[str, SiteState],
    beside: Enclosure,
    observer: Observer,
) -> tuple[float | None, float]:
    """The pretext loss, the sites' weighted by their images (None where no site told it), and the seconds it took them.

    Args:
        questions: how sites are asked.
        asked: the request.
        nodes: whom to ask, with their sites' names.
        sites: what they declared.
        beside: the stage's whole vector.
        observer: told of sites that did not tell.
    """
    losses, seconds = [], 0.0
    for answer in questions.ask("evaluate", asked, nodes, beside):
        reply: EvaluateReply | Refused = NO_ANSWER
        if answer.message is not None:
            declared = sites[answer.site].validation
            reply = check_evaluation(
                answer.message, site=answer.site, asked=asked, nonce=answer.nonce, declared=declared
            )
        if isinstance(reply, Refused):
            observer.note(f"{answer.site} did not measure the held-out loss: {reply.sentence}")
            continue
        losses.append((reply.loss, reply.images))
        seconds += reply.seconds
    return mean_over_sites(losses), seconds
