"""An ASGI application that is given each request's body in one piece.

Flower 1.41's two servers pass a body through a stack of Starlette's ``BaseHTTPMiddleware``, and each of them makes a
task for each piece of it; uvicorn gives pieces of 64 KiB. A model's update of 5 MiB costs 80 pieces times 9 layers.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 8 * 2**20
"""A piece of a model's weights has 5 MiB, and a little is around it."""


class WholeBodies:
    """Gathers a request's body before the application is called.

    Args:
        app: the application.
        most_bytes: a longer body is refused with status 413, without being read to its end.
    """

    def __init__(self, app: ASGIApp, most_bytes: int = MOST_BYTES) -> None:
        self._app, self._most = app, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass on what is none."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        pieces: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # whoever asked is gone
            pieces.append(message.get("body", b""))
            size, more = size + len(pieces[-1]), message.get("more_body", False)
            if size > self._most:
                await send({"type": "http.response.start", "status": 413, "headers": [(b"connection", b"close")]})
                await send({"type": "http.response.body", "body": b""})
                return
        whole: Message = {"type": "http.request", "body": b"".join(pieces), "more_body": False}
        pieces.clear()
        received = given_first(whole, receive)
        del message, whole  # what was received lasts no longer than the application needs it
        await self._app(scope, received, send)


def given_first(event: Message, receive: Receive) -> Receive:
    """What gives an event that was received already, once, and then what follows it."""
    given = [event]

    async def received() -> Message:
        return given.pop() if given else await receive()

    return received
