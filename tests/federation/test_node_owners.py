"""Which node is which site: a node is what its registered key says, whatever it says itself."""

from __future__ import annotations

import json
from typing import Any

from flwr.app import Message

from server.observer import Silent
from server.replies import Refused
from server.request_signing import RequestSigner
from server.run_state import RunState
from tests.conftest import InProcess, tiny_config
from tests.federation.gated_site import FEDERATION, KEY, gated, with_body

REGISTERED = {2: "alpha", 3: "beta", 4: "gamma"}  # `LocalGrid` numbers its nodes from 2


class Listener(Silent):
    def __init__(self) -> None:
        self.absent: list[dict[str, Refused]] = []

    def sites_described(self, state: RunState, refused: dict[str, Refused]) -> None:
        self.absent.append(refused)


def claims(name: str) -> Any:
    """A site that describes itself under another's name, and answers in it."""

    def alter(asked: Message, reply: Message) -> Message:
        if reply.has_error() or asked.metadata.message_type != "query.describe":
            return reply
        body = json.loads(reply.content["body"]["json"]) | {"site": name}
        return Message(with_body(reply.content, json=json.dumps(body)), reply_to=asked)

    return alter


def played(made: InProcess, owners: Any, **fields: Any) -> tuple[RunState, Listener]:
    listener = Listener()
    loop = made.loop(listener)
    loop.owners = owners
    for name, value in fields.items():
        setattr(loop, name, value)
    return loop.play()[0], listener


def test_a_site_that_poses_as_another_is_refused_and_the_other_takes_part(federation) -> None:
    made = federation(alter={"alpha": claims("beta")})
    state, listener = played(made, lambda: REGISTERED)
    assert set(listener.absent[0]) == {"alpha"}
    assert "another site than the one whose key its node has" in listener.absent[0]["alpha"].sentence
    assert state.sites["alpha"].answered == 0
    assert state.sites["beta"].answered == state.sites["gamma"].answered == 4
    assert state.sites["beta"].images != 0


def test_a_site_is_asked_in_its_own_name_so_that_no_other_can_be_made_to_answer(federation) -> None:
    asked: dict[str, str | None] = {}

    def listen(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "query.describe":
            asked[str(message.metadata.dst_node_id)] = json.loads(message.content["body"]["json"])["stamp"]["site"]
        return reply

    made = gated(federation(alter=dict.fromkeys(("alpha", "beta", "gamma"), listen)))
    state, _ = played(made, lambda: REGISTERED, signer=RequestSigner(KEY, FEDERATION))
    assert asked == {"2": "alpha", "3": "beta", "4": "gamma"}
    assert {site.answered for site in state.sites.values()} == {4}


def test_nodes_of_nobody_and_of_sites_that_are_not_invited_are_not_asked(federation) -> None:
    asked: set[int] = set()

    def listen(message: Message, reply: Message) -> Message:
        asked.add(message.metadata.dst_node_id)
        return reply

    made = federation(alter=dict.fromkeys(("alpha", "beta", "gamma"), listen))
    _, listener = played(made, lambda: {2: "alpha", 3: "beta"})
    assert asked == {2, 3}
    assert listener.absent[0]["gamma"].sentence == "it is not connected"
    made = federation(alter=dict.fromkeys(("alpha", "beta", "gamma"), listen), where="two")
    asked.clear()
    played(made, lambda: {2: "alpha", 3: "beta", 4: "someone-else"})
    assert asked == {2, 3}


def test_a_site_whose_key_was_rotated_goes_on_with_its_new_node(federation) -> None:
    owners = dict(REGISTERED)

    def rotate(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "train" and message.metadata.group_id == "1":
            owners.pop(4, None)
            owners.pop(3, None)
            owners.update({3: "gamma", 4: "beta"})  # their nodes have changed places
        return reply

    made = federation(tiny_config(federation={"min_sites": 1}), alter={"alpha": rotate})
    honest = [*made.sites]

    def owners_now() -> dict[int, str]:
        if owners[3] == "gamma":
            made.sites[1], made.sites[2] = honest[2], honest[1]
        return owners

    state, listener = played(made, owners_now)
    assert {name: site.answered for name, site in state.sites.items()} == {"alpha": 4, "beta": 4, "gamma": 4}
    assert all(not absent for absent in listener.absent)
