"""Every use of what Flower 1.41 does not document, on the coordinator's side. Each hook has a contract test."""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.supercore.task_identity import TaskIdentity

FLWR_VERSION = "1.41.0"


def act_as(run_id: int, node_id: int) -> None:
    """Set who this process is: `flwr.app.Message` refuses to be made without (`TaskIdentity`, private)."""
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = node_id


def name_message(message: Message, message_id: str) -> None:
    """Give a message its id, as a SuperLink does (`Metadata` has no public way)."""
    message.metadata.__dict__["_message_id"] = message_id


def site_index(context: Context) -> int:
    """Which of a simulation's sites a context belongs to (``partition-id`` in Flower's simulation engine and ours)."""
    return int(context.node_config["partition-id"])
