"""Flower's two HTTP servers without the tasks, streams and threads that their layers make for each request.

Starlette's ``BaseHTTPMiddleware`` runs what is below it in a task of its own and passes body and answer through
streams; a SuperLink has nine of them, one upon the other. Flower's layers need none of that: they read a whole body and
make or pass on a whole answer. What a layer decides, and in which order, stays as it is.

FastAPI calls each dependency that is not a coroutine in another thread. Those which only look something up in memory
are called where they are.
"""

from __future__ import annotations

import importlib
from typing import Any

from starlette.middleware import base
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from federation_configs.flower import check_version
from federation_configs.whole_bodies import given_first

_STREAMING = "/v1/control/"
_LOOK_UPS = frozenset({"get_protobuf_request", "get_linkstate", "get_runtime_state", "get_runtime_handlers"})


def lighten() -> None:
    """Put the changes in place, in a process that is nothing but a SuperLink or a SuperNode."""
    from flwr.supercore.dependencies.version import VersionDependency

    dependencies: Any = importlib.import_module("fastapi.dependencies.utils")
    check_version()
    heavy, in_thread = base.BaseHTTPMiddleware.__call__, dependencies.run_in_threadpool

    async def light(layer: base.BaseHTTPMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_STREAMING):
            await heavy(layer, scope, receive, send)
        else:
            await _pass_through(layer, scope, receive, send)

    async def call(function: Any, *arguments: Any, **named: Any) -> Any:
        if getattr(function, "__name__", "") in _LOOK_UPS or isinstance(function, VersionDependency):
            return function(*arguments, **named)
        return await in_thread(function, *arguments, **named)

    base.BaseHTTPMiddleware.__call__ = light  # type: ignore[method-assign,assignment]
    dependencies.run_in_threadpool = call


async def _pass_through(layer: base.BaseHTTPMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
    """What ``BaseHTTPMiddleware.__call__`` does, for answers that are whole when they are given."""
    request = Request(scope, receive)

    async def call_next(_request: Request) -> Response:
        start: Message = {}
        pieces: list[bytes] = []

        async def kept(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                pieces.append(message.get("body", b""))

        below = receive
        if hasattr(request, "_body"):  # the layer has read it: those below may read it too
            below = given_first({"type": "http.request", "body": request._body, "more_body": False}, receive)
        await layer.app(scope, below, kept)
        if not start:
            raise RuntimeError("no response returned")
        answer = Response(b"".join(pieces), start["status"])
        answer.raw_headers = list(start["headers"])
        return answer

    answer = await layer.dispatch_func(request, call_next)
    await answer(scope, receive, send)
