"""Those who attack a federation: a site that speaks Flower by itself, and one who has the SuperLink in his hands."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sqlite3
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node as NodeProto

from aiseeme_models import __version__
from client.flower_adapter import site_tls
from client.membership import load_membership
from client.site_home import SiteHome
from federation_configs.flower import inflate, objects_of
from federation_configs.site_keys import load_private, public_pem
from federation_configs.wire import PROTOCOL
from scripts.loopback import Hospital, Loopback, until
from server.federation_home import FederationHome
from server.flower_adapter import Link, OpenRun, act_as
from server.service_files import ServiceFiles

ANSWER_S = 90.0
GIGABYTE = 2**30


def link_of(federation: Loopback) -> Link:
    """The SuperLink, with the federation's own secret."""
    home = FederationHome(federation.home)
    return Link.of(ServiceFiles(home.folder).link_address, home.link_authority, home.superexec_secret)


def node_of(federation: Loopback, site: str) -> int:
    """The id of a site's node at the SuperLink, which is online."""
    key = Path(SiteHome(federation.hospitals[site].home).folder / "membership" / "current" / "key.pem").read_text()
    pem = public_pem(load_private(key, site).public_key()).encode()
    link = link_of(federation)
    return int(until(lambda: pem in link.online() and link.nodes().get(pem), f"{site} is online", 60))


# --- messages as objects

Objects = tuple[str, dict[str, bytes]]
"""A message's id, and its objects by id."""


def honest(message: Message) -> Objects:
    """The objects that Flower makes of a message."""
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

    return message.object_id, {name: part.deflate() for name, part in get_all_nested_objects(message).items()}


def bomb(message: Message, pieces: int = 2100) -> Objects:
    """A message of 1 MiB whose array names its one piece so often that it would become 2 GiB, just over a site's limit.

    No more than that: where the limit failed, the machine that runs the test should not run out of memory.
    """
    body, inside = _raw("ConfigRecord", [], _body(message.content["body"])), {}
    piece = _raw("ArrayChunk", [], bytes(2**20))
    described = {
        "dtype": "float32",
        "shape": [pieces * 2**18],
        "stype": "numpy.ndarray",
        "arraychunk_ids": [0] * pieces,
    }
    array = _raw("Array", [piece[0]], json.dumps(described).encode())
    arrays = _raw("ArrayRecord", [array[0]], json.dumps({"flat": array[0]}).encode())
    records = _raw("RecordDict", [body[0], arrays[0]], json.dumps({"body": body[0], "weights": arrays[0]}).encode())
    whole = _raw("Message", [records[0]], _body(message))
    inside.update([whole, records, arrays, array, piece, body])
    return whole[0], inside


def no_message(message: Message) -> Objects:
    """A message whose content is a record where a dictionary of records belongs."""
    body = _raw("ConfigRecord", [], _body(message.content["body"]))
    whole = _raw("Message", [body[0]], _body(message))
    return whole[0], dict([whole, body])


def _raw(kind: str, children: list[str], body: bytes) -> tuple[str, bytes]:
    content = f"{kind} {','.join(children)} {len(body)}".encode() + b"\x00" + body
    return hashlib.sha256(content).hexdigest(), content


def _body(part: Any) -> bytes:
    head, _, body = part.deflate().partition(b"\x00")
    assert head
    return bytes(body)


def label_of(message: Message, message_id: str) -> Message:
    """A message without its content, under an id."""
    from flwr.app.message import remove_content_from_message

    label = remove_content_from_message(message) if message.has_content() else message
    label.metadata.__dict__["_message_id"] = message_id
    return label


def tree_of(message_id: str, objects: Mapping[str, bytes]) -> Any:
    """A message's objects as Flower announces them: each names those that it is made of."""
    from flwr.proto.message_pb2 import ObjectTree

    children = objects[message_id].partition(b"\x00")[0].decode().split(" ")[1]
    parts = [tree_of(child, objects) for child in children.split(",") if child]
    return ObjectTree(object_id=message_id, children=parts)


# --- one who has the SuperLink in his hands


@dataclass
class Usurper:
    """Commands the SuperLink as a coordinator does, with whatever bundle and messages."""

    federation: Loopback
    open: OpenRun

    @classmethod
    @contextlib.contextmanager
    def with_bundle(cls, federation: Loopback, bundle: bytes) -> Iterator[Usurper]:
        """Submit a run of a bundle, and be its ServerApp."""
        link = link_of(federation)
        run = link.start_run(bundle)
        claimed = until(link.acquire, "the run's task is there", 30)
        while claimed[0] != run:
            claimed = until(link.acquire, "the run's task is there", 30)
        opened = link.open(claimed[1])
        try:
            yield cls(federation, opened)
        finally:
            opened.finish(completed=True)

    def change(self, table: str, column: str, value: str) -> None:
        """Change what the SuperLink's database says of the run."""
        with self._database() as database:
            done = database.execute(f"UPDATE {table} SET {column} = ? WHERE run_id = ?", (value, self._signed_id))
            assert done.rowcount == 1

    def change_bundle(self, change: Callable[[bytes], bytes]) -> None:
        """Change the bytes of the run's bundle in the SuperLink's database; its name, the hash, stays."""
        with self._database() as database:
            ((digest, content),) = database.execute(
                "SELECT f.fab_hash, f.content FROM fab f JOIN run r ON r.fab_hash = f.fab_hash WHERE r.run_id = ?",
                (self._signed_id,),
            ).fetchall()
            database.execute("UPDATE fab SET content = ? WHERE fab_hash = ?", (change(content), digest))

    def send(self, site: str, content: RecordDict, kind: str, ttl: float = 300) -> str:
        """Send a site a message; gives the message's id."""
        node = node_of(self.federation, site)
        (message_id,) = self.open.grid.push_messages([Message(content, node, kind, ttl=ttl, group_id="1")])
        assert message_id
        return message_id

    def send_objects(self, site: str, content: RecordDict, kind: str, make: Callable[[Message], Objects]) -> str:
        """Send a site a message whose objects ``make`` gives, whatever they are."""
        from flwr.common.serde import message_to_proto
        from flwr.proto.runtime_pb2 import PushAppMessagesRequest

        message = Message(content, node_of(self.federation, site), kind, ttl=300, group_id="1")
        message_id, objects = make(message)
        client = self.open.grid._runtime_client
        pushed = client.PushMessages(
            PushAppMessagesRequest(
                messages_list=[message_to_proto(label_of(message, message_id))],
                message_object_trees=[tree_of(message_id, objects)],
            )
        )
        assert list(pushed.message_ids) == [message_id]
        for object_id in pushed.objects_to_push:
            client.PushObject(
                PushObjectRequest(
                    node=self.open.grid.node,
                    run_id=self.open.run_id,
                    session_id=pushed.session_id,
                    object_id=object_id,
                    object_content=objects[object_id],
                )
            )
        return message_id

    def answer(self, message_id: str, deadline_s: float = ANSWER_S) -> Message:
        """The answer to a message."""
        ((head, tree),) = until(lambda: self.open.pull([message_id]), "the site answers", deadline_s)
        pull, contents = self.open.object_puller(), {}
        for object_id in objects_of(tree):
            contents[object_id] = until(lambda one=object_id: _there(pull, one), "the answer has arrived", 60)
        return inflate(head.metadata.message_id, contents, GIGABYTE)

    def ask(self, site: str, content: RecordDict, kind: str) -> Message:
        """Send, and give the answer."""
        return self.answer(self.send(site, content, kind))

    @property
    def _signed_id(self) -> int:
        return self.open.run_id - 2**64 if self.open.run_id >= 2**63 else self.open.run_id

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        with (
            contextlib.closing(sqlite3.connect(FederationHome(self.federation.home).database, timeout=20)) as database,
            database,
        ):
            yield database


def _there(pull: Callable[[str], bytes], object_id: str) -> bytes | None:
    from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError

    try:
        return pull(object_id)
    except ObjectUnavailableError:
        return None


def bundle(files: Mapping[str, str], *, client: str = "evil:client", agent: bool = False) -> bytes:
    """A Flower app bundle, as ``flwr build`` makes it (stored zip, with a list of its files)."""
    components = f'serverapp = "evil:server"\nclientapp = "{client}"\n' + ('agentapp = "evil:agent"\n' if agent else "")
    project = (
        '[project]\nname = "evil"\nversion = "1.0.0"\ndescription = "x"\ndependencies = ["flwr==1.41.0"]\n'
        f'[tool.flwr.app]\npublisher = "evil"\n[tool.flwr.app.components]\n{components}[tool.flwr.app.config]\n'
    )
    parts = {"pyproject.toml": project, **files}
    listed = "".join(
        f"{name},{hashlib.sha256(text.encode()).hexdigest()},{len(text.encode()) * 8}\n"
        for name, text in sorted(parts.items())
    )
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        for name, text in sorted({**parts, ".info/CONTENT": listed}.items()):
            archive.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), text)
    return made.getvalue()


# --- a site that speaks Flower by itself


class Node:
    """A site's node in the hands of somebody who has its membership, and flwr's own client for the Fleet API."""

    def __init__(self, hospital: Hospital, *, certificate_of: Hospital | None = None) -> None:
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
        from flwr.supernode.fleet_http_client import FleetHttpClient
        from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

        self.site = hospital.name
        mine = load_membership(SiteHome(hospital.home))
        shown = load_membership(SiteHome((certificate_of or hospital).home))
        key = load_pem_private_key(mine.key_file.read_bytes(), None)
        assert isinstance(key, EllipticCurvePrivateKey)
        self.public_key = public_pem(key.public_key()).encode()
        tls = site_tls(mine.authority_file, shown.certificate_file, shown.key_file)
        interceptors: list[Any] = [
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(key, key.public_key()),
        ]
        base = f"https://{mine.gateway_host}:{mine.gateway_port}"
        self.client = FleetHttpClient(base, interceptors=interceptors, verify=tls)
        self.client._client = httpx.Client(verify=tls, timeout=30, trust_env=False)
        self.id = 0

    def __enter__(self) -> Node:
        self.id = self.client.ActivateNode(
            ActivateNodeRequest(public_key=self.public_key, heartbeat_interval=1800)
        ).node_id
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(httpx.HTTPError):
            self.client.DeactivateNode(DeactivateNodeRequest(node_id=self.id))
        self.client.close()

    @property
    def _proto(self) -> NodeProto:
        return NodeProto(node_id=self.id)

    def pull(self) -> Message | None:
        """The next message for this node."""
        answer = self.client.PullMessages(PullMessagesRequest(node=self._proto))
        if not answer.messages_list:
            return None
        head, tree = answer.messages_list[0], answer.message_object_trees[0]
        run, contents = head.metadata.run_id, {}
        for object_id in objects_of(tree):
            asked = PullObjectRequest(node=self._proto, run_id=run, object_id=object_id)
            contents[object_id] = until(lambda asked=asked: self._available(asked), "the message has arrived", 60)
        self.client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self._proto, run_id=run, message_object_id=tree.object_id)
        )
        return inflate(tree.object_id, contents, GIGABYTE)

    def _available(self, asked: PullObjectRequest) -> bytes | None:
        answer = self.client.PullObject(asked)
        return answer.object_content if answer.object_available else None

    def wait(self, deadline_s: float = 120.0) -> Message:
        """The next message, waited for."""
        return until(self.pull, f"{self.site} is asked", deadline_s)

    def reply(self, message: Message) -> None:
        """Send an answer."""
        self.send_objects(message, honest)

    def send_objects(self, message: Message, make: Callable[[Message], Objects]) -> None:
        """Send the objects that ``make`` gives for an answer, whatever they are."""
        from flwr.common.serde import message_to_proto

        message_id, objects = make(message)
        answer = self.client.PushMessages(
            PushMessagesRequest(
                node=self._proto,
                messages_list=[message_to_proto(label_of(message, message_id))],
                message_object_trees=[tree_of(message_id, objects)],
                clientapp_runtime_list=[0.1],
            )
        )
        for object_id in answer.objects_to_push:
            self.client.PushObject(
                PushObjectRequest(
                    node=self._proto,
                    run_id=message.metadata.run_id,
                    session_id=answer.session_id,
                    object_id=object_id,
                    object_content=objects[object_id],
                )
            )


def asked_of(message: Message) -> dict[str, Any]:
    """The body of a request."""
    body: dict[str, Any] = json.loads(message.content.config_records["body"]["json"])
    return body


def record(body: Mapping[str, Any], weights: np.ndarray | Array | None = None) -> RecordDict:
    """A record as ours are, with whatever in it."""
    content = RecordDict({"body": ConfigRecord({"json": json.dumps(body)})})
    if weights is not None:
        content["weights"] = ArrayRecord({"flat": weights if isinstance(weights, Array) else Array(weights)})
    return content


def description(message: Message, site: str, train: int = 8) -> RecordDict:
    """What an honest site would say of itself."""
    body = asked_of(message)
    counts = {"train": train, "validation": 0, "test": "<5", "rejected": {}}
    said = {"protocol": PROTOCOL, "site": site, "version": __version__, "nonce": body["stamp"]["nonce"]}
    return record(said | counts)


def trained(message: Message, site: str, images: int = 8, **changes: Any) -> dict[str, Any]:
    """The body of what an honest site would answer to a training request, but for ``changes``."""
    body = asked_of(message)
    stage = body["config"]["curriculum"]["stage"][body["stage"]]
    steps = images // stage["batch_size"] * stage["local_epochs"]
    place = {"round": body["round"], "stage": body["stage"], "nonce": body["stamp"]["nonce"]}
    figures = {"images": images, "steps": steps, "loss": 1.0, "seconds": 0.1}
    return {"site": site, **place, **figures, **changes}


def weights_in(message: Message) -> np.ndarray:
    """The global weights beside a request."""
    array = message.content.array_records["weights"]["flat"]
    return np.frombuffer(array.data[len(array.data) - 4 * array.shape[0] :], dtype="<f4").copy()


def speak_as(node: Node, message: Message) -> None:
    """Be the node in whose name answers are made (`flwr.app.Message` asks the process)."""
    act_as(message.metadata.run_id, node.id)
