"""A site works for its coordinator only: every request is signed, for it, for now, and once, and is in its ledger."""

from __future__ import annotations

import errno
import hashlib
import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from aiseeme_models.errors import RunFailed
from client import rounds
from client.ledger import Ledger
from client.policy import CLOCK_TOLERANCE_S
from client.refusals import Refusal
from client.schedule import ScheduleOptions
from client.site import Site
from client.site_config import PolicyOptions
from federation_configs import records
from federation_configs.records import Enclosure, pack
from federation_configs.signatures import create_signing_key, public_hex
from federation_configs.site_errors import SiteError
from federation_configs.wire import DescribeRequest, TrainRequest
from server.global_model import start_of_stage
from server.request_signing import RequestSigner, pack_for_any, pack_for_sites
from tests.conftest import tiny_config
from tests.federation.gated_site import (
    CONFIG,
    FEDERATION,
    KEY,
    NOW,
    OTHER_KEY,
    TYPES,
    Asked,
    gated,
    played_signed,
    with_body,
)


@pytest.mark.parametrize("kind", TYPES)
def test_a_signed_request_is_answered_and_entered(kind: str, asked: Asked) -> None:
    reply = asked.answer(kind, asked.signed(kind))
    assert not reply.has_error()
    (ask, start, end) = asked.entries()
    assert [ask[0], start[0], end[0]] == ["asked", "started", "answered"]
    fields = ask[1]
    assert (fields["what"], fields["run"], fields["coordinator"]) == (kind, "run-1", public_hex(KEY.public_key()))
    of_a_round = kind not in ("describe", "analyse")
    assert (fields["round"], fields["stage"]) == ((1, 0) if of_a_round else (None, None))
    assert fields["task"] == ("rotation" if of_a_round else "rotation, simclr")
    body = json.loads(reply.content["body"]["json"])
    left = reply.content["body"]["json"].encode() + (reply.content["weights"]["flat"].data if kind == "train" else b"")
    assert (end[1]["bytes"], end[1]["sha256"]) == (len(left), hashlib.sha256(left).hexdigest())
    assert end[1]["images"] == (body["train"] + body["validation"] if kind == "describe" else body["images"])
    assert end[1]["privacy"] is None
    told = ("train", "validation", "test", "rejected", "classes")
    counts = {name: body[name] for name in told} if kind == "describe" else None
    assert end[1].get("counts") == counts
    assert start[1].get("epochs") == {"train": 1, "range": 2, "fit": 1}.get(kind)  # 20 steps are two passes


@pytest.mark.parametrize("kind", TYPES)
def test_an_unsigned_request_is_refused(kind: str, asked: Asked, no_work: list[str]) -> None:
    content = pack(asked.request(kind), asked.beside(kind))
    assert asked.verdict(kind, content) == SiteError.NOT_SIGNED
    assert no_work == []
    assert [(kind, fields.get("code")) for kind, fields in asked.entries()] == [
        ("asked", None),
        ("refused", "NOT_SIGNED"),
    ]
    assert asked.entries()[0][1]["coordinator"] is None


@pytest.mark.parametrize("kind", TYPES)
def test_another_s_signature_is_refused(kind: str, asked: Asked, no_work: list[str]) -> None:
    other = RequestSigner(OTHER_KEY, FEDERATION, clock=lambda: NOW)
    assert asked.verdict(kind, asked.signed(kind, other)) == SiteError.UNKNOWN_COORDINATOR
    assert no_work == []


def test_a_site_may_allow_other_coordinators(asked: Asked) -> None:
    other = RequestSigner(OTHER_KEY, FEDERATION, clock=lambda: NOW)
    asked.set_gate(PolicyOptions(coordinators=(public_hex(OTHER_KEY.public_key()),)))
    assert asked.verdict("describe", asked.signed("describe", other)) is None
    assert asked.verdict("describe", asked.signed("describe")) == SiteError.UNKNOWN_COORDINATOR
    both = (public_hex(OTHER_KEY.public_key()), public_hex(KEY.public_key()))
    asked.set_gate(PolicyOptions(coordinators=both))
    assert asked.verdict("describe", asked.signed("describe")) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"run":"run-1"', '"run":"run-2"'),
        ('"round":1', '"round":2'),
        ('"lr":0.01', '"lr":0.02'),
        ('"seed":3', '"seed":4'),
    ]
    + [
        ('"site":"alpha"', '"site":"blpha"'),
        ('"run":"run-1"', ' "run":"run-1"'),
        ('"proximal_mu":0.0', '"proximal_mu":9.0'),
    ],
)
def test_a_request_changed_on_its_way_is_refused(old: str, new: str, asked: Asked, no_work: list[str]) -> None:
    content = asked.signed("train")
    text = content["body"]["json"]
    assert old in text
    changed = with_body(content, json=text.replace(old, new, 1))
    assert asked.verdict("train", changed) == SiteError.UNKNOWN_COORDINATOR
    assert no_work == []


@pytest.mark.parametrize("place", [0, 430, -1])
def test_a_global_model_changed_in_one_bit_is_refused(place: int, asked: Asked, no_work: list[str]) -> None:
    content = asked.signed("train")
    weights = asked.model.vector.copy()
    weights.view(np.uint32)[place] ^= 1
    content["weights"] = ArrayRecord({"flat": Array(weights)})
    assert asked.verdict("train", content) == SiteError.UNKNOWN_COORDINATOR
    content["weights"] = ArrayRecord({"flat": Array(asked.model.vector[:-1].copy())})
    assert asked.verdict("train", content) == SiteError.UNKNOWN_COORDINATOR
    assert no_work == []


@pytest.mark.parametrize(
    ("signature", "code"),
    [("0" * 128, SiteError.UNKNOWN_COORDINATOR), ("", SiteError.BAD_REQUEST), ("x" * 128, SiteError.BAD_REQUEST)],
)
def test_what_is_no_signature_is_refused(signature: str, code: SiteError, asked: Asked, no_work: list[str]) -> None:
    assert asked.verdict("train", with_body(asked.signed("train"), signature=signature)) == code
    assert no_work == []
    assert asked.entries()[-1][1]["code"] == code.name


def test_a_signature_for_one_question_is_none_for_another(asked: Asked, no_work: list[str]) -> None:
    """The fields of an evaluation are those of a training: only the signature tells them apart."""
    evaluation = asked.signed("evaluate")
    assert asked.verdict("train", evaluation) == SiteError.UNKNOWN_COORDINATOR
    assert no_work == []


def test_a_signed_request_without_a_stamp_is_refused(asked: Asked, no_work: list[str]) -> None:
    from federation_configs.signatures import sign

    content = pack(asked.request("describe"), None, lambda digest: sign(KEY, "request-describe", digest))
    assert asked.verdict("describe", content) == SiteError.BAD_REQUEST
    assert no_work == []


def test_a_request_is_answered_once_also_after_the_site_was_restarted(asked: Asked) -> None:
    content = asked.signed("evaluate")
    assert asked.verdict("evaluate", content) is None
    assert asked.verdict("evaluate", content) == SiteError.REPLAYED
    asked.set_gate()
    assert asked.verdict("evaluate", content) == SiteError.REPLAYED
    assert asked.verdict("evaluate", asked.signed("evaluate")) is None, "the same question asked anew"


def test_a_nonce_counts_as_seen_before_the_work_begins(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site that was killed at work does not do the same work again for somebody who kept the message."""
    content = asked.signed("evaluate")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(rounds, "evaluate", killed)
        asked.answer("evaluate", content)
    asked.set_gate()
    assert [kind for kind, _ in asked.entries()] == ["asked", "started"]
    assert asked.verdict("evaluate", content) == SiteError.REPLAYED


def test_requests_for_another_federation_or_site_are_refused(asked: Asked, no_work: list[str]) -> None:
    other = RequestSigner(KEY, "other-federation", clock=lambda: NOW)
    assert asked.verdict("describe", asked.signed("describe", other)) == SiteError.OTHER_FEDERATION
    for kind in TYPES:
        assert asked.verdict(kind, asked.signed(kind, site="beta")) == SiteError.OTHER_SITE
    for kind in ("train", "evaluate", "analyse"):
        assert asked.verdict(kind, asked.signed(kind, site=None)) == SiteError.OTHER_SITE
    assert no_work == []


@pytest.mark.parametrize(
    ("ahead_s", "code"),
    [
        (-600, SiteError.CLOCK_SKEW),
        (-CLOCK_TOLERANCE_S - 1, SiteError.CLOCK_SKEW),
        (-CLOCK_TOLERANCE_S + 1, None),
        (599, None),
        (600, SiteError.EXPIRED),
        (86_400, SiteError.EXPIRED),
    ],
)
def test_a_clock_that_is_wrong_gives_a_clear_error(ahead_s: float, code: SiteError | None, asked: Asked) -> None:
    """The request is good for 600 s: a clock that is 10 minutes behind, or 10 minutes ahead, is found out."""
    asked.now = NOW + ahead_s
    assert asked.verdict("describe", asked.signed("describe")) == code
    if code is not None:
        assert "clock" in code.sentence


POLICIES = {
    SiteError.TASK_NOT_ALLOWED: {"tasks": ("moco",)},
    SiteError.BACKBONE_NOT_ALLOWED: {"backbones": ("resnet50",)},
    SiteError.PRESET_NOT_ALLOWED: {"presets": ("ct-lung",)},
    SiteError.TOO_LARGE: {"max_image_size": 32},
    SiteError.TOO_MANY_ROUNDS: {"max_rounds": 3},
    SiteError.TOO_FEW_IMAGES: {"min_images": 1000},
    SiteError.PRIVACY_REQUIRED: {"require_dp": True},
}


@pytest.mark.parametrize("code", POLICIES)
@pytest.mark.parametrize("kind", TYPES)
def test_what_the_policy_does_not_allow_is_refused_and_entered(
    kind: str, code: SiteError, asked: Asked, no_work: list[str]
) -> None:
    asked.set_gate(PolicyOptions(**POLICIES[code]))
    assert asked.verdict(kind, asked.signed(kind)) == code
    assert no_work == []
    last, fields = asked.entries()[-1]
    assert (last, fields["code"], fields["request"]) == ("refused", code.name, 1)


def test_epochs_of_a_day_are_taken_from_the_ledger(asked: Asked) -> None:
    asked.set_gate(PolicyOptions(max_epochs_per_day=2))
    assert asked.verdict("train", asked.signed("train")) is None
    asked.set_gate(PolicyOptions(max_epochs_per_day=2))
    assert asked.verdict("train", asked.signed("train")) is None
    assert asked.verdict("train", asked.signed("train")) == SiteError.TOO_MANY_EPOCHS
    assert asked.verdict("evaluate", asked.signed("evaluate")) is None
    asked.now += 86_401
    later = RequestSigner(KEY, FEDERATION, clock=lambda: NOW + 86_401)
    assert asked.verdict("train", asked.signed("train", later)) is None


def test_outside_its_hours_a_site_does_not_work(asked: Asked, no_work: list[str]) -> None:
    hour = datetime.fromtimestamp(NOW).hour
    asked.set_gate(schedule=ScheduleOptions(hours=f"{(hour + 1) % 24:02}:00-{(hour + 2) % 24:02}:00"))
    assert asked.verdict("train", asked.signed("train")) == SiteError.OUTSIDE_HOURS
    assert no_work == []


def test_the_folders_are_looked_at_only_for_a_request_that_was_let_in(asked: Asked) -> None:
    looked: list[bool] = []

    def survey(options: object, anew: bool) -> Site:
        looked.append(anew)
        return replace(plain, rows=rows)

    plain, rows = asked.site, asked.site.rows
    asked.site = replace(plain, rows=[], survey=survey)
    assert asked.verdict("describe", pack(asked.request("describe"))) == SiteError.NOT_SIGNED
    assert looked == []
    assert asked.verdict("describe", asked.signed("describe")) is None
    assert asked.verdict("evaluate", asked.signed("evaluate")) is None
    assert looked == [True, False]
    assert asked.entries()[3] == ("started", {"request": 3, "what": "describe", "images": len(rows)})


def test_a_run_that_is_stopped_is_entered_as_failed(asked: Asked) -> None:
    def stopped(*_: object) -> None:
        raise Refusal(SiteError.STOPPED)

    asked.site = replace(asked.site, on_step=stopped)
    assert asked.verdict("train", asked.signed("train")) == SiteError.STOPPED
    assert [(kind, fields.get("code")) for kind, fields in asked.entries()][-1] == ("failed", "STOPPED")


def full_disk(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Ledger._write

    def write(self: Ledger, entered: str, *arguments: Any, **named: Any) -> Any:
        if entered == kind:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, entered, *arguments, **named)

    monkeypatch.setattr(Ledger, "_write", write)


@pytest.mark.parametrize("kind", ["asked", "started"])
def test_a_disk_too_full_for_the_ledger_keeps_the_site_from_working(
    kind: str, asked: Asked, no_work: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk(kind, monkeypatch)
    assert asked.verdict("train", asked.signed("train")) == SiteError.DISK_FULL
    assert no_work == []


def test_what_cannot_be_entered_does_not_leave(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    full_disk("answered", monkeypatch)
    reply = asked.answer("train", asked.signed("train"))
    assert reply.has_error() and reply.error.code == SiteError.DISK_FULL
    assert asked.entries()[-1][1]["code"] == "DISK_FULL"


def test_a_ledger_that_was_tampered_with_keeps_the_site_from_working(asked: Asked, no_work: list[str]) -> None:
    path = asked.site.state_folder / "ledger.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"an":"entry"}\n')
    assert asked.verdict("describe", asked.signed("describe")) == SiteError.LEDGER_BROKEN
    assert no_work == []


def test_a_malformed_request_is_entered_without_anything_of_it(asked: Asked) -> None:
    content = RecordDict({"body": ConfigRecord({"json": '{"run": "MUSTERMANN^ERIKA"}'})})
    assert asked.verdict("describe", content) == SiteError.BAD_REQUEST
    assert asked.entries() == [("refused", {"request": None, "what": "describe", "code": "BAD_REQUEST"})]


def test_the_ledger_holds_no_exception_and_no_file_name(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "/srv/pacs/MUSTERMANN^ERIKA/1.dcm"
    monkeypatch.setattr(Site, "images", lambda self, *_: (_ for _ in ()).throw(OSError(f"bad file {secret}")))
    assert asked.verdict("train", asked.signed("train")) == SiteError.INTERNAL
    text = (asked.site.state_folder / "ledger.jsonl").read_text()
    assert "MUSTERMANN" not in text and asked.site.rows[0].file not in text
    assert asked.entries()[-1] == ("failed", {"request": 1, "what": "train", "code": "INTERNAL"})


def test_the_array_is_one_for_all_sites_and_hashed_once_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    real = records._floats
    monkeypatch.setattr(records, "_floats", lambda record: hashed.append(1) or real(record))
    model = start_of_stage(CONFIG, 0, None)
    asked = TrainRequest(run="r", config=CONFIG, round=1, stage=0, round_in_stage=0, layout_sha256=model.layout.digest)
    signer, nodes = RequestSigner(KEY, FEDERATION), {number: f"site-{number}" for number in range(20)}
    contents = pack_for_sites(signer, "train", asked, nodes, Enclosure(model.vector), valid_s=60)
    assert len(hashed) == 1
    assert len({id(content["weights"]["flat"].data) for content in contents.values()}) == 1
    stamps = [json.loads(content["body"]["json"])["stamp"] for content in contents.values()]
    assert [stamp["site"] for stamp in stamps] == list(nodes.values())
    assert len({stamp["nonce"] for stamp in stamps}) == 20
    assert len({content["body"]["signature"] for content in contents.values()}) == 20
    asked = DescribeRequest(run="r", config=CONFIG)
    (described,) = pack_for_any(signer, "describe", asked, {7: None}, valid_s=1e9).values()
    stamp = json.loads(described["body"]["json"])["stamp"]
    assert stamp["site"] is None and stamp["expires"] - stamp["issued"] == pytest.approx(7 * 86_400)


def test_a_signed_federation_ends_in_the_bits_of_an_unsigned_one(federation) -> None:
    config = tiny_config(holdout={"test": 0.1, "validation": 0.5})
    plain_state, plain = federation(config, where="plain").play()
    made = gated(federation(config, where="signed"))
    state, vector = played_signed(made)
    np.testing.assert_array_equal(plain, vector)
    assert [stage.heldout for stage in state.stages] == [stage.heldout for stage in plain_state.stages]
    assert not any(site.missed for site in state.sites.values())
    for site in made.sites:
        book = Ledger.in_home(site.state_folder)
        assert book.verify() == []
        kinds = [(entry.kind, entry.fields["what"]) for entry in book.entries()]
        assert kinds.count(("answered", "train")) == 4 and kinds.count(("answered", "evaluate")) == 2
        assert kinds.count(("answered", "describe")) == 1
        assert len(kinds) == 3 * 7, "asked, started, answered"


def test_a_coordinator_is_told_why_a_site_does_not_take_part(federation) -> None:
    policies = {"beta": PolicyOptions(tasks=("rotation",)), "gamma": PolicyOptions(max_epochs_per_day=1)}
    state, _ = federation_without(federation, policies)
    assert {missed.reason for missed in state.sites["beta"].missed} == {SiteError.TASK_NOT_ALLOWED.sentence}
    assert state.sites["gamma"].answered == 1
    assert {missed.reason for missed in state.sites["gamma"].missed} == {SiteError.TOO_MANY_EPOCHS.sentence}


def federation_without(federation, policies: dict[str, PolicyOptions]) -> tuple[Any, np.ndarray]:
    config = tiny_config(federation={"min_sites": 1, "round_retries": 0})
    return played_signed(gated(federation(config), policies))


def test_sites_behind_a_gate_do_not_answer_an_unsigned_coordinator(federation) -> None:
    with pytest.raises(RunFailed, match="the request is not signed"):
        gated(federation()).play()


def test_a_loss_on_a_handful_of_patients_is_not_measured(asked: Asked, no_work: list[str]) -> None:
    """The site describes fewer than 5 validation images as none: also a coordinator who asks is told no more."""
    plain = asked.site
    validation = plain.rows_of("validation", CONFIG.holdout)
    others = [row for row in plain.rows if row not in validation]
    asked.site = replace(plain, rows=[*others, *validation[:4]])
    assert asked.verdict("evaluate", asked.signed("evaluate")) == SiteError.NO_IMAGES
    assert no_work == []


def test_a_signature_has_no_place_in_a_reply(federation) -> None:
    def signs(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "train":
            reply.content["body"]["signature"] = "0" * 128
        return reply

    state, _ = federation(alter={"beta": signs}).play()
    assert {missed.code for missed in state.sites["beta"].missed} == {"malformed-reply"}


def test_the_signer_is_made_from_the_key_file(tmp_path: Path, asked: Asked) -> None:
    key = create_signing_key(tmp_path / "signing.pem")
    signer = RequestSigner.load(tmp_path / "signing.pem", FEDERATION)
    assert asked.verdict("describe", asked.signed("describe", signer)) == SiteError.UNKNOWN_COORDINATOR
    asked.set_gate(PolicyOptions(coordinators=(public_hex(key.public_key()),)))
    asked.now = time()
    assert asked.verdict("describe", asked.signed("describe", signer)) is None
