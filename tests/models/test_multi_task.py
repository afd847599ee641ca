"""Several tasks on one backbone: each is what it is alone, and nothing of one is lost or counted twice."""

from __future__ import annotations

import math

import numpy as np
import pytest
import safetensors.torch
import torch

from aiseeme_models.errors import InputError
from aiseeme_models.pretext import pretext_tasks
from aiseeme_models.pretext.moco import MoCo
from aiseeme_models.pretext.multi_task import MultiTaskOptions
from aiseeme_models.privacy.patient_gradients import PatientGradients
from aiseeme_models.seeding import generator
from aiseeme_models.training.loop import NonFiniteLoss, heldout_loss, train_round
from aiseeme_models.training.options import TrainingOptions
from aiseeme_models.training.shared_state import flatten, layout_of, load_flat, load_local, local_tensors
from tests.models.small_tasks import SMALL
from tests.models.test_patient_gradients import PATIENTS, norms_of, one_at_a_time
from tests.models.test_pretext import coupling

CPU = torch.device("cpu")
ROTATION, SIMCLR, MOCO = {"task": "rotation"}, {"task": "simclr"}, {"task": "moco", "options": {"queue": 16}}
WEIGHTINGS = ["equal", "uncertainty", "dwa", "self-paced"]


@pytest.fixture
def multi_task(tiny_task):
    def make(*tasks, norm="group", **options):
        return tiny_task("multi-task", norm, tasks=list(tasks), **options)

    return make


def gradient(module):
    """Of all parameters, flat; zeros where one has none."""
    weights = module.parameters()
    return torch.cat([(torch.zeros_like(w) if w.grad is None else w.grad).flatten() for w in weights])


def alone(task, name, tiny_task, norm="group", **options):
    """A task of its own, with the weights that it has among the others of ``task``."""
    single = tiny_task(name, norm, **options)
    single.backbone.load_state_dict(task.backbone.state_dict())
    single.head.load_state_dict(task.head.get_submodule(f"tasks.{name}").state_dict())
    single.local.load_state_dict(task.local.get_submodule(f"tasks.{name}").state_dict())
    single.begin_round()
    return single


@pytest.mark.parametrize("name", [name for name in pretext_tasks if name not in ("multi-task", "rotation")])
def test_loss_and_gradients_are_the_sums_of_those_of_each_task_alone(
    name, multi_task, tiny_task, toy_images, augmentation
):
    options, rows = SMALL.get(name, {}), torch.arange(8)
    task = multi_task(ROTATION, {"task": name, "options": options}, norm="batch").train()
    batch = toy_images(8).batch(rows)
    singles = [alone(task, "rotation", tiny_task, "batch"), alone(task, name, tiny_task, "batch", **options)]
    task.look_at(rows)
    views = task.views(batch, augmentation, generator(1))
    value = task.loss(views, generator(2))
    value.backward()
    views_generator, loss_generator = generator(1), generator(2)
    expected, heads, to_backbone = 0.0, [], torch.zeros(())
    views_of = []
    for single in singles:
        single.train().look_at(rows)
        views_of.append(single.views(batch, augmentation, views_generator))
    for single, own in zip(singles, views_of, strict=True):
        loss = single.loss(own, loss_generator)
        loss.backward()
        expected += loss.item()
        to_backbone = to_backbone + gradient(single.backbone)
        heads.append(gradient(single.head))
    assert value.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(gradient(task.backbone), to_backbone, atol=1e-5, rtol=1e-4)
    for part, wanted in zip(("rotation", name), heads, strict=True):
        torch.testing.assert_close(gradient(task.head.get_submodule(f"tasks.{part}")), wanted, atol=1e-5, rtol=1e-4)
    task.after_step(views, 0.5)
    for single, own in zip(singles, views_of, strict=True):
        single.backbone.load_state_dict(task.backbone.state_dict())
        single.after_step(own, 0.5)
    for part, single in zip(("rotation", name), singles, strict=True):
        for key, tensor in task.local.get_submodule(f"tasks.{part}").state_dict().items():
            torch.testing.assert_close(tensor, single.local.state_dict()[key], atol=1e-5, rtol=1e-4)


def test_the_told_loss_is_the_plain_sum_whatever_the_weights(multi_task, toy_images, augmentation):
    batch = toy_images(4).batch(torch.arange(4))
    told = []
    for weighting in WEIGHTINGS:
        task = multi_task(ROTATION, SIMCLR, weighting=weighting)
        for values in task.head.get_submodule("weighting").parameters():
            torch.nn.init.constant_(values, -3.0)  # the objective itself: 20 sum L - 6
        told.append(task.loss(task.views(batch, augmentation, generator(1)), generator(2)).item())
    assert told == pytest.approx([told[0]] * 4, abs=1e-5)


def test_the_gradient_is_that_of_kendalls_objective(multi_task, tiny_task, toy_images, augmentation):
    task = multi_task(ROTATION, SIMCLR, weighting="uncertainty")
    s = task.head.get_submodule("weighting").values
    with torch.no_grad():
        s.copy_(torch.tensor([0.4, 2.5]))
    batch = toy_images(4).batch(torch.arange(4))
    task.loss(task.views(batch, augmentation, generator(1)), generator(2)).backward()
    random = generator(1)
    expected, to_s = torch.zeros(()), []
    for name, own_s in (("rotation", 0.4), ("simclr", 2.5)):
        single = alone(task, name, tiny_task)
        own = single.loss(single.views(batch, augmentation, random), generator(2))
        own.backward()
        expected = expected + math.exp(-own_s) * single.backbone.conv1.weight.grad
        to_s.append(1 - math.exp(-own_s) * own.item())
    torch.testing.assert_close(task.backbone.conv1.weight.grad, expected, atol=1e-6, rtol=1e-4)
    assert s.grad.tolist() == pytest.approx(to_s, abs=1e-5)


def test_an_objective_that_is_not_finite_is_not_hidden_by_the_told_loss(multi_task, toy_images, augmentation):
    task = multi_task(ROTATION, SIMCLR, weighting="uncertainty")
    torch.nn.init.constant_(task.head.get_submodule("weighting").values, -1000.0)
    with pytest.raises(NonFiniteLoss):
        run(task, toy_images(16), augmentation, 0)


def test_log_variances_cross_the_wire_in_the_head_and_begin_at_zero(multi_task):
    task = multi_task(ROTATION, SIMCLR, weighting="uncertainty")
    (entry,) = [entry for entry in layout_of(task, "group").entries if "weighting" in entry.name]
    assert (entry.name, entry.shape, entry.room, entry.kind) == ("head.weighting.values", (2,), "head", "parameter")
    assert task.head.get_submodule("weighting").values.tolist() == [0.0, 0.0]


def test_what_is_kept_at_a_site_is_what_each_task_keeps_and_the_losses_behind_the_weights(multi_task):
    def kept(*tasks, norm="group", **options):
        task = multi_task(*tasks, norm=norm, **options)
        return set(local_tensors(task, layout_of(task, norm)))

    assert kept(ROTATION, SIMCLR, weighting="uncertainty") == set()
    assert kept(ROTATION, MOCO) == {"local.tasks.moco.queue", "local.tasks.moco.position"}
    of_losses = {"first", "before", "last", "rounds", "running", "steps", "progress"}
    assert kept(ROTATION, SIMCLR, weighting="dwa") == {f"local.weighting.{name}" for name in of_losses}


@pytest.fixture
def _moco_with_a_bank(monkeypatch):
    """A task with one row of a bank for every image."""

    class WithBank(MoCo):
        per_image = ("bank",)
        seen = None

        @classmethod
        def build(cls, backbone, options, norm):
            task = super().build(backbone, options, norm)
            task.local.register_buffer("bank", torch.zeros(0, 3))
            return task

        def look_at(self, indices):
            self.seen = indices

    monkeypatch.setitem(pretext_tasks._entries, "moco", WithBank)


@pytest.mark.usefixtures("_moco_with_a_bank")
def test_banks_have_a_row_for_every_image_and_are_told_which_images_come(multi_task):
    task = multi_task(ROTATION, MOCO)
    layout = layout_of(task, "group")
    assert task.per_image == ("tasks.moco.bank",)
    assert task.local.get_buffer("tasks.moco.bank").shape == (64, 3)
    before = local_tensors(task, layout)
    task.make_room(10)
    assert task.local.get_buffer("tasks.moco.bank").shape == (10, 3)
    load_local(task, layout, before)  # images went: the bank of 64 is left out, the rest is taken
    assert task.local.get_buffer("tasks.moco.bank").shape == (10, 3)
    task.look_at(torch.tensor([4, 2]))
    assert task._tasks[1].seen.tolist() == [4, 2]


def test_a_batch_must_suit_the_most_demanding_task_and_chance_is_known_if_each_ones_is(multi_task):
    location = {"task": "relative-location"}
    assert multi_task(ROTATION, location).minimum_batch == 1
    assert multi_task(ROTATION, SIMCLR).minimum_batch == 2
    assert multi_task(ROTATION, location, norm="batch").minimum_batch == 2
    assert multi_task(ROTATION, location).chance_loss(8) == pytest.approx(math.log(4) + math.log(8))
    assert multi_task(ROTATION, MOCO).chance_loss(8) is None


def test_tasks_are_told_whether_they_are_trained(multi_task):
    task = multi_task(ROTATION, MOCO)
    for mode in (False, True):
        task.train(mode)
        assert [one.training for one in task._tasks] == [mode, mode]
        assert not task.local.get_submodule("tasks.moco.key_encoder.network").training


def run(task, images, augmentation, number, rounds=4, state=None, **options):
    settings = {"batch_size": 8, "lr": 2e-3, "precision": "fp32", "schedule": "constant"} | options
    return train_round(
        task,
        images,
        TrainingOptions(**settings),
        augmentation=augmentation,
        seed=number,
        stage_progress=(number / rounds, (number + 1) / rounds),
        device=CPU,
        optimizer_state=state,
    )


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_stage_that_was_left_in_the_middle_ends_with_the_same_bits(weighting, multi_task, toy_images, augmentation):
    images = toy_images(16, size=32)
    task = multi_task(ROTATION, MOCO, weighting=weighting)
    layout = layout_of(task, "group")
    for number in range(3):
        outcome = run(task, images, augmentation, number)
    weights, state = flatten(task, layout), safetensors.torch.save(outcome.optimizer_state)
    kept = safetensors.torch.save(local_tensors(task, layout))
    run(task, images, augmentation, 3, state=outcome.optimizer_state)

    def resumed(forgotten=""):
        other = multi_task(ROTATION, MOCO, weighting=weighting)
        load_flat(other, layout, weights)
        tensors = safetensors.torch.load(kept)
        for name in tensors:
            if forgotten and name.startswith(forgotten):
                tensors[name].zero_()
        load_local(other, layout, tensors)
        run(other, images, augmentation, 3, state=safetensors.torch.load(state))
        return other

    found = resumed().state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in task.state_dict().items())
    if weighting in ("dwa", "self-paced"):
        assert not np.array_equal(flatten(resumed("local.weighting"), layout), flatten(task, layout))


def test_a_task_that_is_left_out_is_measured_but_not_trained(multi_task, toy_images, augmentation):
    images = toy_images(16, size=32)
    task = multi_task(ROTATION, SIMCLR, weighting="self-paced", weighting_options={"last_threshold": 0.5})
    for number in range(2):
        run(task, images, augmentation, number)
    losses = task.local.get_submodule("weighting")
    task.begin_round()
    relative = (losses.last / losses.first).tolist()
    out = relative.index(max(relative))
    assert sorted(task._weighting.weights) == [0.0, 1.0]
    assert task._weighting.weights[out] == 0.0
    heads = [task.head.get_submodule(f"tasks.{name}") for name in ("rotation", "simclr")]
    before = [torch.cat([weight.detach().flatten() for weight in head.parameters()]) for head in heads]
    outcome = run(task, images, augmentation, 2)
    after = [torch.cat([weight.detach().flatten() for weight in head.parameters()]) for head in heads]
    unchanged = [torch.equal(*one) for one in zip(before, after, strict=True)]
    assert unchanged == [out == 0, out == 1]
    task.begin_round()
    assert outcome.loss == pytest.approx(float(losses.last.sum()), rel=1e-5)
    assert min(losses.last.tolist()) > 0


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_two_tasks_in_one_stage_are_both_learnt_and_no_features_become_one(
    weighting, multi_task, tiny_task, toy_images, augmentation
):
    images = toy_images(48, size=32)
    task = multi_task(ROTATION, SIMCLR, weighting=weighting)

    def look():
        options, found = TrainingOptions(batch_size=16), {}
        for name in ("rotation", "simclr"):
            single = alone(task, name, tiny_task)
            found[name] = heldout_loss(single, images, options, augmentation=augmentation, seed=9, device=CPU)[0]
        with torch.no_grad():
            features = task.eval().backbone(augmentation.plain(images.batch(torch.arange(48))))
        return found, float(features.std(dim=0).norm() / features.mean(dim=0).norm())

    before, untrained = look()
    for number in range(6):
        run(task, images, augmentation, number, batch_size=16, local_epochs=2)
    after, trained = look()
    assert after["rotation"] < 0.9 * before["rotation"]
    assert after["simclr"] < 0.9 * before["simclr"]
    assert trained > 0.5 * untrained


# What private training has to do with it.


def test_tasks_of_one_image_at_a_time_stay_that_together(multi_task, toy_images, augmentation):
    task = multi_task(ROTATION, {"task": "relative-location"}).train()
    assert coupling(task, toy_images(4), augmentation) < 1e-5


@pytest.mark.parametrize(
    ("norm", "tasks"),
    [("group", (ROTATION, {"task": "relative-location"})), ("group-ws", ({"task": "byol"}, ROTATION))],
)
def test_clipped_sums_are_those_of_one_patient_at_a_time(norm, tasks, multi_task, toy_images, augmentation):
    task = multi_task(*tasks, norm=norm)
    views = task.views(toy_images(PATIENTS).pixels, augmentation, generator(2))
    task.to(torch.float64)
    views = tuple(view.double() if view.is_floating_point() else view for view in views)
    expected = one_at_a_time(task, views)
    norms = norms_of(expected)
    bound = float(norms.median())
    task.shared.zero_grad(set_to_none=True)
    _, found = PatientGradients(task.shared).add_clipped(
        lambda: task.loss(views, generator(1)), PATIENTS, clipping="flat", bound=bound
    )
    torch.testing.assert_close(found.double(), norms, rtol=1e-4, atol=0)
    factors = (bound / norms).clamp(max=1)
    for name, weight in task.shared.named_parameters():
        wanted = torch.einsum("b,b...->...", factors, expected[name])
        torch.testing.assert_close(weight.grad.double(), wanted, rtol=1e-4, atol=1e-5)


def test_a_private_step_that_draws_nobody_is_a_step(multi_task):
    multi_task(ROTATION, {"task": "relative-location"}).after_step((), 0.5)


@pytest.mark.parametrize(
    ("tasks", "weighting", "says"),
    [
        ([ROTATION, SIMCLR], "equal", "has simclr, which compares images with others"),
        ([ROTATION, {"task": "relative-location"}], "uncertainty", "no patient's part of a gradient"),
        ([ROTATION, {"task": "relative-location"}], "dwa", "kept without noise"),
        ([ROTATION, {"task": "relative-location"}], "self-paced", "kept without noise"),
    ],
)
def test_what_couples_patients_says_so(tasks, weighting, says):
    options = MultiTaskOptions(tasks=tasks, weighting=weighting)
    assert says in pretext_tasks["multi-task"].privacy_obstacle(options, "group")


def test_independent_tasks_with_equal_weights_have_no_obstacle():
    options = MultiTaskOptions(tasks=[ROTATION, {"task": "relative-location"}])
    assert pretext_tasks["multi-task"].privacy_obstacle(options, "group") is None


def test_log_variances_are_refused_by_the_private_steps_too(multi_task):
    with pytest.raises(InputError, match="no rule for LogVariances"):
        PatientGradients(multi_task(ROTATION, SIMCLR, weighting="uncertainty").shared)
