"""Questions to sites and their answers, as they come, until a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from flwr.app import Message, RecordDict

from aiseeme_models.errors import RunFailed

if TYPE_CHECKING:
    from flwr.serverapp import Grid

_POLL_S = 0.05
_SLOWEST_POLL_S = 0.25


class ConnectionLost(Exception):
    """What was asked is lost: no answer to it will come."""


class RunStopped(RunFailed):
    """Somebody asked for the run to stop."""


def ask(
    grid: Grid,
    contents: Mapping[int, RecordDict],
    message_type: str,
    *,
    group: str,
    deadline_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[tuple[int, Message | None]]:
    """Send one record to each node and give each answer as it arrives, then None for each node that did not answer.

    The messages live no longer than the deadline, so that a late site does not work for nothing. The grid's pulls give
    one reply after the other, so that one is in memory at a time. A node's error answers may carry the SuperLink's id,
    so the node is known by the message that was sent to it.

    Args:
        contents: what to send, by node id.
        message_type: Flower's message type, e.g. ``"train"``.
        group: Flower's group id, here the round.
        deadline_s: seconds after which a node has not answered.
        clock: seconds; a simulation's own where sites play one after the other.
    """
    nodes = list(contents)
    waiting: dict[str, int] = {}
    pushed_at = clock()
    pause = _POLL_S
    try:
        ids = grid.push_messages(
            Message(contents[node], node, message_type, ttl=deadline_s, group_id=group) for node in nodes
        )
        waiting = {message_id: node for message_id, node in zip(ids, nodes, strict=True) if message_id}
        while waiting and clock() - pushed_at <= deadline_s:
            answered = False
            for message in grid.pull_messages(list(waiting)):
                answered = True
                node = waiting.pop(message.metadata.reply_to_message_id)
                nodes.remove(node)
                yield node, message
            if waiting and not answered:
                time.sleep(pause)
                pause = min(pause * 1.5, _SLOWEST_POLL_S)
            elif answered:
                pause = _POLL_S
    except ConnectionLost:
        pass  # those who have not answered cannot any more
    for node in nodes:
        yield node, None
