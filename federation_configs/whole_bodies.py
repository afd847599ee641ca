"""An ASGI application that is given each request's body in one piece.

Flower 1.41's two servers pass a body through a stack of Starlette's ``BaseHTTPMiddleware``, and each of them makes a
task for each piece of it; uvicorn gives pieces of 64 KiB. A model's update of 5 MiB costs 80 pieces times 9 layers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MOST_BYTES = 8 * 2**20
"""A piece of a model's weights has 5 MiB, and a little is around it."""


class WholeBodies:
    """Gathers a request's body before the application is called.

    Args:
        app: the application.
        most_bytes: a longer body is refused with status 413, without being read to its end.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], most_bytes: int = MOST_BYTES) -> None:
        self._app, self._most = app, most_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
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
        whole: list[bytes] = [b"".join(pieces)]
        pieces.clear()

        async def received() -> Message:
            if whole:
                return {"type": "http.request", "body": whole.pop(), "more_body": False}
            return await receive()

        await self._app(scope, received, send)
