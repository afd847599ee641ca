"""Flower's SuperLink, made quicker where that changes nothing of what it answers. ``python -m server.superlink ...``.

Everything here is private to Flower 1.41 and has a contract test.
"""

from __future__ import annotations

import gc
import importlib
import time
from collections.abc import Callable
from typing import Any

from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.runtime_pb2 import PushAppMessagesRequest
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from federation_configs.doorbell import Doorbell
from federation_configs.light_layers import lighten
from federation_configs.whole_bodies import WholeBodies
from server.object_files import FileObjectStore, stored_in_turn

HOLD_S = 3.0
_CLEANUP_EVERY_S = 1.0


def hasten() -> None:
    """Put the changes in place; call this before Flower's ``flower_superlink``."""
    lighten()
    app = importlib.import_module("flwr.superlink.main")
    state = importlib.import_module("flwr.server.superlink.linkstate.sql_linkstate").SqlLinkState
    create = app.create_app
    app.create_app = lambda *arguments: _quick(create(*arguments))  # type: ignore[attr-defined]
    # The gateway's log counts the bytes of each request; a write of the database per request for a sum is not needed.
    state.store_traffic = lambda *_arguments, **_named: None
    state._cleanup_expired_task_tokens = _seldom(state._cleanup_expired_task_tokens)
    factory = importlib.import_module("flwr.supercore.object_store.object_store_factory")
    factory.SqlObjectStore = FileObjectStore  # type: ignore[attr-defined]
    state.store_object = stored_in_turn(state.store_object)


def _quick(app: Any) -> Any:
    return WholeBodies(
        Doorbell(app, {"/v1/fleet/pull-messages": _node}, {"/v1/runtime/push-messages": _addressees}, HOLD_S)
    )


def _node(body: bytes) -> int:
    try:
        return int(PullMessagesRequest.FromString(body).node.node_id)
    except DecodeError:
        return -1  # which is refused; nobody rings for it


def _addressees(body: bytes) -> list[int]:
    try:
        return [int(message.metadata.dst_node_id) for message in PushAppMessagesRequest.FromString(body).messages_list]
    except DecodeError:
        return []


def _seldom(clean: Callable[[Any], None]) -> Callable[[Any], None]:
    """Looks for expired claims of tasks at most once a second: Flower does so, with two writes, at every request."""
    last = -_CLEANUP_EVERY_S

    def cleaned(state: Any) -> None:
        nonlocal last
        if time.monotonic() - last >= _CLEANUP_EVERY_S:
            clean(state)
            last = time.monotonic()

    return cleaned


def main() -> None:
    """Run the SuperLink; the arguments are those of ``flower-superlink``."""
    hasten()
    command = importlib.import_module("flwr.superlink.cli.flower_superlink")
    gc.collect()
    gc.freeze()  # what was imported stays; a collection need not look through it
    command.flower_superlink()


if __name__ == "__main__":
    main()
