"""Whether a site's answer is one to what was asked. Nothing of it is used before every check has passed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, TypeVar

from aiseeme_models.downstream.answers import wrong_answers
from aiseeme_models.downstream.classification import ClassificationOptions
from federation_configs.audit_messages import AssociationFigures, AuditReply, AuditRequest
from federation_configs.records import MalformedRecord, unpack_body, unpack_weights
from federation_configs.site_errors import SiteError, answers
from federation_configs.transfer import Transfer
from federation_configs.wire import (
    AnalyseReply,
    AnalyseRequest,
    AssessReply,
    AssessRequest,
    EvaluateReply,
    EvaluateRequest,
    FitReply,
    FitRequest,
    RangeReply,
    RangeRequest,
    Reply,
    RoundReply,
    RoundRequest,
    ScoreReply,
    ScoreRequest,
    TeachReply,
    TeachRequest,
    TrainReply,
    TrainRequest,
)

if TYPE_CHECKING:
    import numpy as np
    from flwr.app import Message
    from numpy.typing import NDArray

    from aiseeme_models.options import Options

OfRound = TypeVar("OfRound", bound=RoundReply)
Body = TypeVar("Body", bound=Reply)


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
    NEGATIVE_VARIANCE = "negative-variance"


class Spoilt(IntEnum):
    """Flower error codes that a Grid gives where it did not read a reply."""

    NO_MESSAGE = 2001
    TOO_LARGE = 2002


@dataclass(frozen=True)
class Refused:
    """A reply that does not count, with a fixed code and a sentence in our own words."""

    code: Missed
    sentence: str


UPDATE_REFUSED = {
    "dtype": Missed.MALFORMED,
    "shape": Missed.MALFORMED,
    "weight": Missed.IMPOSSIBLE_COUNT,
    "not-finite": Missed.NOT_FINITE,
    "out-of-range": Missed.OUT_OF_RANGE,
    "negative-variance": Missed.NEGATIVE_VARIANCE,
}
"""What of a reply's array does not count, by the code of `server.aggregation.UpdateRefused`."""

NO_ANSWER = Refused(Missed.NO_ANSWER, "no answer before the deadline")
NOT_CONNECTED = Refused(Missed.NO_ANSWER, "it is not connected")

_FLOWERS = {  # `flwr.common.constant.ErrorCode`: what SuperLink and node say where the site's runner says nothing
    3: NO_ANSWER,
    5: Refused(Missed.NO_ANSWER, "its connection was lost"),
    7: Refused(Missed.FOREIGN_ERROR, "the site has not approved this app bundle"),
    8: Refused(Missed.FOREIGN_ERROR, "the site's runner ended in the middle of its work"),
}

WRONG_QUESTION = Refused(Missed.WRONG_QUESTION, "the reply is none to this request")

_TOO_LONG = Refused(Missed.IMPOSSIBLE_COUNT, "the reply claims to have worked longer than the deadline allows")

_SPOILT = {
    Spoilt.NO_MESSAGE: "the reply was refused: it is no message to what was asked",
    Spoilt.TOO_LARGE: "the reply was refused: it is larger than any answer could be",
}


def error_in(message: Message, nonce: str | None) -> Refused | None:
    """What an error reply to the request with this nonce means. The other party's text is never repeated."""
    if not message.has_error():
        return None
    if message.error.code in set(SiteError):
        if not answers(message.error.reason or "", nonce):
            return WRONG_QUESTION
        return Refused(Missed.SITE_ERROR, SiteError(message.error.code).sentence)
    if message.error.code in set(Spoilt):
        return Refused(Missed.MALFORMED, _SPOILT[Spoilt(message.error.code)])
    if message.error.code in _FLOWERS:
        return _FLOWERS[message.error.code]
    return Refused(Missed.FOREIGN_ERROR, f"the site's client failed (Flower error {int(message.error.code)})")


def check_training(
    message: Message, *, site: str, asked: TrainRequest, nonce: str | None, declared: int
) -> TrainReply | Refused:
    """Check everything of a reply to a training request but its array.

    Args:
        message: the reply.
        site: the name under which its sender described itself.
        asked: the request.
        nonce: the one under which this site was asked; None where requests are not signed.
        declared: how many training images the site said it has; that, and the steps they make, is what it must claim.
    """
    body = _checked(message, TrainReply, site=site, asked=asked, nonce=nonce, weights=True)
    if isinstance(body, Refused):
        return body
    stage = asked.config.curriculum.stage[asked.stage]
    if body.images != declared:
        return Refused(Missed.IMPOSSIBLE_COUNT, f"the reply counts {body.images} images; the site declared {declared}")
    private = asked.config.privacy is not None
    # A site may protect its patients although nobody asked for it; then it tells no loss either.
    if (body.loss is None) != (body.epsilon is not None) or (private and body.epsilon is None):
        return Refused(
            Missed.MALFORMED, "the reply was refused: it tells its loss or epsilon where the other was agreed"
        )
    if body.epsilon is not None and body.collapsed is not None:
        return Refused(Missed.MALFORMED, "the reply was refused: it tells what it may not where patients are protected")
    if (wrong := _wrong_class_losses(stage.options, body)) is not None:
        return Refused(Missed.MALFORMED, f"the reply was refused: {wrong}")
    if body.steps != stage.steps(declared):
        return Refused(Missed.IMPOSSIBLE_COUNT, f"the reply counts {body.steps} steps; its images do not make so many")
    return body


def _wrong_class_losses(options: Options, body: TrainReply) -> str | None:
    """What is wrong with what a reply tells of classes, if anything."""
    if body.class_losses is None:
        return None
    asked = isinstance(options, ClassificationOptions) and options.ccl is not None and options.ccl.order == "self-paced"
    if not asked or body.epsilon is not None:
        return "it tells how hard classes are, where nobody asked or it may not"
    if isinstance(options, ClassificationOptions) and len(body.class_losses) != len(options.classes):
        return f"it tells of {len(body.class_losses)} classes; there are {len(options.classes)}"
    return None


def check_evaluation(
    message: Message, *, site: str, asked: EvaluateRequest, nonce: str | None, declared: int
) -> EvaluateReply | Refused:
    """Check a reply to an evaluation request; ``declared`` is the site's number of validation images."""
    body = _checked(message, EvaluateReply, site=site, asked=asked, nonce=nonce, weights=False)
    if isinstance(body, EvaluateReply) and not 1 <= body.images <= declared:
        return Refused(Missed.IMPOSSIBLE_COUNT, f"the reply counts {body.images} images; the site declared {declared}")
    return body


def check_score(
    message: Message, *, site: str, asked: ScoreRequest, nonce: str | None, declared: int
) -> ScoreReply | Refused:
    """Check a reply to a request for a score; ``declared`` is the site's number of validation images."""
    body = _checked(message, ScoreReply, site=site, asked=asked, nonce=nonce, weights=False)
    if isinstance(body, ScoreReply) and body.images > declared:
        return Refused(Missed.IMPOSSIBLE_COUNT, f"the reply counts {body.images} images; the site declared {declared}")
    return body


def check_assessment(message: Message, *, site: str, asked: AssessRequest, nonce: str | None) -> AssessReply | Refused:
    """Check a reply to a request to test a classifier. How many test images a site has it has told as a count only."""
    body = _checked(message, AssessReply, site=site, asked=asked, nonce=nonce, weights=False)
    if isinstance(body, Refused):
        return body
    options = asked.config.curriculum.stage[asked.stage].options
    classes = len(options.classes) if isinstance(options, ClassificationOptions) else 0
    if (wrong := wrong_answers(body.classes, body.images, classes)) is not None:
        return Refused(Missed.MALFORMED, f"the reply was refused: {wrong}")
    if body.images > asked.config.federation.max_images_per_site:
        return Refused(Missed.IMPOSSIBLE_COUNT, f"the reply counts {body.images} images, more than a site may have")
    return body


def check_teaching(message: Message, *, site: str, asked: TeachRequest, nonce: str | None) -> TeachReply | Refused:
    """Check a reply to a request to keep a teacher."""
    return _checked(message, TeachReply, site=site, asked=asked, nonce=nonce, weights=False)


def check_range(
    message: Message, *, site: str, asked: RangeRequest, nonce: str | None, declared: int
) -> RangeReply | Refused:
    """Check a reply to a range test; ``declared`` is the site's number of training images."""
    body = _checked(message, RangeReply, site=site, asked=asked, nonce=nonce, weights=False)
    if isinstance(body, Refused):
        return body
    if body.images != declared:
        return Refused(Missed.IMPOSSIBLE_COUNT, f"the reply counts {body.images} images; the site declared {declared}")
    low, high = asked.rates
    if body.rate is not None and not 0.9 * low <= body.rate <= 1.1 * high:  # they are rounded
        return Refused(Missed.OUT_OF_RANGE, "the reply suggests a rate that was not tried")
    return body


def check_fit(message: Message, *, site: str, asked: FitRequest, nonce: str | None) -> FitReply | Refused:
    """Check a reply to the question which batch fits."""
    body = _checked(message, FitReply, site=site, asked=asked, nonce=nonce, weights=False)
    if isinstance(body, FitReply) and body.largest not in (0, *asked.sizes):
        return Refused(Missed.OUT_OF_RANGE, "the reply names a batch size that was not asked about")
    return body


def check_analysis(
    message: Message, *, site: str, asked: AnalyseRequest, nonce: str | None, declared: int, blocks: int
) -> AnalyseReply | Refused:
    """Check a reply to a comparison of models.

    Args:
        message: the reply.
        site: the name under which its sender described itself.
        asked: the request.
        nonce: the one under which this site was asked; None where requests are not signed.
        declared: how many validation images the site said it has.
        blocks: of how many blocks there must be figures.
    """
    body = _opened(message, AnalyseReply, nonce=nonce, weights=False)
    if isinstance(body, Refused):
        return body
    if body.site != site:
        return Refused(Missed.WRONG_QUESTION, "the reply answers for another site")
    if len(body.blocks) != blocks:
        return Refused(Missed.MALFORMED, f"the reply has figures of {len(body.blocks)} blocks; there are {blocks}")
    if body.images > min(declared, asked.images):
        return Refused(Missed.IMPOSSIBLE_COUNT, f"the reply counts {body.images} images; the site declared {declared}")
    if body.seconds > asked.config.federation.round_deadline_s:
        return _TOO_LONG
    return body


def check_audit(message: Message, *, site: str, asked: AuditRequest, nonce: str | None) -> AuditReply | Refused:
    """Check a reply to a bias audit. How many test patients a site has it has not told."""
    body = _opened(message, AuditReply, nonce=nonce, weights=False)
    if isinstance(body, Refused):
        return body
    if body.site != site:
        return Refused(Missed.WRONG_QUESTION, "the reply answers for another site")
    if len(body.tests) != len(asked.tests) or not any(body.tests):
        return Refused(Missed.MALFORMED, f"the reply has not the figures of {len(asked.tests)} tests")
    if body.images > asked.images:
        return Refused(Missed.IMPOSSIBLE_COUNT, f"the reply counts {body.images} images; {asked.images} were asked for")
    for test in body.tests:
        if test is not None and (wrong := _wrong_figures(test, asked, body.images)) is not None:
            return Refused(Missed.MALFORMED, f"the reply was refused: {wrong}")
    if body.seconds > asked.config.federation.round_deadline_s:
        return _TOO_LONG
    return body


def _wrong_figures(test: AssociationFigures, asked: AuditRequest, images: int) -> str | None:
    """What is wrong with what a reply tells of a test, if anything."""
    if len(test.layers) != len(asked.layers):
        return f"it tells of {len(test.layers)} layers; there are {len(asked.layers)}"
    if any(len(one.untrained) != asked.untrained for one in test.layers if one is not None):
        return f"it tells not of {asked.untrained} untrained networks"
    if test.sizes[0] != test.sizes[1] or test.sizes[2] != test.sizes[3] or sum(test.sizes) > images:
        return "its sets are not as large as sets of its images can be"
    return None


def _checked(
    message: Message, kind: type[OfRound], *, site: str, asked: RoundRequest, nonce: str | None, weights: bool
) -> OfRound | Refused:
    body = _opened(message, kind, nonce=nonce, weights=weights)
    if isinstance(body, Refused):
        return body
    if (body.site, body.round, body.stage) != (site, asked.round, asked.stage):
        return Refused(Missed.WRONG_QUESTION, "the reply answers for another site, round or stage")
    if body.seconds > asked.config.federation.round_deadline_s:
        return _TOO_LONG
    return body


def _opened(message: Message, kind: type[Body], *, nonce: str | None, weights: bool) -> Body | Refused:
    """The body of a reply that is one to the request with this nonce."""
    if (error := error_in(message, nonce)) is not None:
        return error
    try:
        body = unpack_body(message.content, kind, weights=weights)
    except MalformedRecord as malformed:
        return Refused(Missed.MALFORMED, f"the reply was refused: {malformed}")
    return body if body.nonce == nonce else WRONG_QUESTION


def weights_of(message: Message, size: int, transfer: Transfer) -> NDArray[np.float32] | Refused:
    """The ``(size,)`` array of a reply as float32; whether it is finite is checked as it is folded in."""
    try:
        return unpack_weights(message.content, size, transfer)
    except MalformedRecord as malformed:
        return Refused(Missed.MALFORMED, f"the reply was refused: {malformed}")
