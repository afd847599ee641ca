"""Whether a site's answer is one to what was asked. Nothing of it is used before every check has passed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from federation_configs.records import MalformedRecord, unpack_body, unpack_weights
from federation_configs.wire import EvaluateReply, RoundReply, RoundRequest, SiteError, TrainReply

if TYPE_CHECKING:
    import numpy as np
    from flwr.app import Message
    from numpy.typing import NDArray

Reply = TypeVar("Reply", bound=RoundReply)


class Missed(StrEnum):
    """Why a site did not count in a round."""

    NO_ANSWER = "no-answer"
    SITE_ERROR = "site-error"
    FOREIGN_ERROR = "foreign-error"
    MALFORMED = "malformed-reply"
    WRONG_QUESTION = "wrong-question"
    IMPOSSIBLE_COUNT = "impossible-count"
    NOT_FINITE = "not-finite"
    OUT_OF_RANGE = "out-of-range"


@dataclass(frozen=True)
class Refused:
    """A reply that does not count, with a fixed code and a sentence in our own words."""

    code: Missed
    sentence: str


NO_ANSWER = Refused(Missed.NO_ANSWER, "no answer before the deadline")


def error_in(message: Message) -> Refused | None:
    """What an error reply means. The other party's text is never repeated."""
    if not message.has_error():
        return None
    if message.error.code in set(SiteError):
        return Refused(Missed.SITE_ERROR, SiteError(message.error.code).sentence)
    if message.error.code == 3:
        return NO_ANSWER
    return Refused(Missed.FOREIGN_ERROR, f"the site's client failed (Flower error {int(message.error.code)})")


def check_round_reply(
    message: Message, kind: type[Reply], *, site: str, asked: RoundRequest, declared: int
) -> Reply | Refused:
    """Check everything of a reply but its array.

    Args:
        message: the reply.
        kind: what it should be.
        site: the name under which its sender described itself.
        asked: the request.
        declared: how many images the site said it has for this; it may not claim more, nor none.
    """
    if (error := error_in(message)) is not None:
        return error
    try:
        body = unpack_body(message.content, kind)
    except MalformedRecord as malformed:
        return Refused(Missed.MALFORMED, f"the reply was refused: {malformed}")
    if (body.site, body.round, body.stage) != (site, asked.round, asked.stage):
        return Refused(Missed.WRONG_QUESTION, "the reply answers for another site, round or stage")
    if not 1 <= body.images <= declared:
        return Refused(Missed.IMPOSSIBLE_COUNT, f"the reply counts {body.images} images; the site declared {declared}")
    return body


def weights_of(message: Message, size: int) -> NDArray[np.float32] | Refused:
    """The ``(size,)`` float32 array of a reply; whether it is finite is checked as it is folded in."""
    try:
        return unpack_weights(message.content, size)
    except MalformedRecord as malformed:
        return Refused(Missed.MALFORMED, f"the reply was refused: {malformed}")


__all__ = [
    "NO_ANSWER",
    "EvaluateReply",
    "Missed",
    "Refused",
    "TrainReply",
    "check_round_reply",
    "error_in",
    "weights_of",
]
