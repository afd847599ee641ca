"""An ASGI application whose empty answers wait a while for something to be there.

Whoever asks for work again and again, as SuperNodes and runners do, either asks often, and each question costs a server
more than ten milliseconds, or learns late of what is there. Here the answer that there is nothing is held back until
something comes or a few seconds are over; then it is given, and the question is asked anew. What is there is never put
into an answer that was held: the one who asked may be gone by then, and Flower hands a message out only once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from federation_configs.whole_bodies import given_first

EVERYBODY = 0


class Doorbell:
    """Holds empty answers back until the bell rings for who asked.

    Args:
        app: the application, which is given whole bodies (`federation_configs.whole_bodies`).
        held: paths whose empty answers wait, each with a function from the question's body to who asks.
        ringing: paths that ring when they were answered, each with a function from the body to those it rings for.
        hold_s: longest wait in seconds.
        most: that many may wait at once; what comes beyond is answered at once.
    """

    def __init__(
        self,
        app: ASGIApp,
        held: dict[str, Callable[[bytes], int]],
        ringing: dict[str, Callable[[bytes], Iterable[int]]],
        hold_s: float,
        most: int = 1000,
    ) -> None:
        self._app, self._held, self._ringing, self._hold_s, self._most = app, held, ringing, hold_s, most
        self._waiting: dict[asyncio.Event, int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def ring(self, who: int = EVERYBODY) -> None:
        """Something is there. May be called from any thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._ring, who)

    def _ring(self, who: int) -> None:
        for bell, whose in self._waiting.items():
            if who in (EVERYBODY, whose):
                bell.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = scope.get("path", "") if scope["type"] == "http" else ""
        if path in self._ringing:
            await self._answer_and_ring(self._ringing[path], scope, receive, send)
        elif path in self._held and len(self._waiting) < self._most:
            await self._answer_or_hold(self._held[path], scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _answer_and_ring(
        self, called: Callable[[bytes], Iterable[int]], scope: Scope, receive: Receive, send: Send
    ) -> None:
        question = await receive()
        await self._app(scope, given_first(question, receive), send)
        for who in called(question.get("body", b"")):
            self._ring(who)

    async def _answer_or_hold(self, asking: Callable[[bytes], int], scope: Scope, receive: Receive, send: Send) -> None:
        self._loop = asyncio.get_running_loop()
        question = await receive()
        bell = asyncio.Event()
        self._waiting[bell] = asking(question.get("body", b""))  # before it is looked whether something is there
        answer: list[Message] = []

        async def kept(event: Message) -> None:
            answer.append(event)

        try:
            await self._app(scope, given_first(question, receive), kept)
            if answer[0].get("status") == 200 and not any(event.get("body") for event in answer):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(bell.wait(), self._hold_s)
        finally:
            del self._waiting[bell]
        for event in answer:
            await send(event)
