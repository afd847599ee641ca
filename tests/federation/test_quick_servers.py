"""Flower's servers are made quicker, and answer what they answered before."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sqlite3
from types import SimpleNamespace

import httpx
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from federation_configs import light_layers
from federation_configs.doorbell import EVERYBODY, Doorbell
from federation_configs.whole_bodies import WholeBodies
from server import superlink
from server.object_files import FileObjectStore

PROTOBUF = {"content-type": importlib.import_module("flwr.supercore.protobuf.constants").PROTOBUF_MEDIA_TYPE}


def asked(app, *requests: tuple, whole: bool = False) -> list[tuple]:
    """(status, headers, body) of each (method, path, content, headers)."""

    async def ask():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return [
                (answer.status_code, sorted(answer.headers.items()) if whole else None, answer.content)
                for method, path, content, headers in requests
                for answer in [await client.request(method, path, content=content, headers=headers)]
            ]

    return asyncio.run(ask())


async def spoken(app, body_pieces: list[bytes], path: str = "/", kind: str = "http") -> list[dict]:
    """What an application sends for a request whose body comes in pieces."""
    events = [
        {"type": "http.request", "body": piece, "more_body": index + 1 < len(body_pieces)}
        for index, piece in enumerate(body_pieces)
    ]
    sent: list[dict] = []

    async def receive():
        return events.pop(0) if events else {"type": "http.disconnect"}

    async def send(event):
        sent.append(dict(event))

    await app({"type": kind, "path": path}, receive, send)
    return sent


class TestWholeBodies:
    def test_a_body_in_pieces_arrives_in_one(self):
        got = []

        async def app(_scope, receive, _send):
            got.append(await receive())
            got.append(await receive())

        asyncio.run(spoken(WholeBodies(app), [b"ab", b"", b"cd"]))
        assert got == [{"type": "http.request", "body": b"abcd", "more_body": False}, {"type": "http.disconnect"}]

    def test_too_long_a_body_is_refused_before_its_end_and_never_seen(self):
        async def app(_scope, _receive, _send):
            raise AssertionError("it was called")

        sent = asyncio.run(spoken(WholeBodies(app, most_bytes=3), [b"ab", b"cd", b"never read"]))
        assert [event.get("status") for event in sent] == [413, None]

    def test_who_hangs_up_in_the_middle_is_not_answered(self):
        async def app(_scope, _receive, _send):
            raise AssertionError("it was called")

        async def hang_up():
            events = [{"type": "http.request", "body": b"ab", "more_body": True}, {"type": "http.disconnect"}]

            async def receive():
                return events.pop(0)

            await WholeBodies(app)({"type": "http"}, receive, None)

        asyncio.run(hang_up())

    def test_what_is_no_request_passes(self):
        got = []

        async def app(scope, _receive, _send):
            got.append(scope["type"])

        asyncio.run(spoken(WholeBodies(app), [b""], kind="lifespan"))
        assert got == ["lifespan"]


class TestDoorbell:
    """The questions' bodies are the ids of those who ask and of those who are called."""

    def bell(self, there: list[bytes], hold_s: float = 30.0, most: int = 1000) -> Doorbell:
        async def app(scope, receive, send):
            question = await receive()
            if scope["path"] == "/push":
                there.append(question["body"])
                answer = b"taken"
            else:
                answer = there.pop() if there else b""
            await send({"type": "http.response.start", "status": 401 if question["body"] == b"66" else 200})
            await send({"type": "http.response.body", "body": answer})

        return Doorbell(app, {"/pull": int}, {"/push": lambda body: [int(body)]}, hold_s, most)

    def test_what_is_there_is_answered_at_once(self):
        sent = asyncio.run(asyncio.wait_for(spoken(self.bell([b"work"]), [b"7"], "/pull"), 5))
        assert sent[1]["body"] == b"work"

    def test_an_empty_answer_waits_for_the_bell_and_stays_empty(self):
        """What came in the meantime is left for the next question: who asked this one may be gone."""
        there: list[bytes] = []

        async def play():
            bell = self.bell(there)
            seven = asyncio.create_task(spoken(bell, [b"7"], "/pull"))
            eight = asyncio.create_task(spoken(bell, [b"8"], "/pull"))
            while len(bell._waiting) < 2:
                await asyncio.sleep(0)
            await spoken(bell, [b"7"], "/push")
            first = await asyncio.wait_for(seven, 5)
            assert not eight.done()  # it did not ring for this one
            bell.ring(EVERYBODY)
            second = await asyncio.wait_for(eight, 5)
            return first, second, bell

        first, second, bell = asyncio.run(play())
        assert first[1]["body"] == second[1]["body"] == b""
        assert there == [b"7"]
        assert not bell._waiting

    def test_an_empty_answer_is_given_when_the_time_is_over(self):
        sent = asyncio.run(asyncio.wait_for(spoken(self.bell([], hold_s=0.01), [b"7"], "/pull"), 5))
        assert (sent[0]["status"], sent[1]["body"]) == (200, b"")

    def test_a_refusal_is_not_held(self):
        """Whoever is not let in must not be able to keep connections waiting."""
        sent = asyncio.run(asyncio.wait_for(spoken(self.bell([]), [b"66"], "/pull"), 5))
        assert sent[0]["status"] == 401

    def test_only_so_many_wait(self):
        sent = asyncio.run(asyncio.wait_for(spoken(self.bell([], most=0), [b"7"], "/pull"), 5))
        assert sent[1]["body"] == b""

    def test_it_rings_from_another_thread(self):
        async def play():
            bell = self.bell([])
            asking = asyncio.create_task(spoken(bell, [b"7"], "/pull"))
            while not bell._waiting:
                await asyncio.sleep(0)
            await asyncio.to_thread(bell.ring)
            return await asyncio.wait_for(asking, 5)

        assert asyncio.run(play())[1]["body"] == b""

    def test_a_bell_that_nobody_waits_for_may_ring(self):
        self.bell([]).ring()


class _Translator(BaseHTTPMiddleware):
    """As Flower's: makes answers of what is raised below it."""

    async def dispatch(self, request, call_next):
        try:
            return await call_next(request)
        except LookupError as error:
            return JSONResponse({"error": str(error)}, status_code=418)


class _Reader(BaseHTTPMiddleware):
    """As Flower's: reads the body, refuses some, and changes what came."""

    async def dispatch(self, request, call_next):
        request.state.parsed = (await request.body()).decode()
        if request.state.parsed == "refused":
            raise HTTPException(403, "refused by a layer")
        if request.state.parsed == "early":
            return Response("answered by a layer", 202)
        answer = await call_next(request)
        answer.headers["x-layer"] = "passed"
        return answer


def _layered() -> Starlette:
    async def echo(request: Request) -> Response:
        if request.state.parsed == "lookup":
            raise LookupError("below")
        if request.state.parsed == "crash":
            raise ZeroDivisionError
        return Response(await request.body() + request.state.parsed.encode(), headers={"x-own": "there"})

    return Starlette(
        routes=[Route("/echo", echo, methods=["POST"])], middleware=[Middleware(_Translator), Middleware(_Reader)]
    )


def test_light_layers_answer_as_heavy_ones_do(monkeypatch):
    bodies = (b"text", b"", b"refused", b"early", b"lookup", b"crash")
    requests = [("POST", "/echo", body, {}) for body in bodies] + [("GET", "/echo", b"", {}), ("POST", "/no", b"x", {})]
    heavy = asked(_layered(), *requests, whole=True)
    monkeypatch.setattr(BaseHTTPMiddleware, "__call__", light_layers._pass_through)
    light = asked(_layered(), *requests, whole=True)
    assert light == heavy
    assert [status for status, _, _ in light] == [200, 200, 500, 202, 418, 500, 405, 404]


@pytest.fixture
def hastened(monkeypatch):
    """What `server.superlink` and `client.flower_adapter` replace, put back afterwards."""
    dependencies = importlib.import_module("fastapi.dependencies.utils")
    app = importlib.import_module("flwr.superlink.main")
    state = importlib.import_module("flwr.server.superlink.linkstate.sql_linkstate").SqlLinkState
    monkeypatch.delenv("FLWR_DATABASE", raising=False)
    for owner, name in (
        (BaseHTTPMiddleware, "__call__"),
        (dependencies, "run_in_threadpool"),
        (app, "create_app"),
        (state, "store_traffic"),
        (state, "_cleanup_expired_task_tokens"),
        (state, "store_object"),
        (importlib.import_module("flwr.supercore.object_store.object_store_factory"), "SqlObjectStore"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    return superlink.hasten


def test_a_hastened_superlink_answers_and_refuses_what_it_did_before(hastened):
    app = importlib.import_module("flwr.superlink.main")
    requests = [
        ("GET", "/health", b"", {}),
        ("POST", "/v1/fleet/pull-messages", b"", PROTOBUF),  # not signed
        ("POST", "/v1/fleet/push-object", b"\xff\xff not protobuf", PROTOBUF),
        ("POST", "/v1/fleet/push-object", b"{}", {"content-type": "application/json"}),
        ("POST", "/v1/fleet/no-such", b"", PROTOBUF),
        ("GET", "/v1/fleet/pull-messages", b"", {}),
        ("POST", "/v1/runtime/acquire-task", b"", PROTOBUF),  # there is no secret in this one
        ("POST", "/v1/runtime/pull-messages", b"", PROTOBUF),  # without a task's token
        ("POST", "/v1/runtime/push-messages", b"\xff", PROTOBUF),
        ("POST", "/v1/control/list-nodes", b"", PROTOBUF),
    ]
    before = asked(app.create_app(), *requests)
    hastened()
    after = asked(app.create_app(), *requests)
    assert after[:-1] == before[:-1]
    assert after[-1][0] == before[-1][0] == 200  # its body says the time
    statuses = [status for status, _, _ in after]
    assert statuses == [200, 401, 400, 415, 404, 405, 200, 401, 400, 200]
    ((status, _, _),) = asked(app.create_app(), ("POST", "/v1/fleet/push-object", b"x" * (8 * 2**20 + 1), PROTOBUF))
    assert status == 413


def test_what_is_called_in_place_only_looks_something_up():
    """These run on the server's event loop: none may wait for a database."""
    runtime = importlib.import_module("flwr.supercore.dependencies.runtime")
    linkstate = importlib.import_module("flwr.superlink.dependencies.linkstate")
    translation = importlib.import_module("flwr.supercore.protobuf.translation")
    found = {
        function.__name__
        for function in (
            runtime.get_runtime_state,
            runtime.get_runtime_handlers,
            linkstate.get_linkstate,
            translation.get_protobuf_request,
        )
    }
    assert found == light_layers._LOOK_UPS
    # A state is made before the server begins to answer, so that its factory gives it from memory.
    assert "linkstate_factory.state()" in inspect.getsource(importlib.import_module("flwr.superlink.main").create_app)


def test_the_bell_rings_for_those_to_whom_messages_go():
    from flwr.proto.fleet_pb2 import PullMessagesRequest
    from flwr.proto.message_pb2 import Message, Metadata
    from flwr.proto.node_pb2 import Node
    from flwr.proto.runtime_pb2 import PushAppMessagesRequest

    messages = [Message(metadata=Metadata(dst_node_id=node)) for node in (7, 2**63 + 1)]
    assert superlink._addressees(PushAppMessagesRequest(messages_list=messages).SerializeToString()) == [7, 2**63 + 1]
    assert superlink._node(PullMessagesRequest(node=Node(node_id=7)).SerializeToString()) == 7
    assert superlink._addressees(b"\xff") == [] and superlink._node(b"\xff") == -1


def test_a_hastened_superlink_keeps_large_objects_in_files_and_is_durable(hastened, tmp_path):
    hastened()
    links = importlib.import_module("flwr.server.superlink.linkstate.linkstate_factory")
    stores = importlib.import_module("flwr.supercore.object_store.object_store_factory")
    path = tmp_path / "superlink.db"
    objects = stores.ObjectStoreFactory(str(path))
    links.LinkStateFactory(str(path), SimpleNamespace(), objects).state()
    assert isinstance(objects.store(), FileObjectStore)
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_expired_claims_are_looked_for_at_most_once_a_second(monkeypatch):
    now, cleaned = [100.0], []
    monkeypatch.setattr(superlink.time, "monotonic", lambda: now[0])
    clean = superlink._seldom(cleaned.append)
    for seconds in (0.0, 0.4, 0.5, 0.2):
        now[0] += seconds
        clean("state")
    assert len(cleaned) == 2
    state = importlib.import_module("flwr.server.superlink.linkstate.sql_linkstate").SqlLinkState
    assert "self._cleanup_expired_task_tokens()" in inspect.getsource(state.get_run_status)
    assert list(inspect.signature(state.store_traffic).parameters) == ["self", "run_id", "bytes_sent", "bytes_recv"]


def test_a_long_answer_comes_off_its_connection_whole(tmp_path):
    """Over real sockets: a known length, chunks, nothing at all, and a server that hangs up in the middle."""
    import socket
    import threading

    from federation_configs.quick_transport import hasten

    hasten()
    body = bytes(range(256)) * 20_000
    half = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body[: len(body) // 2]
    answers = [
        b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        half,
        b"",
    ]
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"

    def serve():
        for answer in answers:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    try:
        got = []
        for _ in answers:
            with httpx.Client(trust_env=False, timeout=10) as client:
                try:
                    got.append(client.get(url).content)
                except httpx.RemoteProtocolError as error:
                    got.append(str(error))
    finally:
        server.join(10)
        listener.close()
    assert got[:3] == [body, b"abc", b""]
    assert "incomplete message body" in got[3] or "without sending complete message body" in got[3]
    assert "disconnected without sending a response" in got[4]


def test_a_piece_of_an_array_keeps_its_id():
    from flwr.app.message.arraychunk import ArrayChunk
    from flwr.supercore.inflatable.inflatable_object import get_object_id

    from federation_configs.quick_transport import hasten

    hasten()
    piece, other = ArrayChunk(memoryview(b"weights")), ArrayChunk(memoryview(b"others"))
    assert piece.object_id == piece.object_id == get_object_id(piece.deflate())
    assert other.object_id != piece.object_id
