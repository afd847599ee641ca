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
from federation_configs.flower import check_version, hasten_object_pulls

_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"


@dataclass(frozen=True)
class NodeTask:
    """One message to be answered.

    Attributes:
        message: with its content.
        context: Flower's.
        bundle_sha256: hash of the bundle that the run names.
        is_for_clients: false for the kinds of task that a site never runs.
        expires: time (seconds since 1970) after which nobody waits for the answer.
    """

    message: Message
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

        check_version()
        hasten_object_pulls()
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
        from flwr.supernode.runtime.run_clientapp import pull_task_input

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
            message, context, _run, fab = pull_task_input(client)
            yield NodeTask(
                message=message,
                context=context,
                bundle_sha256=hashlib.sha256(fab.content).hexdigest(),
                is_for_clients=answer.task.type == CLIENTAPP,
                expires=message.metadata.created_at + message.metadata.ttl,
                _client=client,
            )
        finally:
            if heart.is_running:
                heart.stop()
            client.close()

    def _connect(self, *interceptors: Any) -> Any:
        from flwr.supercore.runtime import RuntimeHttpClient

        # Without Flower's retries: they send SIGINT to this process when a run has ended.
        return RuntimeHttpClient.from_server_address(self._address, True, None, list(interceptors))


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
