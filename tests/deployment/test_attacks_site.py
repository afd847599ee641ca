"""A hospital that lies: a member of the federation, with its own key and certificate, that answers as it likes."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from flwr.app import Array, Error, Message, RecordDict
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.node_pb2 import Node as NodeProto

from federation_configs.site_errors import SiteError
from scripts.loopback import Loopback, until
from tests.deployment.attackers import (
    Node,
    asked_of,
    bomb,
    description,
    no_message,
    node_of,
    record,
    speak_as,
    trained,
    weights_in,
)
from tests.deployment.faults import Run
from tests.deployment.hospitals import loopback, needs_nginx, one_stage

pytestmark = [pytest.mark.deployment, needs_nginx, pytest.mark.timeout(900)]

LIAR = "gamma"


def config(*, rounds: int, deadline: int) -> str:
    """Rounds that are asked once."""
    options = {"min_sites": 2, "round_deadline_s": deadline, "round_retries": 0, "rejoin_s": 60}
    return one_stage("with-a-liar", rounds=rounds, **options)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    """Two honest hospitals run; the third has joined, and its node is ours."""
    with loopback(tmp_path_factory.mktemp("liar"), config(rounds=1, deadline=60)) as made:
        made.server.start()
        honest = [one for one in made.hospitals.values() if one.name != LIAR]
        for hospital in honest:
            hospital.service.start()
        for hospital in honest:
            made.wait_connected(hospital)
        yield made


@dataclass
class Liar:
    """Answers for the third hospital in a thread, until it is told to stop."""

    federation: Loopback
    node: Node
    describe: Callable[[Message], RecordDict]
    train: Callable[[Node, Message], None]
    asked: list[Message] = field(default_factory=list)
    failed: list[BaseException] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Liar:
        self.node.__enter__()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)
        self.node.__exit__()
        assert not self.failed, self.failed

    def _work(self) -> None:
        while not self._over.is_set():
            try:
                if (message := self.node.pull()) is None:
                    time.sleep(0.1)
                    continue
                self.asked.append(message)
                speak_as(self.node, message)
                if message.metadata.message_type == "query.describe":
                    self.node.reply(Message(self.describe(message), reply_to=message))
                elif message.metadata.message_type == "train":
                    self.train(self.node, message)
                else:
                    self.node.reply(Message(Error(int(SiteError.NO_IMAGES), "no"), reply_to=message))
            except httpx.HTTPStatusError as error:
                if error.response.status_code not in (401, 403, 404, 503):  # the run has ended meanwhile
                    self.failed.append(error)
            except BaseException as error:
                self.failed.append(error)
                return


def play(federation: Loopback, rounds: int, deadline: int = 60) -> Run:
    federation.config_file.write_text(config(rounds=rounds, deadline=deadline))
    return Run(federation, federation.launch())


def ended(run: Run) -> Run:
    row = run.wait_for_end(600)
    assert row.status == "done", f"{row.status}: {row.reason}\n{run.all_logs()}"
    assert "Traceback" not in run.says, run.says
    return run


def answer(make: Callable[[Message], dict[str, Any]], weights: Callable[[Message], Any] = weights_in) -> Any:
    return lambda node, message: node.reply(Message(record(make(message), weights(message)), reply_to=message))


class Marker:
    """What a pickle that somebody loads leaves behind."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self._path, "was here"))


def pickled(marker: Path) -> Callable[[Message], Array]:
    """An array as NumPy saves one of objects: a pickle."""

    def make(message: Message) -> Array:
        import io

        saved = io.BytesIO()
        np.save(saved, np.array([Marker(marker)], dtype=object), allow_pickle=True)
        assert pickle.dumps(Marker(marker))[:2] in saved.getvalue()
        return Array("float32", (weights_in(message).size,), "numpy.ndarray", saved.getvalue())

    return make


def with_nan(message: Message) -> np.ndarray:
    weights = weights_in(message)
    weights[len(weights) // 2] = np.nan
    return weights


def huge(message: Message) -> np.ndarray:
    return np.random.default_rng(1).random(12 * 2**20, np.float32)  # 48 MiB, where the model has 11


def ok(message: Message) -> dict[str, Any]:
    return trained(message, LIAR)


OLD: dict[str, RecordDict] = {}


def again(message: Message) -> RecordDict:
    """What was answered to the first round."""
    return OLD["first"]


def lies(marker: Path) -> list[tuple[str, str | None, Any]]:
    """What the liar answers round by round, and why it does not count then; None where it does."""
    return [
        ("an honest answer", None, lambda node, message: keep(node, message)),
        ("weights that are not numbers", "not-finite", answer(ok, with_nan)),
        ("too few weights", "malformed-reply", answer(ok, lambda message: weights_in(message)[:-1])),
        ("another type", "malformed-reply", answer(ok, lambda message: weights_in(message).astype(np.float64))),
        ("no weights", "malformed-reply", answer(ok, lambda _: None)),
        ("a pickle", "malformed-reply", answer(ok, pickled(marker))),
        ("a huge array", "malformed-reply", answer(ok, huge)),
        (
            "one piece 200 times",
            "malformed-reply",
            lambda node, message: send(node, message, partial(bomb, pieces=200)),
        ),
        ("no message", "malformed-reply", lambda node, message: send(node, message, no_message)),
        ("another nonce", "wrong-question", answer(lambda message: trained(message, LIAR, nonce="0" * 32))),
        ("no nonce", "wrong-question", answer(lambda message: trained(message, LIAR, nonce=None))),
        ("for another round", "wrong-question", answer(lambda message: trained(message, LIAR, round=1))),
        ("for another site", "wrong-question", answer(lambda message: trained(message, "alpha"))),
        ("the first answer again", "wrong-question", lambda node, m: node.reply(Message(again(m), reply_to=m))),
        ("a path for a name", "malformed-reply", answer(lambda message: trained(message, "../../evil"))),
        ("ten times its images", "impossible-count", answer(lambda message: trained(message, LIAR, images=80))),
        ("a field more", "malformed-reply", answer(lambda message: {**ok(message), "patient": "Anna"})),
        ("an error with words of its own", "wrong-question", lambda node, m: node.reply(shouting(m))),
        ("an error of no site", "foreign-error", lambda node, m: node.reply(Message(Error(77, "\x1b[2J"), reply_to=m))),
        ("weights beyond all bounds", "out-of-range", answer(ok, lambda m: weights_in(m) * 0 + np.float32(1e30))),
    ]


def keep(node: Node, message: Message) -> None:
    OLD["first"] = record(ok(message), weights_in(message))
    node.reply(Message(OLD["first"], reply_to=message))


def send(node: Node, message: Message, make: Any) -> None:
    node.send_objects(Message(record(ok(message), weights_in(message)), reply_to=message), make)


def shouting(message: Message) -> Message:
    return Message(Error(int(SiteError.INTERNAL), "patient Anna Muster, born 1970"), reply_to=message)


def test_lies_do_not_count_and_are_named_and_the_others_go_on(federation: Loopback, tmp_path: Path) -> None:
    told, marker = lies(tmp_path / "marker"), tmp_path / "marker"

    def train(node: Node, message: Message) -> None:
        told[asked_of(message)["round"] - 1][2](node, message)

    hospital = federation.hospitals[LIAR]
    run = play(federation, rounds=len(told))
    with Liar(federation, Node(hospital), lambda message: description(message, LIAR), train):
        coordinator = federation.server.part("server.coordinator")
        peak = 0
        while run.row.status in ("queued", "running"):
            try:
                peak = max(peak, coordinator.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.2)
        ended(run)
    found = {line["round"]: line.get("missed") for line in run.metrics() if line.get("site") == LIAR}
    expected = {number: why for number, (_, why, _) in enumerate(told, 1)}
    assert found == expected, "\n".join(
        f"{number} {told[number - 1][0]}: {found.get(number)}, not {expected[number]}"
        for number in expected
        if found.get(number) != expected[number]
    )
    for number, (what, why, _) in enumerate(told, 1):
        others = {"alpha", "beta"} | (set() if why else {LIAR})
        assert run.counted()[number] == others, what
    assert run.says.count(f"{LIAR} does not count: ") == len(told) - 1
    assert "it is larger than any answer could be" in run.says
    assert not marker.exists()
    assert peak < 2.5e9
    everything = run.says + (run.folder / "metrics.jsonl").read_text() + (run.folder / "results.json").read_text()
    assert "Anna" not in everything and "evil" not in everything and "\x1b[2J" not in everything


def test_a_site_that_poses_as_another(federation: Loopback) -> None:
    """It answers first, in another's name: the key of its node says whose it is."""
    hospital = federation.hospitals[LIAR]
    with Liar(federation, Node(hospital), lambda message: description(message, "beta"), answer(ok)) as liar:
        run = ended(play(federation, rounds=1))
        assert [message.metadata.message_type for message in liar.asked] == ["query.describe"]
        assert asked_of(liar.asked[0])["stamp"]["site"] == LIAR
    assert f"{LIAR} is not there: it describes itself as another site than the one whose key" in run.says
    assert run.counted()[1] == {"alpha", "beta"}
    assert run.row.sites_complete == 2


def test_a_site_that_describes_itself_with_a_path(federation: Loopback) -> None:
    hospital = federation.hospitals[LIAR]
    with Liar(federation, Node(hospital), lambda message: description(message, "../../evil"), answer(ok)):
        run = ended(play(federation, rounds=1))
    assert f"{LIAR} is not there: its description was refused: fields site are not valid" in run.says
    assert not list(federation.folder.rglob("*evil*"))


def test_a_site_asks_for_what_is_meant_for_another(federation: Loopback) -> None:
    """The SuperLink holds the node's number against the key that has signed the request."""
    hospital = federation.hospitals[LIAR]
    alpha = node_of(federation, "alpha")
    with Node(hospital) as node, pytest.raises(httpx.HTTPStatusError) as refused:
        node.client.PullMessages(PullMessagesRequest(node=NodeProto(node_id=alpha)))
    assert refused.value.response.status_code == 401
    log = (federation.home / "logs" / "gateway.log").read_text()
    assert f'site="{LIAR}"' in log and '401 "POST /v1/fleet/pull-messages"' in log


@pytest.mark.parametrize("kind", ["describe", "train"])
def test_a_site_hands_on_to_another_what_it_was_asked_itself(kind: str, federation: Loopback) -> None:
    """Flower 1.41 lets a node put a message for another into a run and does not look who made it: alpha's gate does."""
    hospital, alpha = federation.hospitals[LIAR], federation.hospitals["alpha"]
    target, done = node_of(federation, "alpha"), threading.Event()

    def hand_on(node: Node, message: Message) -> None:
        forged = Message(message.content, target, message.metadata.message_type, ttl=60, group_id="1")
        forged.metadata.__dict__["_src_node_id"] = 1  # the SuperLink's own number
        node.reply(forged)
        refusals = lambda: [e for e in alpha.ledger if e.get("code") == SiteError.OTHER_SITE.name]  # noqa: E731
        until(refusals, f"alpha refuses it\n{alpha.files()}", 60)
        done.set()

    def describe(message: Message) -> RecordDict:
        if kind == "describe":
            hand_on(node, message)
        return description(message, LIAR)

    def train(node: Node, message: Message) -> None:
        if kind == "train":
            hand_on(node, message)
        answer(ok)(node, message)

    since = len(alpha.ledger)
    with Liar(federation, node := Node(hospital), describe, train):
        run = ended(play(federation, rounds=1))
    assert done.is_set()
    entries = alpha.ledger[since:]
    assert [entry["code"] for entry in entries if entry["kind"] == "refused"] == ["OTHER_SITE"]
    assert run.counted()[1] == {"alpha", "beta", LIAR}


def test_a_reply_to_what_was_not_asked(federation: Loopback) -> None:
    """In no run, in a run that is over, to a message that never was: the SuperLink or the coordinator lets it fall."""
    hospital, sent = federation.hospitals[LIAR], []

    def train(node: Node, message: Message) -> None:
        forged = Message(record(ok(message), weights_in(message)), reply_to=message)
        forged.metadata.__dict__["_reply_to_message_id"] = "f" * 64
        node.reply(forged)
        sent.append(message)

    with Liar(federation, Node(hospital), lambda message: description(message, LIAR), train) as liar:
        run = ended(play(federation, rounds=1, deadline=15))
        assert run.counted()[1] == {"alpha", "beta"}
        (message,) = sent
        speak_as(liar.node, message)
        with pytest.raises(httpx.HTTPStatusError):
            liar.node.reply(Message(record(ok(message), weights_in(message)), reply_to=message))
    assert {line.get("missed") for line in run.metrics() if line.get("site") == LIAR} == {"no-answer"}
