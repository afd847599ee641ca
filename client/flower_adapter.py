"""Every use of what Flower 1.41 does not document, on the hospital's side. Each hook has a contract test.

The hooks change three things of a SuperNode: it presents the site's certificate to the gateway, it refuses every app
bundle that the site has not approved before anything of it is parsed or stored, and it says that it is alive.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import math
import ssl
import time
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from federation_configs.doorbell import EVERYBODY, Doorbell
from federation_configs.light_layers import lighten
from federation_configs.quick_transport import hasten
from federation_configs.whole_bodies import WholeBodies

if TYPE_CHECKING:
    from client.membership import SiteMembership

CLIENTAPP, AGENTAPP = "flwr-clientapp", "flwr-agentapp"
_IDLE_SLEEP_S = 3.0  # what a SuperNode sleeps when there is no message; it sleeps 0.5 s while it waits for a reply
_REPLY_POLL_S = 0.05
_HOLD_S = 2.0
_ACQUIRE = "/v1/runtime/acquire-task"
_RUN_CHECK_S = 5.0
_STUCK_S = 60.0
_GIVING_UP_S = 300.0  # that long a runner may take to notice that its work is for nothing
_SENDINGS = 5


@dataclass
class NodeHooks:
    """What a site changes of Flower's SuperNode.

    Attributes:
        approved: sha256 of the app bundles that may be named at this site.
        authority_file: PEM of the CA of the gateway.
        certificate_file: PEM of the site's own certificate.
        key_file: PEM of its private key.
        quickest_poll_s: pause between two questions for messages while a run is going on.
        slowest_poll_s: and when nothing has come for a while.
        on_life: called whenever the SuperNode's loop does anything.
        on_contact: called whenever the gateway has answered.
        on_run_ended: called with a Flower run's id once, when it ended while a reply to it is being computed.
        on_refused: called with the hash of a bundle that was refused.
        on_stuck: called where no reply has come a minute after anybody waits for it. A runner that is killed just after
            it has claimed a message leaves one behind that nobody will ever answer, and the node would wait for ever.
    """

    approved: frozenset[str]
    authority_file: Path
    certificate_file: Path
    key_file: Path
    quickest_poll_s: float
    slowest_poll_s: float
    on_life: Callable[[], None]
    on_contact: Callable[[], None]
    on_run_ended: Callable[[int], None]
    on_refused: Callable[[str], None]
    on_stuck: Callable[[], None]

    def install(self) -> None:
        """Put the hooks in place; call this before `run_node`."""
        lighten()
        hasten()
        node = importlib.import_module("flwr.supernode.start_client_internal")
        connection = importlib.import_module("flwr.supernode.fleet_http_connection")
        runtime = importlib.import_module("flwr.supernode.main")
        # The package exports the function under the module's name.
        command = importlib.import_module("flwr.supernode.cli.flower_supernode")
        self._run: int | None = None
        self._overdue = math.inf
        self._pause = self.quickest_poll_s
        self._looked_at = 0.0
        self._asked_s = 0.0
        self._bell: Doorbell | None = None
        self._still_running: Callable[[int], Any] | None = None
        self._send_again: Callable[[], tuple[set[str], Callable[[str, bytes], None]]] | None = None
        node._init_connection = self._watching(node._init_connection)  # type: ignore[attr-defined]
        node._verify_fab = self._is_approved  # type: ignore[attr-defined]
        # What a run sets of a bundle's configuration is nothing to us, and a key that is none would end the loop.
        node.get_fused_config_from_fab = lambda _content, _run: {}  # type: ignore[attr-defined]
        node.push_object_contents_from_iterable = self._pushing(  # type: ignore[attr-defined]
            node.push_object_contents_from_iterable
        )
        node.time = types.SimpleNamespace(sleep=self._sleep)  # type: ignore[attr-defined]
        connection.FleetHttpClient = self._client(connection.FleetHttpClient)  # type: ignore[attr-defined]
        runtime.create_app = self._runtime_api(runtime.create_app)  # type: ignore[attr-defined]
        start = command.start_client_internal

        def start_verified(**arguments: Any) -> None:
            # A SuperNode verifies bundles only where it trusts somebody: the site's own list takes that place.
            start(**(arguments | {"trusted_entities": {"site": "approved bundles"}}))

        command.start_client_internal = start_verified  # type: ignore[attr-defined]

    def _watching(self, connect: Callable[..., Any]) -> Callable[..., Any]:
        @contextlib.contextmanager
        def connection(*arguments: Any, **named: Any) -> Iterator[tuple[Any, ...]]:
            with connect(*arguments, **named) as opened:
                node_id, receive, send, get_run, get_fab, pull_object, push_object, confirm = opened
                self._still_running = get_run

                def receive_noting() -> Any:
                    self.on_life()
                    asked_at = time.monotonic()
                    received = receive()
                    self._asked_s = time.monotonic() - asked_at
                    self._run, self._overdue = None, math.inf
                    if received is not None:
                        data = received[0].metadata
                        self._run, self._overdue = int(data.run_id), data.created_at + data.ttl + _STUCK_S
                    return received

                def get_fab_unsigned(fab_hash: str, run_id: int) -> Any:
                    fab = get_fab(fab_hash, run_id)
                    fab.verifications.clear()
                    fab.verifications["valid_license"] = "site"  # else `_verify_fab` is not asked
                    return fab

                def send_noting(message: Any, tree: Any, seconds: float) -> tuple[set[str], str]:
                    def send_again() -> tuple[set[str], Callable[[str, bytes], None]]:
                        lacking, session = send(message, tree, seconds)
                        return lacking, functools.partial(push_object, message.metadata.run_id, session)

                    self._send_again = send_again
                    sent: tuple[set[str], str] = send(message, tree, seconds)
                    return sent

                def pull_ringing(run: int, object_id: str) -> bytes:
                    self._ring()  # a message is there, and the runner can take over what there is of it already
                    content: bytes = pull_object(run, object_id)
                    return content

                yield (
                    *(node_id, receive_noting, send_noting, get_run, get_fab_unsigned),
                    *(pull_ringing, push_object, confirm),
                )

        return connection

    def _pushing(self, push_all: Callable[..., None]) -> Callable[..., None]:
        """Send what is lacking of a reply until nothing is.

        An object whose receipt was lost on its way back (the SuperLink was killed, the line was cut) is refused when
        Flower sends it again, and Flower then drops the whole reply: the work of a round. The SuperLink knows what it
        has, so it is asked.
        """

        def push_what_lacks(
            object_contents: Iterable[tuple[str, bytes]], push_object_fn: Callable[[str, bytes], None]
        ) -> None:
            from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

            held = dict(object_contents)
            lacking, push = set(held), push_object_fn
            for sending in range(1, _SENDINGS + 1):
                try:
                    push_all(((one, held[one]) for one in held if one in lacking), push_object_fn=push)
                    return
                except ObjectPushError:
                    if sending == _SENDINGS or self._send_again is None:
                        raise
                    lacking, push = self._send_again()
                    if not lacking <= set(held):
                        raise

        return push_what_lacks

    def _is_approved(self, fab: Any, _trusted: object) -> bool:
        digest = hashlib.sha256(fab.content).hexdigest()
        if digest in self.approved and fab.hash_str == digest:
            return True
        self.on_refused(digest)
        return False

    def _sleep(self, seconds: float) -> None:
        """The pauses of the SuperNode's loop: shorter, and signs of life."""
        self.on_life()
        if seconds >= _IDLE_SLEEP_S:
            time.sleep(max(0.0, self._pause - self._asked_s))  # the SuperLink holds an answer back for a while
            self._pause = min(self._pause * 1.05, self.slowest_poll_s)
            return
        self._ring()
        self._pause = self.quickest_poll_s
        if time.time() > self._overdue:
            self.on_stuck()
        self._look_for_end()
        time.sleep(min(seconds, _REPLY_POLL_S))

    def _look_for_end(self) -> None:
        """While a reply is computed: has the coordinator ended the run? Then the work is for nothing."""
        from flwr.supercore.run import RunNotRunningException

        now = time.monotonic()
        if self._run is None or self._still_running is None or now - self._looked_at < _RUN_CHECK_S:
            return
        self._looked_at = now
        try:
            self._still_running(self._run)
        except RunNotRunningException:
            self.on_run_ended(self._run)
            self._run, self._overdue = None, min(self._overdue, time.time() + _GIVING_UP_S)

    def _ring(self) -> None:
        """A message is there for the runner."""
        if self._bell is not None:
            self._bell.ring()

    def _runtime_api(self, create_app: Callable[..., Any]) -> Callable[..., Any]:
        """The API for the runner, which is told of a message as soon as it is there."""

        def create(**arguments: Any) -> Any:
            self._bell = Doorbell(create_app(**arguments), {_ACQUIRE: lambda _body: EVERYBODY}, {}, _HOLD_S)
            return WholeBodies(self._bell)

        return create

    def _client(self, original: type[Any]) -> type[Any]:
        hooks = self

        class SiteFleetClient(original):  # type: ignore[misc]
            """Flower's client for the Fleet API, with the site's certificate."""

            @classmethod
            def from_server_address(
                cls, address: str, _insecure: bool, _authority: object, interceptors: Any, **named: Any
            ) -> Any:
                return cls(f"https://{address}", interceptors=interceptors, verify=hooks.tls(), **named)

            def __init__(self, *arguments: Any, **named: Any) -> None:
                super().__init__(*arguments, **named)
                self._client.follow_redirects = False  # the gateway is where this site connects to, and nowhere else

            def _send(self, *arguments: Any, **named: Any) -> Any:
                hooks.on_life()
                answer = super()._send(*arguments, **named)
                if answer.is_success:
                    hooks.on_contact()
                return answer

        return SiteFleetClient

    def tls(self) -> ssl.SSLContext:
        """TLS as the gateway demands it: its certificate is checked, the site's own is shown."""
        return site_tls(self.authority_file, self.certificate_file, self.key_file)


def site_tls(authority_file: Path, certificate_file: Path, key_file: Path) -> ssl.SSLContext:
    """A TLS context that trusts the federation's CA only and shows the site's certificate."""
    context = ssl.create_default_context(cafile=str(authority_file))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(str(certificate_file), str(key_file))
    return context


def probe_gateway(membership: SiteMembership, proxy: str | None) -> httpx.Response:
    """Come in as the site's node and leave again: the answer tells whether it is let in.

    A node that is connected already stays so: then the SuperLink, which knows the key, refuses a second one.

    Args:
        membership: the site's certificate and key.
        proxy: URL of the proxy, ``"none"``, or None for what the environment says.

    Raises:
        httpx.TransportError: there is no way to the gateway.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
    from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    key = load_pem_private_key(membership.key_file.read_bytes(), None)
    if not isinstance(key, EllipticCurvePrivateKey):
        raise TypeError("a site's key is an EC key")
    answers: list[httpx.Response] = []

    class Probe(FleetHttpClient):
        """Keeps the answer as it came."""

        def _send(self, *arguments: Any, **named: Any) -> Any:
            answers.append(super()._send(*arguments, **named))
            return answers[-1]

    tls = site_tls(membership.authority_file, membership.certificate_file, membership.key_file)
    interceptors: list[Any] = [
        RuntimeVersionHttpInterceptor(component_name="SuperNode"),
        NodeAuthHttpInterceptor(key, key.public_key()),
    ]
    probe = Probe(f"https://{membership.gateway_host}:{membership.gateway_port}", interceptors=interceptors, verify=tls)
    probe._client = httpx.Client(
        verify=tls, timeout=10, trust_env=proxy is None, proxy=None if proxy in (None, "none") else proxy
    )
    coming = ActivateNodeRequest(
        public_key=public_key_to_bytes(key.public_key()), heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
    )
    with contextlib.closing(probe), contextlib.suppress(httpx.HTTPStatusError):
        node = probe.ActivateNode(coming).node_id
        probe.DeactivateNode(DeactivateNodeRequest(node_id=node))
    if not answers:
        raise httpx.ReadError("the gateway gave no answer")
    return answers[0]


def run_node() -> None:
    """Run Flower's SuperNode in this process; its arguments are those of the process."""
    importlib.import_module("flwr.supernode.cli.flower_supernode").flower_supernode()


def heart_beats() -> bool:
    """Whether the thread that sends the SuperNode's heartbeats lives (`flwr.supercore.heartbeat`, private)."""
    import threading

    from flwr.supercore.heartbeat import HeartbeatSender

    loops = {HeartbeatSender._run}
    return any(
        getattr(getattr(thread, "_target", None), "__func__", None) in loops
        for thread in threading.enumerate()
        if thread.is_alive()
    )
