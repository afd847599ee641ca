"""A Flower Grid in this process: the same messages, the same ClientApp, no Ray, no sockets."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from server.flower_adapter import act_as, name_message

if TYPE_CHECKING:
    from flwr.supercore.run import Run

MESSAGE_EXPIRED = 3  # the code that a SuperLink answers with
COORDINATOR = 1


class LocalGrid(Grid):
    """Plays a message when its reply is pulled, one site after the other.

    Sites of a real federation work at the same time, so the grid's clock counts the longest of a push's messages, not
    their sum: a deadline means the same here and there.
    """

    def __init__(self, client_app: ClientApp, sites: int) -> None:
        self._app = client_app
        self._contexts = {
            COORDINATOR + 1 + index: Context(
                run_id=1,
                node_id=COORDINATOR + 1 + index,
                node_config={"partition-id": index, "num-partitions": sites},
                state=RecordDict(),
                run_config={},
            )
            for index in range(sites)
        }
        self._waiting: dict[str, Message] = {}
        self._sent = 0
        self._now = 0.0
        self._pushed_at = 0.0
        act_as(run_id=1, node_id=COORDINATOR)

    def clock(self) -> float:
        """Seconds that a federation of parallel sites would have taken so far."""
        return self._now

    def set_run(self, run: Run) -> None:
        """Has no meaning here: a local grid plays one run."""

    @property
    def run(self) -> Run:
        """A local grid has no SuperLink run."""
        raise NotImplementedError("a local grid has no SuperLink run")

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to one site."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The sites' node ids."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; nothing runs yet."""
        ids = []
        self._pushed_at = self._now
        for message in messages:
            self._sent += 1
            message_id = f"local-{self._sent}"
            name_message(message, message_id)
            self._waiting[message_id] = message
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Play the named messages, one when the reply to the one before was taken."""
        for name in message_ids:
            if name in self._waiting:
                yield self._play(self._waiting.pop(name))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push and pull at once."""
        return self.pull_messages(self.push_messages(messages))

    def _play(self, message: Message) -> Message:
        started = time.monotonic()
        reply: Message
        try:
            reply = self._app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:  # as a SuperNode does: an app that raises is answered for
            reply = Message(Error(2, str(error)), reply_to=message)
        took = time.monotonic() - started
        self._now = max(self._now, self._pushed_at + took)
        if took > message.metadata.ttl:
            reply = Message(Error(MESSAGE_EXPIRED, "expired"), reply_to=message)
        return reply
