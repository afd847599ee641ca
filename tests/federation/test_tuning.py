"""``lr = "auto"``: sites try settings in turn, the search goes on where it was, and its cost is told."""

from __future__ import annotations

import contextlib
import json
import shutil

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message

from aiseeme_models.errors import InputError, RunFailed
from client import rounds
from client.local_state import LocalState
from client.site_config import PolicyOptions
from federation_configs.records import pack
from federation_configs.site_errors import SiteError
from federation_configs.wire import FitRequest, RangeRequest, TrainRequest
from server.global_model import start_of_stage
from server.local_grid import LocalGrid
from server.observer import Silent
from server.tuning.halving import Halving
from server.tuning.trial_round import TrialRound
from tests.conftest import InProcess, tiny_config
from tests.federation.gated_site import gated, played_signed, with_body
from tests.federation.test_private_rounds import PRIVATE

ASHA = {"lr": [1e-4, 1e-1], "candidates": 5, "reduction": 2, "min_rounds": 1, "max_rounds": 2}


def searching(tune=None, *, tables=None, **stage):
    table = {"task": "rotation", "rounds": 2, "batch_size": 4} | stage
    return tiny_config(
        curriculum={"stage": [{**table, "tune": ASHA if tune is None else tune}]},
        **{"federation": {"min_sites": 3, "round_retries": 1}, **(tables or {})},
    )


class Told(Silent):
    def __init__(self):
        self.notes, self.missed = [], []

    def note(self, text):
        self.notes.append(text)

    def site_missed(self, site, why):
        self.missed.append((site, why.sentence))


class Watch:
    """What sites were asked to train: (trial, round in stage, site, lr, batch size); some fail."""

    def __init__(self, made: InProcess, fails=lambda body, stage: None):
        self.trained = []
        made.alter = {site.name: self._at(site.name, fails) for site in made.sites}

    def _at(self, name, fails):
        def alter(message, reply):
            body = json.loads(message.content["body"]["json"])
            if "proximal_mu" not in body:
                return reply
            stage = body["config"]["curriculum"]["stage"][body["stage"]]
            self.trained.append((body["trial"], body["round_in_stage"], name, stage["lr"], stage["batch_size"]))
            code = fails(body, stage)
            return reply if code is None else Message(Error(int(code), code.sentence), reply_to=message)

        return alter

    @property
    def trials(self):
        return [one for one in self.trained if one[0] is not None]


def training_images(made: InProcess) -> list[int]:
    return [len(site.rows_of("train", made.config.holdout)) for site in made.sites]


def test_the_setting_with_the_smallest_error_is_taken_and_its_cost_is_told(federation):
    made, told = federation(searching()), Told()
    watch = Watch(made)
    state, _ = made.play(told)
    found = state.stages[0].found
    assert (found.method, found.judged_by, len(found.tried)) == ("asha", "heldout", 5)
    furthest = [one for one in found.tried if one.rounds == 2]
    assert len(furthest) >= 2
    assert found.lr == min(furthest, key=lambda one: one.error).lr
    assert {lr for trial, _, _, lr, _ in watch.trained if trial is None} == {found.lr}
    assert len(watch.trained) - len(watch.trials) == 2 * 3, "then the stage is played, by all"
    assert state.round == 2 and state.sites["alpha"].answered == 2, "trials are no rounds of the run"
    each = min(training_images(made)) // 4  # steps a round, alike at every site
    assert found.steps == each * len(watch.trials) and found.images == 4 * found.steps
    assert found.share == found.images / sum(2 * 4 * (count // 4) for count in training_images(made))
    assert any(found.sentence in note for note in told.notes)


def test_trials_run_at_different_sites_at_the_same_time_and_sites_take_turns(federation):
    made = federation(searching())
    watch = Watch(made)
    made.play()
    assert len({trial for trial, *_ in watch.trials[:3]}) == 3
    assert len({site for _, _, site, *_ in watch.trials[:3]}) == 3
    sites = [{site for number, _, site, *_ in watch.trials if number == trial} for trial in range(10)]
    assert max(map(len, sites)) == 2, "the second round of a trial is at another site"


def test_several_sites_may_train_a_setting_together(federation):
    made = federation(searching(ASHA | {"sites": 3, "candidates": 2, "max_rounds": 1}))
    watch = Watch(made)
    made.play()
    assert sorted((trial, site) for trial, _, site, *_ in watch.trials) == [
        (trial, site.name) for trial in (0, 1) for site in made.sites
    ]


def test_settings_that_diverge_are_given_up_and_where_all_do_the_run_says_so(federation):
    def fails(body, stage):
        return SiteError.NON_FINITE_LOSS if stage["lr"] > 1 else None

    wild = {"lr": [1e-3, 1e3], "candidates": 4, "reduction": 2, "max_rounds": 1}
    made = federation(searching(wild))
    Watch(made, fails)
    state, _ = made.play()
    found = state.stages[0].found
    assert found.lr <= 1
    assert {one.lr: one.out for one in found.tried} == {
        one.lr: "training diverged" if one.lr > 1 else None for one in found.tried
    }
    made = federation(searching({**wild, "lr": [10, 100]}), where="two")
    Watch(made, fails)
    with pytest.raises(RunFailed, match=r"no setting can be used \(lr .*diverged.*lower"):
        made.play()


def test_a_site_that_is_silent_for_once_costs_a_turn_and_no_setting(federation):
    silent = []

    def fails(body, stage):
        if body["trial"] == 1 and not silent:
            silent.append(True)
            return SiteError.INTERNAL
        return None

    made, told = federation(searching()), Told()
    watch = Watch(made, fails)
    state, _ = made.play(told)
    assert [one for one in told.missed if one[1] == SiteError.INTERNAL.sentence]
    late = state.stages[0].found.tried[1]
    assert late.rounds >= 1 and late.error is not None
    again = [site for trial, number, site, *_ in watch.trials if (trial, number) == (1, 0)]
    assert len(again) == 2 and len(set(again)) == 2, "another site takes its place"
    made = federation(searching(), where="two")
    Watch(made, lambda body, stage: SiteError.INTERNAL if body["trial"] == 1 else None)
    state, _ = made.play()
    assert state.stages[0].found.tried[1].out == "no site could train with it"


def test_a_setting_whose_weights_burst_is_given_up_like_one_whose_loss_does(federation):
    """The last step of a round is made after its loss was looked at: finite loss, weights beyond use."""

    def alter(message, reply):
        body = json.loads(message.content["body"]["json"])
        if "proximal_mu" in body and body["config"]["curriculum"]["stage"][0]["lr"] > 0.05:
            size = reply.content["weights"]["flat"].shape[0]
            reply.content["weights"] = ArrayRecord({"flat": Array(np.full(size, 1e6, np.float32))})
        return reply

    made = federation(searching())
    made.alter = {site.name: alter for site in made.sites}
    state, _ = made.play()
    assert {one.lr: one.out for one in state.stages[0].found.tried if one.out} == {0.1: "training diverged"}


def test_a_setting_whose_held_out_loss_is_no_number_is_given_up(federation):
    def alter(message, reply):
        body = json.loads(message.content["body"]["json"])
        asked = body.get("trial") == 2 and "proximal_mu" not in body
        code = SiteError.NON_FINITE_LOSS
        return Message(Error(int(code), code.sentence), reply_to=message) if asked else reply

    made = federation(searching())
    made.alter = {"beta": alter}  # the others' figures would flatter it
    state, _ = made.play()
    assert state.stages[0].found.tried[2].out == "its held-out loss is no number"


@pytest.mark.parametrize("code", [SiteError.OUTSIDE_HOURS, SiteError.OUT_OF_MEMORY, SiteError.NON_FINITE_LOSS])
def test_one_site_that_cannot_train_costs_turns_and_no_setting(code, federation):
    """What is wrong at one site alone is not the setting's fault, and the stage would go on without it."""
    config = searching(tables={"federation": {"min_sites": 1, "round_retries": 0}})
    expected, _ = federation(config, where="whole").play()
    made = federation(config)
    for site in ("alpha", "gamma") if code == SiteError.OUTSIDE_HOURS else ("alpha",):
        made.alter[site] = lambda message, reply: (
            Message(Error(int(code), code.sentence), reply_to=message)
            if "proximal_mu" in json.loads(message.content["body"]["json"])
            else reply
        )
    state, _ = made.play()
    found = state.stages[0].found
    assert all(one.out is None and one.error is not None for one in found.tried)
    assert len(found.tried) == len(expected.stages[0].found.tried)


def test_a_site_that_counts_its_images_anew_is_asked_to_describe_itself(federation):
    made = federation(searching())
    counted = []

    def alter(message, reply):
        body = json.loads(message.content["body"]["json"])
        if "proximal_mu" not in body or counted:
            return reply
        counted.append(body["trial"])
        said = json.loads(reply.content["body"]["json"]) | {"images": 5}
        return Message(with_body(reply.content, json=json.dumps(said)), reply_to=message)

    made.alter = {"alpha": alter}
    state, _ = made.play()
    assert counted and all(one.error is not None for one in state.stages[0].found.tried)


class Crash(Exception):
    """As if the coordinator's process had ended."""


@pytest.mark.parametrize("place", [(Halving, "_wave"), (TrialRound, "finish"), (Halving, "_error")])
@pytest.mark.parametrize("after", [0, 2, 4])
def test_a_search_goes_on_after_a_crash_as_if_there_had_been_none(place, after, federation, monkeypatch):
    whole = federation(searching())
    watched = Watch(whole)
    expected, vector = whole.play()
    made = federation(searching(), where="two")
    before = Watch(made)
    crash_before(monkeypatch, *place, min(after, 2) if place[1] == "_wave" else after)
    with pytest.raises(Crash):
        made.play()
    monkeypatch.undo()
    afterwards = Watch(made)
    state, again = made.play()
    np.testing.assert_array_equal(again, vector)
    assert _timeless(state.stages[0].found) == _timeless(expected.stages[0].found)
    assert set(before.trials + afterwards.trials) == set(watched.trials)
    assert len(before.trials + afterwards.trials) <= len(watched.trials) + 3, "a wave at most is trained again"
    assert not (made.folder / "run" / "tuning").exists(), "what was tried is not kept"


def crash_before(monkeypatch, owner, name, number):
    """Crash when a method is called for the time that has this number."""
    honest, called = getattr(owner, name), []

    def crashing(self, *arguments):
        called.append(name)
        if len(called) > number:
            raise Crash
        return honest(self, *arguments)

    monkeypatch.setattr(owner, name, crashing)


def _timeless(found):
    return found.model_copy(update={"seconds": 0.0})


def test_sites_without_held_out_images_are_noticed_before_the_first_trial(federation):
    made = federation(searching(tables={"holdout": {"test": 0.25, "validation": 0.01}}))
    watch = Watch(made)
    with pytest.raises(RunFailed, match="no site has 5 of them: a larger holdout.validation"):
        made.play()
    assert watch.trained == []


def test_a_trial_that_the_coordinator_did_not_sign_begins_anew(federation, monkeypatch):
    made = federation(searching())
    key = Ed25519PrivateKey.generate()
    loop = made.loop()
    loop.signing_key = key
    crash_before(monkeypatch, Halving, "_wave", 2)
    with pytest.raises(Crash):
        loop.play()
    monkeypatch.undo()
    trial = made.folder / "run" / "tuning" / "stage-000" / "trial-0000"
    for file in trial.glob("round-*.json"):
        content = json.loads(file.read_text())
        content["state"]["error"] = 0.0  # as if it were the best
        file.write_text(json.dumps(content))
    loop = made.loop()
    loop.signing_key = key
    state, _ = loop.play()
    assert min(one.error for one in state.stages[0].found.tried) > 0.01


def test_batch_sizes_that_do_not_fit_are_left_out(federation, monkeypatch):
    sizes = {"candidates": 4, "reduction": 2, "max_rounds": 1, "lr": [1e-3, 1e-1]}
    made, told = federation(searching(sizes | {"batch_sizes": [2, 4, 512]}, batch_size=512)), Told()
    monkeypatch.setattr("server.tuning.halving.score_at_sites", lambda *_: 0.5)  # the sites here are too small for it
    monkeypatch.setattr(
        "aiseeme_models.training.memory.largest_batch",
        lambda *_, **__: 2,
    )
    state, _ = made.play(told)
    found = state.stages[0].found
    assert {one.batch_size for one in found.tried} == {2} and found.batch_size == 2
    assert found.judged_by == "probe"
    fewest = min(training_images(made))
    assert found.notes[0] == f"batch sizes above {fewest} are left out: a site has no more training images"
    assert found.notes[1].startswith("batch sizes from 4 do not fit in the memory of ")


def test_larger_batches_take_fewer_steps_so_that_all_see_as_many_images(federation, monkeypatch):
    monkeypatch.setattr("server.tuning.halving.score_at_sites", lambda *_: 0.5)
    made = federation(searching({"batch_sizes": [2, 4], "candidates": 2, "max_rounds": 1, "lr": [1e-3, 1e-2]}))
    watch = Watch(made)
    state, _ = made.play()
    found = state.stages[0].found
    each = min(training_images(made)) // 4
    assert sorted(batch for *_, batch in watch.trials) == [2, 4]
    assert found.steps == 3 * each and found.images == 2 * 4 * each


def test_a_range_test_takes_the_median_of_what_the_sites_suggest(federation):
    made, told = federation(searching({"method": "range", "lr": [1e-4, 10.0], "steps": 40}, batch_size=8)), Told()
    suggested = {"alpha": 0.02, "beta": 0.5, "gamma": None}

    def suggesting(name):
        def alter(message, reply):
            body = json.loads(message.content["body"]["json"])
            if "rates" not in body:
                return reply
            said = json.loads(reply.content["body"]["json"]) | {"rate": suggested[name]}
            reply.content["body"] = ConfigRecord({**reply.content["body"], "json": json.dumps(said)})
            return reply

        return alter

    made.alter = {name: suggesting(name) for name in suggested}
    state, _ = made.play(told)
    found = state.stages[0].found
    assert found.lr == 0.5, "beta has more images than alpha"
    assert found.judged_by is None and found.steps == 3 * 40 and found.images == 3 * 40 * 8
    assert sorted(one.lr for one in found.tried) == [0.02, 0.5]
    suggested |= {"alpha": None, "beta": None}
    with pytest.raises(RunFailed, match="no site's range test suggests a rate"):
        made.play(told, run="two")


def answer(made: InProcess, kind: str, request) -> Message:
    model = start_of_stage(request.config, request.stage, None)
    grid = LocalGrid(made.app(), len(made.sites))
    message = Message(pack(request, model.vector), 2, kind, ttl=600, group_id="1")
    (reply,) = grid.pull_messages(grid.push_messages([message]))
    return reply


def place(config):
    return {
        "run": "run",
        "config": config,
        "round": 1,
        "stage": 0,
        "round_in_stage": 0,
        "layout_sha256": start_of_stage(config, 0, None).layout.digest,
    }


def test_sites_measure_and_tell_one_rounded_figure(federation):
    config = tiny_config()
    made = federation(config)
    reply = answer(made, "query.range", RangeRequest(**place(config), rates=(1e-4, 10.0), steps=40))
    body = json.loads(reply.content["body"]["json"])
    assert set(body) == {"nonce", "site", "round", "stage", "images", "seconds", "rate"}
    assert body["rate"] is None or body["rate"] == float(f"{body['rate']:.2g}")
    reply = answer(made, "query.fit", FitRequest(**place(config), sizes=(2, 8, 4096)))
    body = json.loads(reply.content["body"]["json"])
    assert set(body) == {"nonce", "site", "round", "stage", "images", "seconds", "largest"}
    assert body["largest"] == 8 and body["images"] == 0


def test_sites_train_with_a_setting_that_is_given_and_never_for_a_trial_under_protection(federation):
    open_question = searching()
    made = federation(open_question)
    assert answer(made, "train", TrainRequest(**place(open_question))).error.code == SiteError.BAD_REQUEST
    private = tiny_config(
        privacy=PRIVATE, curriculum={"stage": [{"task": "rotation", "rounds": 2, "batch_size": 4, "lr": 0.01}]}
    )
    made = federation(private, where="two")
    for kind, request in (
        ("train", TrainRequest(**place(private), trial=0)),
        ("query.range", RangeRequest(**place(private), rates=(1e-4, 10.0), steps=40)),
        ("query.fit", FitRequest(**place(private), sizes=(2, 8))),
    ):
        assert answer(made, kind, request).error.code == SiteError.WITHHELD


@pytest.mark.parametrize("stage", [{}, {"carry_optimizer": False}])
def test_what_a_site_keeps_of_trials_is_apart_and_forgotten(stage, federation, monkeypatch):
    made = federation(searching(**stage))
    folders = []
    honest = rounds.train

    def train(site, request, weights):
        answered = honest(site, request, weights)
        stage = site.state_folder / "runs" / "run" / "stage-000"
        folders.append((request.trial, sorted(path.name for path in stage.glob("*"))))
        return answered

    monkeypatch.setattr(rounds, "train", train)
    made.play()
    tried = [names for trial, names in folders if trial is not None]
    assert any(tried) is not bool(stage)
    assert all(name.startswith("trial-") for names in tried for name in names)
    assert all(not name.startswith("trial-") for trial, names in folders if trial is None for name in names)


def test_trials_leave_the_state_of_earlier_stages_alone_and_are_not_many(tmp_path):
    """The coordinator may fall back to a checkpoint of the stage before."""
    before = LocalState(tmp_path, "run", 0, 3)
    before.save(5, {"a": torch.ones(1)})
    for trial in range(40):
        state = LocalState(tmp_path, "run", 1, 3, trial=trial)
        for number in (6, 7, 8):
            state.save(number, {"a": torch.zeros(1)})
    assert before.load_before(6) is not None
    assert len(list(state.of_stage.glob("trial-*"))) <= 33
    assert state.load_before(9) is not None
    state.forget_trials()
    assert not list(state.of_stage.glob("trial-*"))


def test_trials_pass_the_gate_and_count_against_its_limits(federation):
    made = gated(federation(searching()))
    played_signed(made)
    kinds = [
        (entry.kind, entry.fields.get("task"))
        for entry in made.sites[0].gate.ledger.entries()
        if entry.fields.get("what") == "train" and entry.kind == "asked"
    ]
    assert [task for _, task in kinds if "trial" in task] and ("asked", "rotation") in kinds
    limited = gated(federation(searching(), where="two"), {"alpha": PolicyOptions(max_epochs_per_day=1)})
    told = Told()
    with pytest.raises(RunFailed):
        _played(limited, told)
    assert ("alpha", SiteError.TOO_MANY_EPOCHS.sentence) in told.missed


def _played(made, told):
    from server.request_signing import RequestSigner
    from tests.federation.gated_site import FEDERATION, KEY

    loop = made.loop(told)
    loop.signer = RequestSigner(KEY, FEDERATION)
    return loop.play()


def test_what_measuring_takes_is_known_and_allowed_before_an_image_is_used(asked, no_work):
    """How many passes it is depends on the site's images, which are counted after the request was let in."""
    asked.set_gate(PolicyOptions(max_epochs_per_day=3))
    request = asked.request("fit").model_copy(update={"sizes": (4, 64)})  # 248 images in steps, of about 70
    content = asked.signer.pack("fit", request, site="alpha", valid_s=600.0, beside=asked.beside("fit"))
    assert asked.verdict("fit", content) == SiteError.TOO_MANY_EPOCHS
    assert "fit" not in no_work


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("range", {"rate": 1e4}),
        ("range", {"rate": "0.1"}),
        ("range", {"images": 1}),
        ("fit", {"largest": 3}),
        ("fit", {"largest": -1}),
        ("fit", {"also": 1}),
    ],
)
def test_replies_that_cannot_be_are_refused(kind, changes, federation):
    tune = {"batch_sizes": [2, 4], "lr": [1e-3, 1e-1], "method": "range", "steps": 20}
    made, told = federation(searching(tune, batch_size=4)), Told()

    def alter(message, reply):
        body = json.loads(message.content["body"]["json"])
        if {"range": "rates", "fit": "sizes"}[kind] in body:
            said = json.loads(reply.content["body"]["json"]) | changes
            return Message(with_body(reply.content, json=json.dumps(said)), reply_to=message)
        return reply

    what = {"range": "made no range test", "fit": "did not tell which batch fits"}[kind]
    _play(made, told, "honest")
    assert not any(note.startswith(f"alpha {what}") for note in told.notes)
    made.alter = {"alpha": alter}
    _play(made, told, "dishonest")
    assert any(note.startswith(f"alpha {what}") for note in told.notes)


def _play(made, told, run):
    """A range test of so few steps may suggest nothing."""
    with contextlib.suppress(RunFailed):
        made.play(told, run=run)


@pytest.mark.parametrize(
    ("tables", "stage", "says"),
    [
        ({"privacy": PRIVATE}, {}, r"\[privacy\] does not account for"),
        ({"site_privacy": {"noise_multiplier": 1.0, "clip_norm": 1.0}}, {}, r"\[site_privacy\] does not account for"),
        ({"holdout": {"test": 0.25, "validation": 0.0}}, {}, "holdout.validation is 0"),
        ({}, {"task": "npid", "tune": ASHA | {"score": "heldout"}}, "does not tell if npid was learnt better"),
        ({}, {"task": "moco", "options": {"queue": 8}, "tune": ASHA | {"score": "heldout"}}, "does not tell if moco"),
        ({"model": {"backbone": "tiny", "norm": "batch-local"}}, {}, "'batch-local' has no statistics of it"),
        ({}, {"rounds": 1}, "tune.max_rounds = 2 is more than the stage's rounds = 1"),
        ({}, {"task": "moco", "options": {"queue": 64}, "batch_size": 64, "tune": {"batch_sizes": [48, 64]}}, "queue"),
    ],
)
def test_a_search_that_cannot_be_is_refused_with_the_configuration(tables, stage, says):
    tune = stage.pop("tune", None)
    with pytest.raises(InputError, match=says):
        searching(tune, tables=tables, **stage)


def test_resume_finds_the_setting_in_the_checkpoint(federation):
    made = federation(searching(rounds=3))
    state, vector = made.play()
    checkpoints = made.folder / "run" / "checkpoints"
    for file in checkpoints.glob("round-0003*"):
        file.unlink()
    watch = Watch(made)
    again, same = made.play()
    assert watch.trials == [] and again.stages[0].found == state.stages[0].found
    np.testing.assert_array_equal(same, vector)
    shutil.rmtree(made.folder)
