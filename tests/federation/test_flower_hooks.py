"""Contract tests of everything that we use of Flower and that Flower does not document.

Each fails loudly where a new flwr works differently; none starts a process.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import flwr
import httpx
import pytest
from flwr.app import Context, Message, RecordDict

from client.flower_adapter import NodeHooks, heart_beats
from client.node_tasks import NodeTasks
from federation_configs.bundle_file import BUNDLE_SHA256, bundle_bytes
from federation_configs.flower import (
    FLWR_VERSION,
    check_version,
    inflate,
    objects_of,
    quiet_environment,
)
from federation_configs.quick_transport import hasten
from server.flower_adapter import Link, OpenRun, act_as


def source(name: str, attribute: str) -> str:
    return inspect.getsource(getattr(importlib.import_module(name), attribute))


def test_the_installed_flower_is_the_one_that_was_verified(monkeypatch):
    check_version()
    assert flwr.__version__ == FLWR_VERSION
    monkeypatch.setattr(flwr, "__version__", "1.42.0")
    with pytest.raises(RuntimeError, match="1.42.0 is installed; this version of AISEEME needs exactly 1.41.0"):
        check_version()


def test_a_supernode_connects_through_the_names_that_are_replaced():
    node = importlib.import_module("flwr.supernode.start_client_internal")
    run = source(node.__name__, "start_client_internal")
    assert "with _init_connection(" in run and "time.sleep(3)" in run
    assert "_verify_fab(fab, trusted_entities)" in source(node.__name__, "_pull_and_store_message")
    assert 'fab.verifications.get("valid_license", "")' in source(node.__name__, "_pull_and_store_message")
    # The bundle is verified before anything of it is parsed or stored.
    pull = source(node.__name__, "_pull_and_store_message")
    assert pull.index("_verify_fab(") < pull.index("get_fused_config_from_fab(") < pull.index("store_fab(")
    assert "time.sleep(0.5)" in source(node.__name__, "_push_messages")
    push = source(node.__name__, "_push_messages")
    assert push.index("= send(message, object_tree, ") < push.index("push_object_contents_from_iterable(")
    command = importlib.import_module("flwr.supernode.cli.flower_supernode")
    assert "start_client_internal(" in inspect.getsource(command.flower_supernode)
    assert "trusted_entities=" in inspect.getsource(command.flower_supernode)
    connection = importlib.import_module("flwr.supernode.fleet_http_connection")
    assert "FleetHttpClient.from_server_address(" in inspect.getsource(connection.http_request_response)
    yielded = inspect.getsource(connection.http_request_response)
    order = ["node.node_id,", "receive,", "send,", "get_run,", "get_fab,", "pull_object,", "push_object,", "confirm_m"]
    places = [yielded.index(name, yielded.index("yield (")) for name in order]
    assert places == sorted(places)


@pytest.fixture
def hooks(tmp_path, monkeypatch):
    """Hooks in place, and Flower's own names back afterwards."""
    node = importlib.import_module("flwr.supernode.start_client_internal")
    connection = importlib.import_module("flwr.supernode.fleet_http_connection")
    command = importlib.import_module("flwr.supernode.cli.flower_supernode")
    runtime = importlib.import_module("flwr.supernode.main")
    dependencies = importlib.import_module("fastapi.dependencies.utils")
    layers = importlib.import_module("starlette.middleware.base").BaseHTTPMiddleware
    for module, name in (
        (node, "_init_connection"),
        (node, "_verify_fab"),
        (node, "time"),
        (node, "push_object_contents_from_iterable"),
        (connection, "FleetHttpClient"),
        (command, "start_client_internal"),
        (runtime, "create_app"),
        (dependencies, "run_in_threadpool"),
        (layers, "__call__"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))
    refused, lives = [], []
    made = NodeHooks(
        approved=frozenset({BUNDLE_SHA256}),
        authority_file=tmp_path / "ca.pem",
        certificate_file=tmp_path / "site.pem",
        key_file=tmp_path / "site.key",
        quickest_poll_s=0.02,
        slowest_poll_s=0.04,
        on_life=lambda: lives.append(1),
        on_contact=lambda: None,
        on_run_ended=lambda run: None,
        on_refused=refused.append,
        on_stuck=lambda: lives.append("stuck"),
    )
    made.install()
    return made, node, refused, lives


def test_only_an_approved_bundle_passes_and_it_is_known_by_its_own_bytes(hooks):
    from flwr.supercore.fab import Fab

    _, node, refused, _ = hooks
    good = bundle_bytes()
    assert node._verify_fab(Fab(BUNDLE_SHA256, good, {}), {}) is True
    # Other bytes under the approved name, the approved bytes under another name, and garbage.
    assert node._verify_fab(Fab(BUNDLE_SHA256, good + b"x", {}), {}) is False
    assert node._verify_fab(Fab("0" * 64, good, {}), {}) is False
    assert node._verify_fab(Fab("0" * 64, b"no zip at all", {}), {}) is False
    assert len(refused) == 3


def test_a_reply_whose_receipt_was_lost_is_sent_again_and_not_dropped(hooks):
    """Cut lines and killed SuperLinks lose receipts; Flower then drops the reply, and with it the work of a round."""
    from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

    made, node, _, _ = hooks
    reply = {name: name.encode() for name in ("head", "array", "piece")}
    stored, sessions = {}, []

    def send(message, tree, seconds):
        sessions.append(f"session {len(sessions)}")
        return set(reply) - set(stored), sessions[-1]

    def push_object(run, session, name, content):
        if name in stored or session != sessions[-1]:
            raise ObjectPushError(name, run, session)
        stored[name] = content
        if name == "array":  # it is stored; the receipt is lost, and Flower sends it again
            push_object(run, session, name, content)

    opened = (7, lambda: None, send, None, None, None, push_object, None)
    with made._watching(lambda: nullcontext(opened))() as connected:
        message = SimpleNamespace(metadata=SimpleNamespace(run_id=1))
        lacking, session = connected[2](message, None, 0.0)
        contents = ((name, reply[name]) for name in reply if name in lacking)
        push = functools.partial(connected[6], 1, session)
        node.push_object_contents_from_iterable(contents, push_object_fn=push)
    assert stored == reply
    assert len(sessions) == 2


def test_a_reply_that_is_refused_again_and_again_is_given_up(hooks):
    from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

    made, node, _, _ = hooks

    def refuse(name, content):
        raise ObjectPushError(name, 1, "session")

    made._send_again = lambda: ({"head"}, refuse)
    with pytest.raises(ObjectPushError):
        node.push_object_contents_from_iterable([("head", b"head")], push_object_fn=refuse)


def test_the_loop_sleeps_shorter_and_says_that_it_lives(hooks):
    import time

    _, node, _, lives = hooks
    started = time.monotonic()
    node.time.sleep(3)
    node.time.sleep(0.5)
    assert time.monotonic() - started < 1.0
    assert len(lives) == 2


def test_a_pause_is_shorter_by_the_time_that_the_question_was_held(hooks):
    import time

    made, node, _, _ = hooks
    made._pause = made.slowest_poll_s = 60.0
    made._asked_s = 61.0
    started = time.monotonic()
    node.time.sleep(3)
    assert time.monotonic() - started < 10


def test_the_runner_is_told_as_soon_as_a_message_is_there(hooks, monkeypatch):
    made, _, _, _ = hooks
    api = importlib.import_module("flwr.supernode.main")
    assert "create_app(" in source("flwr.supernode.cli.flower_supernode", "_start_supernode_http_api")
    # A message is stored before its objects are fetched: the first of them is where the bell may ring.
    pull = source("flwr.supernode.start_client_internal", "_pull_and_store_message")
    assert pull.index("state.store_message(message)") < pull.index("pull_object(run_id, obj_id)")
    assert "/v1/runtime/acquire-task" in str(
        importlib.import_module("flwr.supercore.protobuf.translation").PROTOBUF_REQUEST_TYPES
    )
    api.create_app(superexec_auth_secret=b"secret")
    rung = []
    monkeypatch.setattr(made._bell, "ring", lambda: rung.append("rung"))
    opened = (7, lambda: None, None, None, None, lambda run, name: name.encode(), None, None)
    with made._watching(lambda: nullcontext(opened))() as connected:
        assert connected[5](1, "piece") == b"piece"
    assert rung == ["rung"]


def test_a_client_of_the_gateway_shows_its_certificate_and_follows_no_redirection(hooks, monkeypatch):
    made, _, _, lives = hooks
    connection = importlib.import_module("flwr.supernode.fleet_http_connection")
    monkeypatch.setattr(type(made), "tls", lambda self: True)
    client = connection.FleetHttpClient.from_server_address("127.0.0.1:1", False, b"", interceptors=[])
    assert client._base_url == "https://127.0.0.1:1"
    assert client._client.follow_redirects is False
    with pytest.raises(httpx.ConnectError):
        client.GetRun(importlib.import_module("flwr.proto.run_pb2").GetRunRequest(run_id=0))
    assert lives
    client.close()


def test_objects_are_pulled_quickly_and_for_long():
    hasten()
    pulls = importlib.import_module("flwr.supercore.inflatable.inflatable_utils")
    for pull in (pulls.pull_objects, pulls.pull_and_inflate_object_from_tree):
        defaults = pull.__kwdefaults__
        assert (defaults["initial_backoff"], defaults["backoff_cap"]) == (0.05, 0.2)
        assert defaults["max_tries_per_object"] * 0.2 > 3600


def test_a_heart_is_found_by_its_thread():
    from flwr.supercore.heartbeat import HeartbeatSender

    assert heart_beats() is False
    heart = HeartbeatSender(lambda: True)
    heart.start()
    assert heart_beats() is True
    heart.stop()
    assert heart_beats() is False
    assert threading.active_count() >= 1


def test_a_message_travels_as_objects_and_is_the_same_again():
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

    from federation_configs.records import pack
    from federation_configs.wire import EvaluateReply

    act_as(1, 2)
    body = EvaluateReply(site="alpha", round=1, stage=0, images=5, loss=0.5, seconds=1.0)
    message = Message(pack(body), 7, "evaluate")
    objects = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    assert set(objects_of(get_object_tree(message))) == set(objects)
    again = inflate(message.object_id, objects, 0)
    assert again.content.config_records["body"]["json"] == message.content.config_records["body"]["json"]
    assert again.metadata.message_id == message.object_id


def test_what_is_not_a_message_is_no_reply():
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

    content = RecordDict()
    objects = {name: part.deflate() for name, part in get_all_nested_objects(content).items()}
    with pytest.raises(ValueError, match="do not make a message"):
        inflate(content.object_id, objects, 0)


def test_what_the_runner_and_the_coordinator_call_is_there():
    clientapp = importlib.import_module("flwr.supernode.runtime.run_clientapp")
    # `client.node_tasks` does what this does, in this order.
    text = inspect.getsource(clientapp.pull_task_input)
    steps = ["PullTaskInput(", "TaskIdentity", "PullMessages(", "make_pull_object_fn", "make_confirm", "_message_id"]
    places = [text.index(step) for step in steps]
    assert places == sorted(places)
    assert list(inspect.signature(clientapp.push_message).parameters) == ["client", "message", "context"]
    assert list(inspect.signature(clientapp.push_task_output).parameters)[:3] == ["client", "context", "sub_status"]
    # The grid's own retries are taken away: they send SIGINT to the coordinator when a run has ended.
    grid = importlib.import_module("flwr.superlink.grid").HttpGrid
    assert "_retry_invoker" in inspect.getsource(grid) and "_runtime_client" in inspect.getsource(grid)
    control = importlib.import_module("flwr.supercore.control.control_http_client").ControlHttpClient
    for name in ("ListNodes", "RegisterNode", "UnregisterNode", "StartRun", "StopRun"):
        assert callable(getattr(control, name))
    for owner, names in (
        (Link, ("nodes", "online", "register", "unregister", "start_run", "stop_run", "acquire", "open")),
        (OpenRun, ("pull", "confirm", "finish")),
        (NodeTasks, ("next",)),
    ):
        assert all(callable(getattr(owner, name)) for name in names)
    assert Context


def test_flower_neither_phones_home_nor_installs_anything_nor_sends_loopback_through_a_proxy(tmp_path):
    made = quiet_environment(tmp_path, {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "intranet"})
    assert made["FLWR_TELEMETRY_ENABLED"] == "0"
    assert made["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert made["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert made["NO_PROXY"] == made["no_proxy"] == "intranet,127.0.0.1,localhost"
    assert made["HTTPS_PROXY"] == "http://proxy:3128"
    # The names of the switches are Flower's.
    root = inspect.getsource(importlib.import_module("flwr.supercore.telemetry"))
    assert "FLWR_TELEMETRY_ENABLED" in root


def test_a_node_does_not_wait_for_ever_for_a_reply_that_nobody_will_give(hooks, monkeypatch):
    made, node, _, lives = hooks
    node.time.sleep(0.5)
    assert "stuck" not in lives
    monkeypatch.setattr(made, "_overdue", 1.0)  # its message's time was over long ago
    node.time.sleep(0.5)
    assert "stuck" in lives
    lives.clear()
    monkeypatch.setattr(made, "_still_running", _ended)
    monkeypatch.setattr(made, "_run", 7)
    monkeypatch.setattr(made, "_overdue", float("inf"))
    node.time.sleep(0.5)  # its run has ended: the runner has some minutes to notice
    assert "stuck" not in lives and 0 < made._overdue < float("inf")


def _ended(_run):
    from flwr.supercore.run import RunNotRunningException

    raise RunNotRunningException
