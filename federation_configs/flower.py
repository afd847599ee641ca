"""What both parties' uses of Flower 1.41 have in common: its version, a silent environment, messages."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flwr.app import Message

FLWR_VERSION = "1.41.0"

# Pieces of weights of 5 MiB come and go: without these, glibc asks the kernel for fresh pages for each.
_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(64 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(512 * 2**20),
    "MALLOC_TOP_PAD_": str(16 * 2**20),
}
_LOOPBACK = ("127.0.0.1", "localhost")


def check_version() -> None:
    """Refuse to run on another flwr than the one whose internals were verified.

    Raises:
        RuntimeError: another version is installed.
    """
    import flwr

    if flwr.__version__ != FLWR_VERSION:
        raise RuntimeError(
            f"flwr {flwr.__version__} is installed; this version of AISEEME needs exactly {FLWR_VERSION}"
        )


def quiet_environment(flower_home: Path, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment in which Flower neither phones home nor installs anything, and loopback passes no proxy.

    A proxy that is meant for the internet would also catch Flower's own calls between processes of one machine.

    Args:
        flower_home: where Flower may keep its files.
        base: the environment that is changed; the process's own by default.
    """
    environment = dict(os.environ if base is None else base)
    exempt = [name.strip() for name in environment.get("NO_PROXY", environment.get("no_proxy", "")).split(",")]
    exempt = [name for name in exempt if name] + [name for name in _LOOPBACK if name not in exempt]
    return environment | {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_HOME": str(flower_home),
        "UV_OFFLINE": "1",
        "NO_PROXY": ",".join(exempt),
        "no_proxy": ",".join(exempt),
        "PYTHONUNBUFFERED": "1",
        **_MEMORY,
        "OMP_WAIT_POLICY": environment.get("OMP_WAIT_POLICY", "PASSIVE"),
    }


def objects_of(tree: Any) -> list[str]:
    """The ids of all objects of a message's tree, each once."""
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

    return list(dict.fromkeys(node.object_id for node in iterate_object_tree(tree)))


def inflate(message_id: str, contents: dict[str, bytes], most_bytes: int) -> Message:
    """A message from its objects (`flwr.supercore.inflatable`, private), which another party has made.

    Args:
        message_id: id of the object that is the message.
        contents: all objects by id; they are used up.
        most_bytes: how large its arrays may be together. An array says which pieces it is made of, and may name one
            piece a million times.

    Raises:
        ValueError: they do not make a message with a content or an error, or a larger one.
    """
    from flwr.app import Message
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    try:
        if sum(_inflated(content, contents) for content in contents.values()) > most_bytes:
            raise ValueError("its arrays are too large")
        message = inflate_object_from_contents(message_id, contents)
    except Exception as error:  # whatever Flower raises for objects of any kind in any order
        raise ValueError(f"the objects of a message cannot be read: {type(error).__name__}") from error
    if not isinstance(message, Message) or message.has_content() == message.has_error():
        raise ValueError("the objects do not make a message")
    message.metadata.__dict__["_message_id"] = message_id
    return message


def _inflated(content: bytes, contents: Mapping[str, bytes]) -> int:
    """How many bytes an object becomes: an array as many as the pieces that it names, each as often as it is named."""
    from flwr.app import Array
    from flwr.supercore.inflatable.inflatable_object import (
        get_object_body,
        get_object_head_values_from_object_content,
    )

    kind, pieces, _ = get_object_head_values_from_object_content(content)
    if kind != Array.__qualname__:
        return 0
    named = json.loads(get_object_body(content, Array))["arraychunk_ids"]
    return sum(len(contents[pieces[index]]) for index in named)
