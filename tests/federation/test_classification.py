"""Labels are learnt over three sites like a pretext task: quorum, checkpoints, the same bits; and no label leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from aiseeme_models.curriculum.stage_tasks import build_task
from aiseeme_models.downstream.classification import predicted
from aiseeme_models.downstream.losses import class_sums, image_losses
from aiseeme_models.errors import InputError, RunFailed
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.training.shared_state import layout_of, load_flat
from client.app import make_client_app
from client.own_head import OWN_HEAD, kept_head
from client.refusals import Refusal
from client.rounds import describe, evaluate
from client.scanning import scan
from client.site import Site
from client.site_config import PolicyOptions
from client.site_home import SiteHome
from client.stage_images import stage_images
from federation_configs.records import Enclosure, unpack_body, unpack_weights
from federation_configs.schema import HoldOut
from federation_configs.site_errors import SiteError
from federation_configs.wire import (
    AssessReply,
    AssessRequest,
    DescribeRequest,
    EvaluateRequest,
    TrainReply,
    TrainRequest,
    told_counts,
)
from server.assessment import assess
from server.classes import over_sites
from server.global_model import new_backbone, start_of_stage
from server.local_grid import LocalGrid
from server.observer import Silent
from server.results import FederatedTest
from server.run_state import RunState, SiteState
from tests.conftest import InProcess, tiny_config, write_pictures

CLASSES = {"stripes": ["stripes"], "blobs": ["blobs"]}
MODES: dict[str, dict[str, Any]] = {
    "finetune": {},
    "linear": {"mode": "linear"},
    "bn-tune": {"mode": "bn-tune", "weights": "inverse"},
    "personal": {"head": "personal"},
    "focal": {"gamma": 2.0, "weights": "effective-number"},
    "balanced": {"sampling": "balanced", "weights": "none"},
    "ccl": {"ccl": {"start": 0.5, "increment": 0.5, "every": 1, "warmup": 1}},
    "static": {"ccl": {"order": "static", "warmup": 0, "difficulties": {"stripes": 0.9, "blobs": 0.1}}},
}


def config_of(
    rounds: int = 3,
    norm: str = "batch",
    backbone: str = "resnet-tiny",
    stage: dict[str, Any] | None = None,
    **options: Any,
):
    asked = {"task": "classification", "rounds": rounds, "batch_size": 6, "lr": 3e-3, "options": {"classes": CLASSES}}
    asked["options"] |= options
    return tiny_config(
        model={"backbone": backbone, "norm": norm},
        curriculum={"stage": [asked | (stage or {})]},
        federation={"min_sites": 3},
        holdout={"test": 0.25, "validation": 0.2},
    )


class Crash(Silent):
    def round_started(self, config, state, round_number, attempt):
        if round_number == 3:
            raise KeyboardInterrupt


def listening(played: InProcess) -> tuple[list[TrainRequest], list[TrainReply]]:
    """What site alpha is asked and answers, as it happens."""
    asked: list[TrainRequest] = []
    answered: list[TrainReply] = []

    def hear(message, reply):
        if message.metadata.message_type.startswith("train") and not reply.has_error():
            asked.append(unpack_body(message.content, TrainRequest, weights=True))
            answered.append(unpack_body(reply.content, TrainReply, weights=True))
        return reply

    played.alter = {"alpha": hear}
    return asked, answered


def loaded(config, vector):
    stage = config.curriculum.stage[0]
    task = build_task(stage.task, new_backbone(config), stage.options, config.model.norm)
    load_flat(task, layout_of(task, config.model.norm), vector)
    return task.eval()


@pytest.mark.parametrize("name", MODES)
def test_it_resumes_in_the_middle_to_the_same_bits(name, federation):
    config = config_of(**MODES[name])
    state, whole = federation(config, where="whole").play()
    assert all(site.answered == 3 for site in state.sites.values()) and np.isfinite(whole).all()
    crashed = federation(config, where="crashed")
    with pytest.raises(KeyboardInterrupt):
        crashed.play(Crash())
    again, resumed = crashed.play()
    np.testing.assert_array_equal(whole, resumed)
    assert again.stages == state.stages


def test_it_learns_what_the_sites_know(federation):
    config = config_of(rounds=25, norm="group", backbone="tiny", stage={"lr": 0.01})
    played = federation(config)
    state, vector = played.play()
    task, losses = loaded(config, vector), state.stages[0].losses
    assert losses[0] == pytest.approx(np.log(2), abs=0.1) and losses[-1] < 0.6
    preset = config.images.resolved_preset
    plain = BatchAugmentation(preset.augmentation, preset.mean, preset.std).plain
    right = []
    for site in played.sites:
        data = stage_images(site, config, 0, "test")
        guess = task.probabilities(plain(data.images.batch(torch.arange(len(data.images))))).argmax(dim=1)
        right += (guess == data.targets).tolist()
    assert len(right) > 12 and np.mean(right) > 0.9


@pytest.mark.parametrize("mode", ["linear", "bn-tune"])
def test_only_what_the_mode_names_is_trained(mode, federation):
    config = config_of(rounds=2, mode=mode)
    start = start_of_stage(config, 0, None)
    _, vector = federation(config).play()
    changed = {
        entry.name
        for entry, here in zip(start.layout.entries, start.layout.slices, strict=True)
        if not np.array_equal(vector[here], start.vector[here])
    }
    norms = {entry.name for entry in start.layout.entries if "bn" in entry.name or "downsample.1" in entry.name}
    assert changed == {"head.weight", "head.bias"} | (norms if mode == "bn-tune" else set())


def test_a_personal_head_is_trained_at_its_site_and_never_leaves(federation):
    config = config_of(rounds=2, head="personal", stage={"choose": "last"})
    start = start_of_stage(config, 0, None)
    head = slice(start.layout.backbone_size, None)
    played = federation(config)
    sent: list[Any] = []

    def hear(message, reply):
        if message.metadata.message_type.startswith("train") and not reply.has_error():
            sent.append(unpack_weights(reply.content, start.layout.size))
        return reply

    played.alter = {site.name: hear for site in played.sites}
    state, vector = played.play()
    assert len(sent) == 6
    for weights in sent:
        np.testing.assert_array_equal(weights[head], start.vector[head])
        assert not np.array_equal(weights[: head.start], start.vector[: head.start])
    np.testing.assert_array_equal(vector[head], start.vector[head])
    kept = [kept_head(site, config, "run")[OWN_HEAD].numpy() for site in played.sites]
    assert all(not np.array_equal(own, start.vector[head]) for own in kept)
    assert not np.array_equal(kept[0], kept[1])
    assert state.stages[0].heldout  # measured with each site's own head


def test_personal_heads_learn_what_each_site_alone_means(federation):
    """Two sites that call the same things by each other's names: no head for all could know both."""
    steady = {"lr": 0.01, "local_epochs": 4}
    config = config_of(rounds=25, norm="group", backbone="tiny", head="personal", stage=steady)
    played = federation(config)
    site, other = played.sites[0], {"stripes": "blobs", "blobs": "stripes"}
    rows = [replace(row, label=other.get(row.label, row.label)) for row in site.rows]
    played.sites[0] = replace(site, rows=rows, _opened={})
    _, vector = played.play()
    found = assess(config, vector, played.sites, run="run", device="cpu")
    assert found.head == "personal" and set(found.sites) == {"alpha", "beta", "gamma"}
    assert all(score.balanced_accuracy > 0.85 for score in found.sites.values())
    common = config_of(rounds=12, norm="group", backbone="tiny", stage=steady)
    again = federation(common, where="common")
    again.sites[0] = replace(again.sites[0], rows=rows, _opened={})
    _, vector = again.play()
    one_for_all = assess(common, vector, again.sites, run="run", device="cpu")
    assert min(score.balanced_accuracy for score in one_for_all.sites.values()) < 0.5


def test_a_site_without_a_head_of_its_own_is_not_measured(federation):
    config = config_of(rounds=1, head="personal")
    site = max(federation(config).sites, key=lambda one: len(one.rows_of("validation", config.holdout)))
    model = start_of_stage(config, 0, None)
    place = {"round": 1, "stage": 0, "round_in_stage": 0, "layout_sha256": model.layout.digest}
    with pytest.raises(Refusal) as refused:
        evaluate(site, EvaluateRequest(run="run", config=config, **place), model.vector)
    assert refused.value.code == SiteError.NO_OWN_HEAD


def test_classes_weigh_what_they_are_over_all_sites(federation):
    config = config_of(rounds=1)
    played = federation(config)
    asked, _ = listening(played)
    state, _ = played.play()
    told = []
    for site in played.sites:
        counts = stage_images(site, config, 0, "train").targets.bincount(minlength=2).tolist()
        known = told_counts(counts)
        told.append(SiteState(images=sum(counts), classes=None if known is None else list(known)))
        assert state.sites[site.name].images == sum(counts)
        assert state.sites[site.name].classes == told[-1].classes
    assert state.stages[0].class_images == list(asked[0].class_images) == over_sites(told, 2)


def test_images_without_a_known_label_are_left_out(federation):
    config = config_of(rounds=1)
    played = federation(config)
    site = played.sites[1]
    rows = [replace(row, label="other" if number % 3 == 0 else row.label) for number, row in enumerate(site.rows)]
    played.sites[1] = replace(site, rows=rows, _opened={})
    kept = sum(row.label in CLASSES for row in played.sites[1].rows_of("train", config.holdout))
    state, _ = played.play()
    assert state.sites["beta"].images == kept < len(site.rows_of("train", config.holdout))


def test_a_site_without_labels_says_so_and_the_others_are_not_enough(federation):
    played = federation(config_of(rounds=1))
    site = played.sites[0]
    played.sites[0] = replace(site, rows=[replace(row, label=None) for row in site.rows], _opened={})
    with pytest.raises(RunFailed, match="too few labels"):
        played.play()


def test_a_site_of_one_class_takes_part(federation):
    config = config_of(rounds=2)
    played = federation(config)
    site = played.sites[2]
    played.sites[2] = replace(site, rows=[replace(row, label="blobs") for row in site.rows], _opened={})
    state, vector = played.play()
    assert state.sites["gamma"].answered == 2 and np.isfinite(vector).all()
    assert state.sites["gamma"].classes is None and state.sites["beta"].classes is not None


def test_a_share_of_the_labelled_patients_is_the_same_wherever_they_are(federation):
    half, whole = config_of(labels=0.5), config_of()
    for site in federation(half).sites:
        some, rows = stage_images(site, half, 0, "train"), site.rows_of_images(half.images, "train", half.holdout)
        assert len(some.images) < len(stage_images(site, whole, 0, "train").images) == len(rows)
        renamed = replace(site, rows=[replace(row, group=f"x{row.group[::-1]}") for row in site.rows], _opened={})
        torch.testing.assert_close(stage_images(renamed, half, 0, "train").targets, some.targets)
        everyone = torch.arange(len(some.images))
        torch.testing.assert_close(
            stage_images(renamed, half, 0, "train").images.batch(everyone), some.images.batch(everyone)
        )
    assert len(stage_images(site, half, 0, "test").images) == len(stage_images(site, whole, 0, "test").images)


@pytest.mark.parametrize("sampling", ["shuffled", "balanced"])
def test_where_few_have_labels_a_batch_is_all_of_them(sampling, federation):
    config = config_of(rounds=1, labels=0.6, sampling=sampling, stage={"batch_size": 64, "local_epochs": 3})
    played = federation(config)
    _, answered = listening(played)
    state, vector = played.play()
    assert all(0 < site.images < 64 and site.answered == 1 for site in state.sites.values())
    assert answered[0].steps == 3 and np.isfinite(vector).all()


def test_a_class_wise_curriculum_lets_in_what_the_sites_found_easy(federation):
    config = config_of(rounds=4, ccl={"start": 0.5, "increment": 0.5, "every": 2, "warmup": 1})
    played = federation(config)
    asked, answered = listening(played)
    state, _ = played.play()
    assert [sum(one.admitted) for one in asked] == [2, 1, 1, 2]
    assert len(state.stages[0].difficulties) == 2 and len(answered[0].class_losses) == 2
    own = stage_images(played.sites[0], config, 0, "train").targets.bincount(minlength=2).tolist()
    assert [loss is None for loss in answered[0].class_losses] == [count < 5 for count in own]
    assert all(loss is None or 0 < loss < 5 for loss in answered[0].class_losses)


def test_the_difficulty_of_a_class_is_its_mean_loss_over_all_sites(federation):
    """With a rate of nothing the losses of a round are those of the weights it began with."""
    config = config_of(rounds=1, mode="linear", norm="group", ccl={}, stage={"lr": 1e-12, "optimizer": "sgd"})
    played = federation(config)
    state, _ = played.play()
    task = loaded(config, start_of_stage(config, 0, None).vector)
    preset = config.images.resolved_preset
    plain = BatchAugmentation(preset.augmentation, preset.mean, preset.std).plain
    sums, counts = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.long)
    for site in played.sites:
        data = stage_images(site, config, 0, "train")
        order = torch.arange(len(data.images))
        with torch.no_grad():
            logits = task.head(task.backbone(plain(data.images.batch(order))))
        more, many = class_sums(image_losses(logits, data.targets), data.targets, 2)
        sums, counts = sums + more, counts + many
    # A last incomplete batch of a site is dropped, so that not every image counts.
    assert state.stages[0].difficulties == pytest.approx((sums / counts).tolist(), rel=0.05)


def test_the_best_round_by_held_out_loss_is_what_a_stage_ends_with(federation):
    steady = {"schedule": "constant", "lr": 0.02}
    config = config_of(rounds=8, norm="group", backbone="tiny", stage=steady | {"choose": "best"})
    state, vector = federation(config, where="best").play()
    stage = state.stages[0]
    assert len(stage.heldout) == 8 and stage.best_loss == min(stage.heldout)
    assert stage.best_round == 1 + stage.heldout.index(min(stage.heldout)) < 8
    shorter = config_of(rounds=stage.best_round, norm="group", backbone="tiny", stage=steady)
    np.testing.assert_array_equal(vector, federation(shorter, where="last").play()[1])

    class Late(Silent):
        def round_started(self, config, state, round_number, attempt):
            if round_number == 8:
                raise KeyboardInterrupt

    crashed = federation(config, where="crashed")
    with pytest.raises(KeyboardInterrupt):
        crashed.play(Late())
    assert len(list((crashed.folder / "run" / "best").iterdir())) <= 3
    again, resumed = crashed.play()
    np.testing.assert_array_equal(vector, resumed)
    assert again.stages == state.stages and not (crashed.folder / "run" / "best").exists()


def test_no_label_is_in_any_answer(federation):
    config = config_of(rounds=2, ccl={}, stage={"stop": "plateau", "patience": 9})
    played = federation(config)
    seen: list[bytes] = []

    def keep(message, reply):
        for record in reply.content.values():
            seen.append(repr(dict(record)).encode() if not hasattr(record, "numpy_ndarrays") else b"")
        return reply

    played.alter = {site.name: keep for site in played.sites}
    state, _ = played.play()
    assert state.stages[0].heldout and len(seen) > 6
    assert not [text for text in seen if b"stripes" in text or b"blobs" in text]


@pytest.mark.parametrize("small", [0, 1, 4])
@pytest.mark.parametrize("others", [(40,), (20, 20), (5, 100), (4, 100)])
def test_of_a_small_class_nothing_follows_from_what_is_told(small, others):
    """Were the others told, their sum and the rule would tell it: of such a site no class is told."""
    assert told_counts([small, *others]) is None
    assert told_counts([30, 40, 5]) == (30, 40, 5)


def test_a_site_that_does_not_tell_has_classes_as_the_others_do():
    telling = [SiteState(images=90, classes=[60, 20, 10]), SiteState(images=10, classes=[5, 5, 0])]
    assert over_sites(telling, 3) == [65, 25, 10]
    silent = SiteState(images=50, classes=None)
    assert over_sites([*telling, silent], 3) == [97, 37, 15]
    assert over_sites([silent, silent], 2) == [50, 50]
    assert over_sites([SiteState(), SiteState()], 2) is None


def test_a_loss_on_a_handful_of_labelled_images_is_not_measured(federation):
    config = config_of(rounds=1)
    played = federation(config)
    site = played.sites[2]
    few = {row.content for row in site.rows_of("validation", config.holdout)[:3]}
    rows = [
        row if row.content in few or number % 2 else replace(row, label=None) for number, row in enumerate(site.rows)
    ]
    held_out = {row.content for row in site.rows_of("validation", config.holdout)} - few
    rows = [replace(row, label=None) if row.content in held_out else row for row in rows]
    played.sites[2] = replace(site, rows=rows, _opened={})
    model = start_of_stage(config, 0, None)
    place = {"round": 1, "stage": 0, "round_in_stage": 0, "layout_sha256": model.layout.digest}
    with pytest.raises(Refusal) as refused:
        evaluate(played.sites[2], EvaluateRequest(run="run", config=config, **place), model.vector)
    assert refused.value.code == SiteError.NO_IMAGES
    none = replace(site, rows=[replace(row, label="x") for row in site.rows], _opened={})
    with pytest.raises(Refusal) as refused:
        describe(none, DescribeRequest(run="run", config=config))
    assert refused.value.code == SiteError.NO_LABELS


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"classes": {"one": ["a"]}}, "options.classes"),
        ({"classes": {"one": ["a"], "two": ["b", "a"]}}, "'a' means both 'one' and 'two'"),
        ({"classes": {"one": [], "two": ["b"]}}, "options.classes.one"),
        ({"weights": "squared"}, "unknown class weighting 'squared'"),
        ({"labels": 0.0}, "options.labels"),
        ({"ccl": {"order": "static"}}, "give them"),
        ({"ccl": {"order": "static", "difficulties": {"stripes": 1.0}}}, "one of each class: stripes, blobs"),
        ({"mode": "norms"}, "options.mode"),
        ({"head": "own"}, "options.head"),
        ({"head": "personal", "stage": {"choose": "best"}}, "set choose = 'last'"),
        ({"head": "personal", "stage": {"lr": "auto"}}, "give lr"),
        ({"column": "patient_id"}, "says whose an image is"),
        ({"stage": {"warmup": 0.1}, "ccl": {}}, "leave warmup at 0"),
        ({"stage": {"schedule": "one-cycle"}, "ccl": {}}, "leave warmup at 0"),
    ],
)
def test_what_cannot_be_is_said_when_the_configuration_is_read(options, says):
    with pytest.raises(InputError, match=says):
        config_of(**options)


def test_it_stands_alone_and_without_privacy():
    alone = {"task": "classification", "rounds": 1, "batch_size": 6, "options": {"classes": CLASSES}}
    with pytest.raises(InputError, match="give it a run of its own"):
        tiny_config(curriculum={"stage": [{"task": "rotation", "rounds": 1, "batch_size": 6}, alone]})
    with pytest.raises(InputError, match="not accounted for with labels"):
        tiny_config(
            curriculum={"stage": [alone]},
            privacy={"noise_multiplier": 1.0, "max_grad_norm": 1.0, "delta": 1e-5},
        )


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> tuple[InProcess, RunState, np.ndarray, FederatedTest]:
    """A classifier of two hospitals with test patients enough, and one with a few: what was told of it."""
    root = tmp_path_factory.mktemp("tested")
    home = SiteHome(root / "home")
    config = config_of(rounds=4, norm="group", backbone="tiny", stage={"lr": 0.02})
    sites = []
    for number, (name, count) in enumerate({"alpha": 300, "beta": 340, "gamma": 40}.items()):
        scanned = scan(write_pictures(root / name, count, seed=20 + number), home, config.images.pipeline)
        sites.append(Site(name, scanned.root, scanned.rows, home.store, root / "sites" / name))
    played = InProcess(config, root, sites)
    loop = played.loop()
    state, vector = loop.play()
    return played, state, vector, loop.tested


def exact(played: InProcess, vector: np.ndarray, *names: str) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and true columns of the test images of some sites, as nobody but those sites may see them."""
    task, preset = loaded(played.config, vector), played.config.images.resolved_preset
    plain = BatchAugmentation(preset.augmentation, preset.mean, preset.std).plain
    found, truth = [], []
    for site in played.sites:
        if site.name in names:
            data = stage_images(site, played.config, 0, "test")
            found.append(predicted(task, data.images, plain, device="cpu"))
            truth.append(data.targets.numpy())
    return np.concatenate(found), np.concatenate(truth)


def test_the_sites_test_it_on_their_own_patients_and_the_exact_figures_lie_within(tested):
    played, _, vector, told = tested
    probabilities, truth = exact(played, vector, "alpha", "beta")
    assert told.sites == {
        name: len(exact(played, vector, name)[1]) for name in ("alpha", "beta")
    }  # gamma has too few to tell of
    score = told.score
    balanced = balanced_accuracy_score(truth, probabilities.argmax(axis=1))
    assert score.balanced_accuracy.low <= balanced <= score.balanced_accuracy.high
    assert score.macro_auc.value == pytest.approx(roc_auc_score(truth, probabilities[:, 1]), abs=0.02)
    assert {name: one.images for name, one in score.per_class.items()} == dict(
        zip(sorted(CLASSES), np.bincount(truth).tolist(), strict=True)
    )


def test_a_run_that_was_done_is_tested_again_when_it_is_gone_on_with(tested):
    played, _, vector, told = tested
    again = played.loop()
    state, same = again.play()
    assert state.finished and again.tested == told
    np.testing.assert_array_equal(same, vector)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda classes: classes[:1] * 3, "3 classes; there are 2"),
        (lambda classes: [classes[0] | {"images": 10_000}, classes[1]], "more images than it has"),
        (lambda classes: [classes[0] | {"positive": [[7, 0.5]]}, classes[1]], "not as many as its images"),
        (lambda classes: [classes[0] | {"recognised": None}, classes[1]], "what became of the images"),
        (lambda classes: [{**classes[0], "images": None, "positive": None}, classes[1]], "does not count"),
    ],
)
def test_impossible_answers_of_a_site_do_not_count(tested, tmp_path, change, says):
    played, _, _, told = tested
    notes: list[str] = []

    def lie(message, reply):
        if message.metadata.message_type == "query.assess":
            body = json.loads(unpack_body(reply.content, AssessReply).model_dump_json())
            body["classes"] = change(body["classes"])
            reply.content.config_records["body"] = ConfigRecord({"json": json.dumps(body)})
        return reply

    class Noting(Silent):
        def note(self, text):
            notes.append(text)

    lying = replace(played, alter={"alpha": lie})
    loop = lying.loop(Noting())
    loop.play()
    assert list(loop.tested.sites) == ["beta"] and set(told.sites) == {"alpha", "beta"}
    assert any(note.startswith("alpha did not test") and says in note for note in notes), notes


def test_at_a_real_site_each_test_is_in_the_ledger_and_their_number_a_day_is_limited(asked):
    config = config_of(rounds=1, norm="group", backbone="tiny").model_copy(
        update={"holdout": HoldOut(test=0.5, validation=0.1)}
    )
    model = start_of_stage(config, 0, None)
    place = {"round": 1, "stage": 0, "round_in_stage": 0, "layout_sha256": model.layout.digest}

    def verdict() -> SiteError | None:
        wanted = AssessRequest(run="run-1", config=config, **place)
        content = asked.signer.pack("assess", wanted, site="alpha", valid_s=600.0, beside=Enclosure(model.vector))
        grid = LocalGrid(make_client_app(lambda context: asked.site), 1)
        (reply,) = grid.pull_messages(grid.push_messages([Message(content, 2, "query.assess", ttl=600, group_id="1")]))
        return SiteError(reply.error.code) if reply.has_error() else None

    asked.set_gate(PolicyOptions())
    assert verdict() == SiteError.LABELS_NOT_ALLOWED  # which a hospital must say yes to
    asked.set_gate(PolicyOptions(label_columns=("device",)))
    assert verdict() == SiteError.LABELS_NOT_ALLOWED
    asked.set_gate(PolicyOptions(label_columns=("label",), max_comparisons_per_day=1))
    assert [verdict(), verdict()] == [None, SiteError.TOO_MANY_COMPARISONS]
    asked.set_gate(PolicyOptions(label_columns=("label",), tasks=("simclr",)))
    assert verdict() == SiteError.TASK_NOT_ALLOWED
    entries = [(kind, fields.get("what"), fields.get("images")) for kind, fields in asked.entries()]
    tested = len(asked.site.rows_of("test", config.holdout))
    assert entries[4:7] == [
        ("asked", "assess", None),
        ("started", "assess", tested),
        ("answered", "assess", tested),
    ]
