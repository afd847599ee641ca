"""The Flower ClientApp of a hospital. The same app runs in simulation and at the site."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client import assessing, auditing, comparing, measuring, rounds, scoring
from client.refusals import code_of, error_reply, note
from client.site import Site
from federation_configs.audit_messages import AuditReply, AuditRequest
from federation_configs.records import nonce_of, pack, signature_of, unpack_body, unpack_weights
from federation_configs.site_errors import SiteError
from federation_configs.wire import (
    AnalyseReply,
    AnalyseRequest,
    AssessRequest,
    DescribeReply,
    DescribeRequest,
    EvaluateRequest,
    FitRequest,
    RangeRequest,
    Request,
    RoundReply,
    RoundRequest,
    ScoreRequest,
    TeachRequest,
    TrainRequest,
    WeightedRequest,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from client.gate import Visit
    from federation_configs.records import Floats

    Answer = tuple[DescribeReply | RoundReply | AnalyseReply | AuditReply, Floats | None]

Asked = TypeVar("Asked", bound=Request)


def make_client_app(site_of: Callable[[Context], Site]) -> ClientApp:
    """A ClientApp that acts for the site which ``site_of`` names.

    No exception crosses the wire: a reply is a whitelisted body and array, or a code with a fixed sentence, and either
    repeats the request's nonce. Where the site has a gate, nothing is done for a request that it does not let in, and
    what leaves is in its ledger before.
    """
    app = ClientApp()

    def describe(site: Site, request: DescribeRequest, _content: RecordDict) -> Answer:
        return rounds.describe(site, request), None

    def weights_in(site: Site, request: RoundRequest, content: RecordDict) -> NDArray[np.float32]:
        return unpack_weights(content, rounds.expected_size(site, request), request.config.federation.transfer)

    def teach(site: Site, request: TeachRequest, content: RecordDict) -> Answer:
        return rounds.teach(site, request, weights_in(site, request, content)), None

    def train(site: Site, request: TrainRequest, content: RecordDict) -> Answer:
        return rounds.train(site, request, weights_in(site, request, content))

    def evaluate(site: Site, request: EvaluateRequest, content: RecordDict) -> Answer:
        return rounds.evaluate(site, request, weights_in(site, request, content)), None

    def score(site: Site, request: ScoreRequest, content: RecordDict) -> Answer:
        return scoring.score(site, request, weights_in(site, request, content)), None

    def assess(site: Site, request: AssessRequest, content: RecordDict) -> Answer:
        return assessing.assess(site, request, weights_in(site, request, content)), None

    def find_rate(site: Site, request: RangeRequest, content: RecordDict) -> Answer:
        return measuring.find_rate(site, request, weights_in(site, request, content)), None

    def find_batch(site: Site, request: FitRequest, content: RecordDict) -> Answer:
        return measuring.find_batch(site, request, weights_in(site, request, content)), None

    def analyse(site: Site, request: AnalyseRequest, content: RecordDict) -> Answer:
        size = comparing.expected_size(request)
        return comparing.analyse(site, request, unpack_weights(content, size, request.config.federation.transfer)), None

    def audit(site: Site, request: AuditRequest, content: RecordDict) -> Answer:
        size = auditing.expected_size(request)
        return auditing.audit(site, request, unpack_weights(content, size, request.config.federation.transfer)), None

    def guarded(
        kind: str, asked: type[Asked], handle: Callable[[Site, Asked, RecordDict], Answer]
    ) -> Callable[[Message, Context], Message]:
        def answer(message: Message, context: Context) -> Message:
            site: Site | None = None
            visit: Visit | None = None
            try:
                site = site_of(context)
                visit = None if site.gate is None else site.gate.visit(kind)
                request = unpack_body(message.content, asked, weights=issubclass(asked, WeightedRequest), signed=True)
                if visit is not None:
                    visit.admit(request, *signature_of(message.content))
                if site.survey is not None:
                    site = site.survey(request.config.images, kind == "describe")
                if visit is not None:
                    visit.begin(request, site)
                reply, weights = handle(site, request, message.content)
                content = pack(reply.model_copy(update={"nonce": nonce_of(message.content)}), weights)
                if visit is not None:
                    visit.answered(reply, content)
                return Message(content, reply_to=message)
            except Exception as error:
                code = code_of(error)
                if site is not None:
                    note(site, code, error)
                    _enter_failure(site, visit, code)
                return error_reply(code, message)

        return answer

    app.query("describe")(guarded("describe", DescribeRequest, describe))
    app.query("teach")(guarded("teach", TeachRequest, teach))
    app.train()(guarded("train", TrainRequest, train))
    app.evaluate()(guarded("evaluate", EvaluateRequest, evaluate))
    app.query("score")(guarded("score", ScoreRequest, score))
    app.query("assess")(guarded("assess", AssessRequest, assess))
    app.query("range")(guarded("range", RangeRequest, find_rate))
    app.query("fit")(guarded("fit", FitRequest, find_batch))
    app.query("analyse")(guarded("analyse", AnalyseRequest, analyse))
    app.query("audit")(guarded("audit", AuditRequest, audit))
    return app


def _enter_failure(site: Site, visit: Visit | None, code: SiteError) -> None:
    """The ledger's entry of a failure. Where it cannot be written, the answer is an error all the same."""
    if visit is None:
        return
    try:
        visit.failed(code)
    except Exception as error:
        note(site, code_of(error), error)
