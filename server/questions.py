"""One question to many sites: signed for each, with one array beside it, and the answers as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from federation_configs.records import Enclosure, nonce_of
from federation_configs.wire import RoundRequest, WeightedRequest
from server.exchange import ask
from server.replies import NO_ANSWER, Refused
from server.request_signing import RequestSigner, pack_for_sites

if TYPE_CHECKING:
    from flwr.app import Message, RecordDict
    from flwr.serverapp import Grid

_TYPES = {
    "teach": "query.teach",
    "train": "train",
    "evaluate": "evaluate",
    "score": "query.score",
    "assess": "query.assess",
    "range": "query.range",
    "fit": "query.fit",
    "analyse": "query.analyse",
    "audit": "query.audit",
}
Reply = TypeVar("Reply")


@dataclass(frozen=True)
class Answer:
    """What came of a question to one node.

    Attributes:
        node: the node's id.
        site: its site.
        message: the answer; None where none came before the deadline.
        nonce: what the answer must repeat; None where requests are not signed.
    """

    node: int
    site: str
    message: Message | None
    nonce: str | None


@dataclass(frozen=True)
class Questions:
    """How a run asks its sites.

    Attributes:
        grid: Flower's.
        signer: signs every request; None in a simulation.
        deadline_s: seconds after which a site has not answered.
        clock: seconds.
    """

    grid: Grid
    signer: RequestSigner | None
    deadline_s: float
    clock: Callable[[], float] = time.monotonic

    def ask(self, kind: str, asked: WeightedRequest, nodes: Mapping[int, str], beside: Enclosure) -> Iterator[Answer]:
        """Ask the ``nodes``, which are given with their sites' names, and give every node's answer or its silence."""
        return self.ask_each(kind, [(asked, nodes, beside)])

    def ask_each(
        self, kind: str, questions: Sequence[tuple[WeightedRequest, Mapping[int, str], Enclosure]]
    ) -> Iterator[Answer]:
        """Ask different things at the same time, no node more than one."""
        contents: dict[int, RecordDict] = {}
        names: dict[int, str] = {}
        for asked, nodes, beside in questions:
            contents |= pack_for_sites(self.signer, kind, asked, nodes, beside, valid_s=self.deadline_s)
            names |= nodes
        groups = {str(asked.round) if isinstance(asked, RoundRequest) else kind for asked, _, _ in questions}
        answers = ask(
            self.grid,
            contents,
            _TYPES[kind],
            group=min(groups, default=kind),
            deadline_s=self.deadline_s,
            clock=self.clock,
        )
        for node, message in answers:
            yield Answer(node, names[node], message, nonce_of(contents[node]))

    def valid(
        self,
        kind: str,
        asked: WeightedRequest,
        nodes: Mapping[int, str],
        beside: Enclosure,
        check: Callable[[Message, str, str | None], Reply | Refused],
        refused: Callable[[str, Refused], None],
    ) -> Iterator[tuple[str, Reply]]:
        """Ask, and give the site and reply of each answer that holds.

        Args:
            kind, asked, nodes, beside: see `ask`.
            check: opens a message of a site, which must repeat a nonce.
            refused: called with a site without a valid reply, and why.
        """
        for answer in self.ask(kind, asked, nodes, beside):
            reply: Reply | Refused = NO_ANSWER
            if answer.message is not None:
                reply = check(answer.message, answer.site, answer.nonce)
            if isinstance(reply, Refused):
                refused(answer.site, reply)
            else:
                yield answer.site, reply
