"""Every use of what Flower 1.41 does not document, on the coordinator's side. Each hook has a contract test."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from flwr.app import Context, Error, Message
from flwr.supercore.task_identity import TaskIdentity

if TYPE_CHECKING:
    from flwr.supercore.heartbeat import HeartbeatSender
    from flwr.supercore.run import Run
    from flwr.superlink.grid import HttpGrid

SERVERAPP = "flwr-serverapp"
_CONTROL_S = 10.0  # on loopback; who asks has other things to look after
RUN_GONE = frozenset({401, 403, 404})  # what the SuperLink answers once a run has ended or its token is void


def act_as(run_id: int, node_id: int, task_id: int = 1) -> None:
    """Set who this process is: `flwr.app.Message` refuses to be made without (`TaskIdentity`, private)."""
    TaskIdentity.task_id = task_id
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = node_id


def name_message(message: Message, message_id: str) -> None:
    """Give a message its id, as a SuperLink does (`Metadata` has no public way)."""
    message.metadata.__dict__["_message_id"] = message_id


def site_index(context: Context) -> int:
    """Which of a simulation's sites a context belongs to (``partition-id`` in Flower's simulation engine and ours)."""
    return int(context.node_config["partition-id"])


@dataclass(frozen=True)
class Link:
    """Where a SuperLink is and what it takes to command it.

    Attributes:
        address: ``host:port`` on loopback.
        authority: PEM of the CA of its certificate.
        secret: its SuperExec secret.
    """

    address: str
    authority: bytes
    secret: bytes

    @classmethod
    def of(cls, address: str, authority_file: Path, secret_file: Path) -> Link:
        """A link whose CA and secret are in files."""
        return cls(address, authority_file.read_bytes(), secret_file.read_bytes())

    def is_up(self) -> bool:
        """Whether it answers."""
        import ssl

        context = ssl.create_default_context(cadata=self.authority.decode())
        try:
            answer = httpx.get(f"https://{self.address}/health", timeout=2, verify=context, trust_env=False)
            return answer.is_success
        except httpx.HTTPError:
            return False

    @contextlib.contextmanager
    def _control(self) -> Any:
        from flwr.supercore.control.control_http_client import ControlHttpClient
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

        version = RuntimeVersionHttpInterceptor(component_name="flwr CLI")
        client = ControlHttpClient.from_server_address(self.address, False, self.authority, [version])
        client._client.timeout = httpx.Timeout(_CONTROL_S)
        try:
            yield client
        finally:
            client.close()

    def nodes(self) -> dict[bytes, int]:
        """The registered nodes' ids by public key (PEM)."""
        return {bytes(node.public_key): int(node.node_id) for node in self._listed() if node.status != "unregistered"}

    def online(self) -> set[bytes]:
        """Public keys (PEM) of the nodes that are online."""
        return {bytes(node.public_key) for node in self._listed() if node.status == "online"}

    def _listed(self) -> Any:
        from flwr.proto.control_pb2 import ListNodesRequest

        with self._control() as control:
            return control.ListNodes(ListNodesRequest()).nodes_info

    def register(self, public_key: bytes, name: str) -> int:
        """Let a node in by its public key (PEM); gives its id."""
        from flwr.proto.control_pb2 import RegisterNodeRequest

        with self._control() as control:
            return int(control.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name)).node_id)

    def unregister(self, node_id: int) -> None:
        """Shut a node out."""
        from flwr.proto.control_pb2 import UnregisterNodeRequest

        with self._control() as control:
            control.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def start_run(self, bundle: bytes) -> int:
        """Submit a run of the bundle; gives its id."""
        import hashlib

        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.proto.fab_pb2 import Fab

        fab = Fab(hash_str=hashlib.sha256(bundle).hexdigest(), content=bundle)
        with self._control() as control:
            return int(control.StartRun(StartRunRequest(fab=fab)).run_id)

    def stop_run(self, run_id: int) -> None:
        """End a run: sites are refused what they ask and send for it from now on."""
        from flwr.proto.control_pb2 import StopRunRequest

        with self._control() as control:
            control.StopRun(StopRunRequest(run_id=run_id))

    def forget_ended_runs(self) -> None:
        """Have the SuperLink delete what is left of the messages of ended runs: it does so when it lists them."""
        from flwr.proto.control_pb2 import ListRunsRequest

        with self._control() as control:
            control.ListRuns(ListRunsRequest())

    def acquire(self) -> tuple[int, str] | None:
        """Claim the oldest waiting ServerApp task: (run id, token); None where there is none."""
        from flwr.proto.runtime_pb2 import AcquireTaskRequest
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
        from flwr.supercore.runtime import RuntimeHttpClient

        interceptors: list[Any] = [
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(
                master_secret=self.secret, protected_methods={"/flwr.proto.Runtime/AcquireTask"}
            ),
        ]
        with RuntimeHttpClient.from_server_address(self.address, False, self.authority, interceptors) as client:
            answer = client.AcquireTask(AcquireTaskRequest(supported_task_types=[SERVERAPP]))
        return (int(answer.task.run_id), str(answer.token)) if answer.token else None

    def open(self, token: str) -> OpenRun:
        """Begin the claimed run: this process is its ServerApp from now on."""
        from flwr.common.serde import run_from_proto
        from flwr.proto.runtime_pb2 import PullTaskInputRequest
        from flwr.superlink.grid import HttpGrid

        grid = HttpGrid(self.address, False, self.authority, token=token)
        grid._retry_invoker = None  # type: ignore[assignment]  # Flower's sends SIGINT to this process on 401
        answer = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        run = run_from_proto(answer.run)
        act_as(int(answer.run.run_id), int(answer.context.node_id), int(answer.task_id))
        grid.set_run(run)
        return OpenRun(grid, run)


class OpenRun:
    """A Flower run whose ServerApp is this process.

    Attributes:
        grid: Flower's own, without its retries.
        run_id: Flower's.
    """

    def __init__(self, grid: HttpGrid, run: Run) -> None:
        from flwr.proto.runtime_pb2 import SendTaskHeartbeatRequest
        from flwr.supercore.heartbeat import HeartbeatSender

        self.grid, self.run_id = grid, int(run.run_id)
        self.refused = False

        def beat() -> bool:
            try:
                answer = grid._runtime_client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
            except httpx.HTTPStatusError as error:
                self.refused = error.response.status_code in RUN_GONE
                return self.refused
            except httpx.HTTPError:
                return False
            self.refused = not answer.success
            return True

        self._heart: HeartbeatSender = HeartbeatSender(beat)
        self._heart.start()

    def pull(self, message_ids: Iterable[str]) -> list[tuple[Any, Any]]:
        """The replies that there are to some messages, each without its content and with the tree of its objects."""
        from flwr.proto.runtime_pb2 import PullAppMessagesRequest

        answer = self.grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=message_ids))
        return list(zip(answer.messages_list, answer.message_object_trees, strict=True))

    def object_puller(self) -> Callable[[str], bytes]:
        """Fetches one object; raises ``ObjectUnavailableError`` while it is on its way, ``ObjectPullError`` if lost."""
        from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf

        return make_pull_object_fn_protobuf(self.grid._runtime_client.PullObject, self.grid.node, self.run_id)

    def confirm(self, message_id: str) -> None:
        """Let the SuperLink forget a reply that was read."""
        from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest

        self.grid._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self.grid.node, run_id=self.run_id, message_object_id=message_id)
        )

    def finish(self, *, completed: bool, details: str = "") -> None:
        """Tell the SuperLink how the run ended, if it is there."""
        from flwr.common.constant import SubStatus
        from flwr.proto.runtime_pb2 import PushTaskOutputRequest

        self.close_heart()
        status = SubStatus.COMPLETED if completed else SubStatus.FAILED
        with contextlib.suppress(httpx.HTTPError):  # a run that has ended already, or a SuperLink that is gone
            self.grid._runtime_client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=details))
        self.grid.close()

    def close_heart(self) -> None:
        """Send no more heartbeats."""
        if self._heart.is_running:
            self._heart.stop()


def spoilt(head: Any, code: int) -> Message:
    """What stands for a reply that is not read: its head (`flwr.proto.message_pb2.Message`) with an error."""
    from flwr.common.serde import metadata_from_proto  # type: ignore[attr-defined]

    return Message(error=Error(code), metadata=metadata_from_proto(head.metadata))  # type: ignore[call-overload,no-any-return]
