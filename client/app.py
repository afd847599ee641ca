"""The Flower ClientApp of a hospital. The same app runs in simulation and at the site."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from client import rounds
from client.refusals import code_of, note
from client.site import Site
from federation_configs.records import pack, unpack_body, unpack_weights
from federation_configs.wire import DescribeRequest, EvaluateRequest, TrainRequest


def make_client_app(site_of: Callable[[Context], Site]) -> ClientApp:
    """A ClientApp that acts for the site which ``site_of`` names.

    No exception crosses the wire: a reply is a whitelisted body and array, or a code with a fixed sentence.
    """
    app = ClientApp()

    def describe(site: Site, content: RecordDict) -> RecordDict:
        return pack(rounds.describe(site, unpack_body(content, DescribeRequest)))

    def train(site: Site, content: RecordDict) -> RecordDict:
        request = unpack_body(content, TrainRequest, weights=True)
        return pack(
            *rounds.train(
                site,
                request,
                unpack_weights(content, rounds.expected_size(site, request)),
            )
        )

    def evaluate(site: Site, content: RecordDict) -> RecordDict:
        request = unpack_body(content, EvaluateRequest, weights=True)
        return pack(
            rounds.evaluate(
                site,
                request,
                unpack_weights(content, rounds.expected_size(site, request)),
            )
        )

    def guarded(
        handle: Callable[[Site, RecordDict], RecordDict],
    ) -> Callable[[Message, Context], Message]:
        def answer(message: Message, context: Context) -> Message:
            site: Site | None = None
            try:
                site = site_of(context)
                return Message(handle(site, message.content), reply_to=message)
            except Exception as error:
                code = code_of(error)
                if site is not None:
                    note(site, code, error)
                return Message(Error(int(code), code.sentence), reply_to=message)

        return answer

    app.query("describe")(guarded(describe))
    app.train()(guarded(train))
    app.evaluate()(guarded(evaluate))
    return app
