"""An answer is one to the very request that was asked: no other site, and no old reply, can stand for it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from aiseeme_models.errors import RunFailed
from federation_configs import records
from federation_configs.records import pack
from federation_configs.site_errors import SiteError, error_reason
from tests.conftest import tiny_config
from tests.federation.gated_site import TYPES, Asked, gated, played_signed, with_body


def nonce_in(message: Message) -> str:
    return json.loads(message.content["body"]["json"])["stamp"]["nonce"]


@pytest.mark.parametrize("kind", TYPES)
def test_every_answer_repeats_the_nonce_of_its_request(kind: str, asked: Asked) -> None:
    content = asked.signed(kind)
    nonce = json.loads(content["body"]["json"])["stamp"]["nonce"]
    reply = asked.answer(kind, content)
    assert json.loads(reply.content["body"]["json"])["nonce"] == nonce
    refused = asked.answer(kind, content)
    assert refused.error.reason == f"{SiteError.REPLAYED.sentence} ({nonce})"
    plain = asked.answer(kind, pack(asked.request(kind), asked.beside(kind)))
    assert plain.error.reason == SiteError.NOT_SIGNED.sentence


def test_a_request_of_another_version_is_refused_by_its_nonce_too(asked: Asked) -> None:
    content = asked.signed("describe")
    body = json.loads(content["body"]["json"])
    changed = with_body(content, json=json.dumps(body | {"protocol": 99, "novelty": 1}))
    reply = asked.answer("describe", changed)
    assert reply.error.reason == f"{SiteError.BAD_REQUEST.sentence} ({body['stamp']['nonce']})"


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"body": ArrayRecord({"flat": Array(np.zeros(3, np.float32))})}),
        RecordDict({"body": ConfigRecord({"json": 3})}),
        RecordDict({"body": ConfigRecord({"other": "x"})}),
        *(
            RecordDict({"body": ConfigRecord({"json": text})})
            for text in (
                "",
                "[" * 100_000,
                "[1]",
                '{"stamp": null}',
                '{"stamp": "x"}',
                '{"stamp": {"nonce": 3}}',
                '{"stamp": {"nonce": "MUSTERMANN^ERIKA"}}',
                '{"stamp": {"nonce": "' + "0" * 32 + '\\n"}}',
                '{"stamp": {"nonce": "' + "0" * 32 + '"}}' + " " * records.MAX_BODY,
            )
        ),
    ],
)
def test_nothing_but_a_nonce_is_repeated(content: RecordDict, asked: Asked) -> None:
    assert asked.answer("describe", content).error.reason == SiteError.BAD_REQUEST.sentence


@pytest.mark.parametrize("whose", ["none", "invented", "another site's", "the description's"])
@pytest.mark.parametrize("kind", ["answer", "error", "error without words"])
def test_an_answer_to_another_request_does_not_count(whose: str, kind: str, federation) -> None:
    seen: dict[str, str] = {}

    def note(message: Message, reply: Message) -> Message:
        seen["another site's"] = nonce_in(message)
        return reply

    def forge(message: Message, reply: Message) -> Message:
        if message.metadata.message_type != "train":
            seen["the description's"] = nonce_in(message)
            return reply
        nonce = {"none": None, "invented": "0" * 32, **seen}[whose]
        if kind != "answer":
            reason = error_reason(SiteError.STOPPED, nonce) if kind == "error" else None
            return Message(Error(int(SiteError.STOPPED), reason), reply_to=message)
        body = json.loads(reply.content["body"]["json"]) | {"nonce": nonce}
        return Message(with_body(reply.content, json=json.dumps(body)), reply_to=message)

    state, _ = played_signed(gated(federation(alter={"alpha": note, "beta": forge})))
    assert {missed.code for missed in state.sites["beta"].missed} == {"wrong-question"}
    assert state.sites["beta"].answered == 0 and state.sites["alpha"].answered == 4


def test_an_old_answer_to_the_same_question_does_not_count(federation) -> None:
    """Kept back when the round was asked first, and given when it is asked again."""
    kept: list[RecordDict] = []

    def late(message: Message, reply: Message) -> Message:
        if message.metadata.message_type != "train":
            return reply
        kept.append(reply.content)
        return Message(kept[0], reply_to=message) if len(kept) > 1 else Message(Error(3, ""), reply_to=message)

    config = tiny_config(federation={"min_sites": 3, "round_retries": 1})
    with pytest.raises(RunFailed, match="beta: the reply is none to this request"):
        played_signed(gated(federation(config, alter={"beta": late})))


def test_a_description_for_another_request_does_not_count(federation) -> None:
    def forge(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "train":
            return reply
        body = json.loads(reply.content["body"]["json"]) | {"nonce": "0" * 32}
        return Message(with_body(reply.content, json=json.dumps(body)), reply_to=message)

    state, _ = played_signed(gated(federation(alter={"beta": forge})))
    assert {missed.code for missed in state.sites["beta"].missed} == {"wrong-question"}
    assert state.sites["beta"].images == 0
