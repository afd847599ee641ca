"""From a site's answer to a training request to the next global model: checked, restored and folded in."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from federation_configs.site_errors import SiteError
from federation_configs.wire import TrainReply, TrainRequest
from server.aggregation import Aggregation, UpdateRefused, build_aggregation
from server.replies import NO_ANSWER, UPDATE_REFUSED, Missed, Refused, check_training, weights_of

if TYPE_CHECKING:
    from aiseeme_models.training.shared_state import SharedLayout
    from federation_configs.schema import FederationOptions
    from server.questions import Answer
    from server.roster import Roster
    from server.teachers import Teachers


def aggregation_for(federation: FederationOptions, layout: SharedLayout) -> Aggregation:
    """The federation's aggregation, for models that are laid out so."""
    return build_aggregation(
        federation.aggregation,
        federation.aggregation_options.model_dump(),
        layout.statistic_slices,
        layout.variance_slices,
        layout.slices,
    )


def folded(
    answer: Answer,
    asked: TrainRequest,
    aggregation: Aggregation,
    restore: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    *,
    declared: int,
    size: int,
) -> TrainReply | Refused:
    """Fold an answer in, if everything of it holds.

    Args:
        answer: what came of the question to a site.
        asked: the question.
        aggregation: a round of it is open.
        restore: from the array as it travels to a whole model ``(P,)``.
        declared: how many training images the site said it has.
        size: floats in the array.
    """
    if answer.message is None:
        return NO_ANSWER
    reply = check_training(answer.message, site=answer.site, asked=asked, nonce=answer.nonce, declared=declared)
    if isinstance(reply, Refused):
        return reply
    weights = weights_of(answer.message, size, asked.config.federation.transfer)
    if isinstance(weights, Refused):
        return weights
    try:
        # With [site_privacy] all sites count alike: a large weight would be more than one site's noise hides.
        aggregation.fold(restore(weights), reply.images if asked.config.site_privacy is None else 1)
    except UpdateRefused as error:
        return Refused(UPDATE_REFUSED[error.code], f"the reply was refused: {error}")
    return reply


def forget_what_was_wrong(answer: Answer, why: Refused, teachers: Teachers, roster: Roster) -> None:
    """Correct what the coordinator believes of a site, where a refusal shows that it is not so."""
    if why.sentence == SiteError.TEACHER_MISSING.sentence:
        teachers.holders.discard(answer.site)
    if why.code is Missed.IMPOSSIBLE_COUNT:  # a runner that was started again counts its images anew
        roster.forget(answer.node)
