"""A Flower Grid over a SuperLink that may be restarted, and sites that may fall silent in the middle of an upload."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from aiseeme_models.errors import RunFailed
from federation_configs.bundle_file import bundle_bytes
from federation_configs.flower import inflate, objects_of
from federation_configs.quick_transport import hasten
from server.exchange import ConnectionLost, RunStopped
from server.flower_adapter import RUN_GONE, Link, OpenRun, spoilt
from server.replies import Spoilt

if TYPE_CHECKING:
    from flwr.supercore.run import Run

Answer = TypeVar("Answer")

_RETRY_S = 0.5
_CLAIM_S = 30.0
_UPLOAD_S = 240.0  # the SuperLink gives a site's upload 180 s
_SPARE_BYTES, _SPARE_OBJECTS, _LEAST_PER_OBJECT = 2**20, 64, 2**16


@dataclass
class _Reply:
    """A reply whose objects are being fetched, of at most ``most`` bytes."""

    head: Any
    lacking: list[str]
    most: int
    contents: dict[str, bytes] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)
    bytes: int = 0

    @property
    def is_too_large(self) -> bool:
        """Whether it has more bytes or objects than it may have."""
        objects = len(self.lacking) + len(self.contents)
        return self.bytes > self.most or objects > _SPARE_OBJECTS + self.most // _LEAST_PER_OBJECT

    @property
    def message_id(self) -> str:
        """The reply's own id."""
        return str(self.head.metadata.message_id)


class SuperLinkGrid(Grid):
    """Drives a run of the constant bundle on a SuperLink.

    While the SuperLink is away, calls wait for it up to ``outage_s`` seconds. When it has ended the Flower run in the
    meantime (no heartbeat for a minute), a new one is begun and `ConnectionLost` tells that what was asked is lost.

    Args:
        link: the SuperLink.
        outage_s: how long it may be away.
        stopped: whether the run was asked to stop; then the Flower run is ended, and its sites stop computing.
        on_begin: told the id of each Flower run that is begun.

    Raises:
        RunFailed: the SuperLink cannot be reached.
        RunStopped: in every call, once ``stopped`` says so.
    """

    def __init__(
        self,
        link: Link,
        *,
        outage_s: float = 600.0,
        stopped: Callable[[], bool] = lambda: False,
        on_begin: Callable[[int], object] = lambda run_id: None,
    ) -> None:
        self._link, self._outage_s, self._stopped, self._on_begin = link, outage_s, stopped, on_begin
        hasten()
        self._arriving: dict[str, _Reply] = {}
        self._room: dict[str, int] = {}
        self._read: list[str] = []
        self._run_id: int | None = None
        self._open = self._begin()

    def set_run(self, run: Run) -> None:
        """The grid begins its own run."""

    @property
    def run(self) -> Run:
        """The present Flower run."""
        return self._open.grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to one site."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that are online."""
        return self._persistently(lambda: list(self._open.grid.get_node_ids()))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages, one at a time: a push that fails half-way is repeated for one site, not for all.

        What had come of replies to earlier ones is let go: after their deadline nobody asks for them any more.
        """
        self._arriving.clear()
        self._room.clear()
        return [self._patiently(lambda one=one: self._push(one)) for one in messages]  # type: ignore[misc]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """The replies that are there whole; one that is still being uploaded is not waited for.

        A site sends back about as much as it was sent. A reply of more than twice that is not fetched: it is given as
        an error of `Spoilt`, and so is one whose objects do not make a message.

        Raises:
            ConnectionLost: the Flower run has ended: no reply will come any more.
        """
        self._look_for_stop()
        wanted = list(message_ids)
        self._unless_gone(lambda: self._look_for_replies([one for one in wanted if one not in self._arriving]))
        if self._read and not self._arriving:
            self._confirm_read()
        for message_id in wanted:
            if message_id in self._arriving:
                message = self._unless_gone(lambda one=message_id: self._take(one))  # type: ignore[misc]
                if message is not None:
                    yield message
                del message  # one reply is in memory at a time
        if self._open.refused:
            self._begin_anew()

    def _unless_gone(self, call: Callable[[], Answer]) -> Answer | None:
        """Ask once; where that fails it is asked again at the next pull, until the deadline."""
        try:
            return call()
        except httpx.HTTPStatusError as error:
            if error.response.status_code in RUN_GONE:
                self._begin_anew()
        except httpx.HTTPError:
            pass  # the heart notices when the run is gone
        return None

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Not used: `server.exchange.ask` asks the sites, until a deadline."""
        raise NotImplementedError("server.exchange.ask asks the sites")

    def close(self, *, completed: bool, details: str = "") -> None:
        """End the Flower run, and leave nothing of what travelled in it at the SuperLink."""
        self._open.finish(completed=completed, details=details)
        with contextlib.suppress(httpx.HTTPError):  # a SuperLink that is away does it when the next run ends
            self._link.forget_ended_runs()

    def registered(self) -> dict[bytes, int]:
        """The registered nodes' ids by public key (PEM)."""
        return self._persistently(self._link.nodes)

    def _push(self, message: Message) -> str:
        (message_id,) = self._open.grid.push_messages([message])
        if message_id:
            arrays = (array for record in message.content.array_records.values() for array in record.values())
            self._room[message_id] = 2 * sum(len(array.data) for array in arrays) + _SPARE_BYTES
        return message_id or ""

    def _look_for_replies(self, message_ids: list[str]) -> None:
        """Ask once for all: each question costs the SuperLink as much as a small piece of weights."""
        if not message_ids:
            return
        for head, tree in self._open.pull(message_ids):
            asked = str(head.metadata.reply_to_message_id)
            if asked in message_ids:
                self._arriving[asked] = _Reply(head, objects_of(tree), self._room.get(asked, _SPARE_BYTES))

    def _confirm_read(self) -> None:
        """Let the SuperLink delete one reply that was read: it is slow at that, and does it while sites train."""
        with contextlib.suppress(httpx.HTTPError):  # what the SuperLink keeps of it goes with the run
            self._open.confirm(self._read.pop())

    def _take(self, message_id: str) -> Message | None:
        """The reply, once all of it has arrived."""
        reply = self._arriving[message_id]
        if not self._fetch(reply):
            if time.monotonic() - reply.since > _UPLOAD_S:
                del self._arriving[message_id]
                raise httpx.ReadTimeout("a reply's upload was not finished")
            return None
        if reply.is_too_large:
            return self._spoilt(message_id, reply, Spoilt.TOO_LARGE)
        try:
            message = inflate(reply.message_id, reply.contents, reply.most)
        except ValueError:
            return self._spoilt(message_id, reply, Spoilt.NO_MESSAGE)
        if message.metadata.reply_to_message_id != message_id:
            return self._spoilt(message_id, reply, Spoilt.NO_MESSAGE)
        self._let_go(message_id, reply)
        return message

    def _spoilt(self, message_id: str, reply: _Reply, code: Spoilt) -> Message:
        self._let_go(message_id, reply)
        return spoilt(reply.head, code)

    def _let_go(self, message_id: str, reply: _Reply) -> None:
        del self._arriving[message_id]
        self._read.append(reply.message_id)

    def _fetch(self, reply: _Reply) -> bool:
        """Fetch what has arrived of a reply; whether that is whole, or more than it may be."""
        from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError

        pull = self._open.object_puller()
        for object_id in list(reply.lacking):
            if reply.is_too_large:
                return True
            try:
                content = reply.contents[object_id] = pull(object_id)
            except (ObjectUnavailableError, ObjectPullError):
                # A lost upload is found out by the time it takes; the round's deadline bounds that too.
                return False
            reply.lacking.remove(object_id)
            reply.bytes += len(content)
        return True

    def _persistently(self, call: Callable[[], Answer]) -> Answer:
        """Ask what does not belong to a Flower run; where that has ended, the next one is asked.

        Raises:
            RunFailed: the SuperLink stayed away.
        """
        while True:
            try:
                return self._patiently(call)
            except ConnectionLost:
                continue

    def _patiently(self, call: Callable[[], Answer]) -> Answer:
        """Call the SuperLink; wait for it while it is away.

        Raises:
            ConnectionLost: it has ended the Flower run; another one has begun.
            RunFailed: it stayed away.
        """
        since = time.monotonic()
        while True:
            self._look_for_stop()
            try:
                return call()
            except httpx.HTTPStatusError as error:
                if error.response.status_code in RUN_GONE:
                    self._begin_anew()
                if error.response.status_code < 500:
                    raise
            except httpx.TransportError as error:
                self._wait(since, error)
            else:
                continue
            self._wait(since, None)

    def _wait(self, since: float, error: Exception | None) -> None:
        if time.monotonic() - since > self._outage_s:
            raise RunFailed(
                f"the SuperLink at {self._link.address} did not answer for {self._outage_s:.0f} s"
            ) from error
        self._look_for_stop()
        time.sleep(_RETRY_S)

    def _look_for_stop(self) -> None:
        if self._stopped():
            if self._run_id is not None:
                with contextlib.suppress(httpx.HTTPError):  # a SuperLink that is away ends it by itself, a minute later
                    self._link.stop_run(self._run_id)
            raise RunStopped("stopped by the coordinator")

    def _begin_anew(self) -> None:
        self._look_for_stop()
        self._open.close_heart()
        self._open.grid.close()
        self._arriving.clear()
        self._room.clear()
        self._read.clear()
        self._open = self._begin()
        raise ConnectionLost("the SuperLink had ended the run; it goes on in a new one")

    def _begin(self) -> OpenRun:
        """Start a Flower run, claim its ServerApp task, and open it."""
        since = time.monotonic()
        run_id: int | None = None
        while True:
            try:
                if run_id is None:
                    self._run_id = run_id = self._link.start_run(bundle_bytes())
                    self._on_begin(run_id)
                return self._link.open(self._claim(run_id))
            except httpx.HTTPStatusError as error:
                if error.response.status_code < 500:
                    raise RunFailed(f"the SuperLink refused the run: HTTP {error.response.status_code}") from error
                self._wait(since, error)
            except httpx.TransportError as error:
                run_id = None  # a token may have been lost on its way: another run has another one
                self._wait(since, error)

    def _claim(self, run_id: int) -> str:
        """The token of our own run's task; tasks of runs that others left behind are taken and let lapse."""
        until = time.monotonic() + _CLAIM_S
        while time.monotonic() < until:
            claimed = self._link.acquire()
            if claimed is not None and claimed[0] == run_id:
                return claimed[1]
            if claimed is None:
                time.sleep(0.1)
        raise RunFailed(f"the SuperLink did not hand out the task of run {run_id}")
