"""Messages of the site's SuperNode, claimed one after the other: what `flower-superexec` and `flwr-clientapp` do.

Nothing is started per message, and the app bundle that comes along is never unpacked: only its hash is looked at.
Everything here is private to Flower 1.41 and has a contract test.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Context, Message

from client.flower_adapter import AGENTAPP, CLIENTAPP
from federation_configs.flower import inflate, objects_of
from federation_configs.quick_transport import hasten

_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
_MOST_BYTES = 2**31
"""The weights in one request: 500 million of them."""


@dataclass(frozen=True)
class NodeTask:
    """One message to be answered.

    Attributes:
        message: with its content, where that could be read.
        is_readable: false where the objects that came do not make a message.
        context: Flower's.
        bundle_sha256: hash of the bundle that the run names.
        is_for_clients: false for the kinds of task that a site never runs.
        expires: time (seconds since 1970) after which nobody waits for the answer.
    """

    message: Message
    is_readable: bool
    context: Context
    bundle_sha256: str
    is_for_clients: bool
    expires: float
    _client: Any

    def answer(self, reply: Message) -> None:
        """Hand the reply to the SuperNode, which sends it."""
        from flwr.common.constant import SubStatus
        from flwr.supernode.runtime.run_clientapp import push_message, push_task_output

        push_message(self._client, reply, self.context)
        push_task_output(self._client, self.context, SubStatus.COMPLETED, "")


class NodeTasks:
    """The tasks of a SuperNode's runtime API on loopback.

    Args:
        address: ``127.0.0.1:port``.
        secret_file: the secret that SuperNode and runner share.
    """

    def __init__(self, address: str, secret_file: Path) -> None:
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor

        hasten()
        self._address = address
        secret = secret_file.read_bytes()
        self._acquirer = self._connect(
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={_ACQUIRE}),
        )

    @contextlib.contextmanager
    def next(self) -> Iterator[NodeTask | None]:
        """The next task, kept alive by heartbeats while the block lasts; None where there is none.

        Raises:
            httpx.HTTPError: the SuperNode does not answer.
        """
        from flwr.proto.runtime_pb2 import AcquireTaskRequest
        from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor

        # Agent tasks are taken too, to be refused: a message that nobody answers would block the SuperNode for ever.
        answer = self._acquirer.AcquireTask(AcquireTaskRequest(supported_task_types=[CLIENTAPP, AGENTAPP]))
        if not answer.token:
            yield None
            return
        client = self._connect(
            RuntimeVersionHttpInterceptor(component_name=CLIENTAPP), RuntimeTokenHttpInterceptor(answer.token)
        )
        heart = _heart(client)
        heart.start()
        try:
            yield _task(client, is_for_clients=answer.task.type == CLIENTAPP)
        finally:
            if heart.is_running:
                heart.stop()
            client.close()

    def _connect(self, *interceptors: Any) -> Any:
        from flwr.supercore.runtime import RuntimeHttpClient

        # Without Flower's retries: they send SIGINT to this process when a run has ended.
        return RuntimeHttpClient.from_server_address(self._address, True, None, list(interceptors))


def _task(client: Any, *, is_for_clients: bool) -> NodeTask:
    """What `flwr.supernode.runtime.run_clientapp.pull_task_input` does, also for a message that cannot be read."""
    from flwr.common.serde import context_from_proto, message_from_proto
    from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
    from flwr.proto.node_pb2 import Node
    from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullTaskInputRequest
    from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
    from flwr.supercore.inflatable.inflatable_utils import pull_objects
    from flwr.supercore.task_identity import TaskIdentity

    asked = client.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id, TaskIdentity.run_id = asked.task_id, asked.run.run_id
    TaskIdentity.node_id = asked.context.node_id
    pulled = client.PullMessages(PullAppMessagesRequest())
    head, tree = message_from_proto(pulled.messages_list[0]), pulled.message_object_trees[0]
    node, run = Node(node_id=asked.context.node_id), asked.context.run_id
    contents = pull_objects(objects_of(tree), make_pull_object_fn_protobuf(client.PullObject, node, run))
    client.ConfirmMessageReceived(
        ConfirmMessageReceivedRequest(node=node, run_id=run, message_object_id=tree.object_id)
    )
    try:
        message, is_readable = inflate(tree.object_id, contents, _MOST_BYTES), True
    except ValueError:
        message, is_readable = head, False
    if is_readable and _place(message) != _place(head):  # what is inside says otherwise than the label
        message, is_readable = head, False
    return NodeTask(
        message=message,
        is_readable=is_readable,
        context=context_from_proto(asked.context),
        bundle_sha256=hashlib.sha256(asked.fab.content).hexdigest(),
        is_for_clients=is_for_clients,
        expires=head.metadata.created_at + head.metadata.ttl,
        _client=client,
    )


def _place(message: Message) -> tuple[int, int, int, str, str]:
    """From where to where in which run a message goes, and what it asks."""
    data = message.metadata
    return data.run_id, data.src_node_id, data.dst_node_id, data.message_type, data.reply_to_message_id


def _heart(client: Any) -> Any:
    from flwr.proto.runtime_pb2 import SendTaskHeartbeatRequest
    from flwr.supercore.heartbeat import HeartbeatSender

    def beat() -> bool:
        try:
            client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        except httpx.HTTPStatusError:
            return True  # the task is over; the reply will be refused too
        except httpx.HTTPError:
            return False
        return True

    return HeartbeatSender(beat)
