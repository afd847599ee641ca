"""Every pretext task keeps its promises: what it couples, what it changes, that it can be learnt."""

from __future__ import annotations

import math

import pytest
import torch

from aiseeme_models.errors import InputError
from aiseeme_models.pretext import pretext_tasks
from aiseeme_models.pretext.barlow_twins import BarlowTwins, BarlowTwinsOptions
from aiseeme_models.pretext.byol import BYOL, BYOLOptions
from aiseeme_models.pretext.moco import MoCo, MoCoOptions
from aiseeme_models.pretext.moco_v1 import MoCoV1, MoCoV1Options
from aiseeme_models.pretext.patches import cut_patches
from aiseeme_models.pretext.relative_location import RelativeLocation, RelativeLocationOptions
from aiseeme_models.pretext.simclr import SimCLR, SimCLROptions
from aiseeme_models.pretext.vicreg import VICReg, VICRegOptions
from aiseeme_models.seeding import generator
from aiseeme_models.training.loop import heldout_loss, train_round
from aiseeme_models.training.options import TrainingOptions
from tests.models.small_tasks import SMALL, required, toy_side
from tests.models.spread import spread_before_and_after

CPU = torch.device("cpu")
TASKS = list(pretext_tasks)
NORMS = ["group", "group-ws", "batch", "batch-local"]


def test_the_tasks_are_registered():
    names = "rotation relative-location jigsaw masked colourisation simclr moco moco-v1 npid swav deepcluster byol"
    names += " simsiam barlow-twins vicreg dino"
    assert set(names.split()) <= set(pretext_tasks)


def coupling(task, images, augmentation) -> float:
    """How far the loss is from a sum over two images: ``L(a,b) + L(a',b') - L(a',b) - L(a,b')``."""
    a, b, other_a, other_b = (images.batch(torch.tensor([index])) for index in range(4))

    def loss(first, second):
        views = task.views(torch.cat([first, second]), augmentation, generator(1))
        return task.loss(views, generator(2)).item()

    return abs(loss(a, b) + loss(other_a, other_b) - loss(other_a, b) - loss(a, other_b))


def later_influence(task_factory, images, augmentation) -> float:
    """How much an image of one step changes another image's loss in the next step, the weights being equal."""
    losses = []
    for index in (0, 1):
        task = task_factory()
        step_without_training(task, images.batch(torch.tensor([index, 3])), torch.tensor([0, 3]), augmentation)
        task.look_at(torch.tensor([4, 5]))
        views = task.views(images.batch(torch.tensor([4, 5])), augmentation, generator(2))
        losses.append(task.loss(views, generator(3)).item())
    return abs(losses[0] - losses[1])


def step_without_training(task, batch, rows, augmentation) -> None:
    """A step of the training loop that leaves the weights as they are: queues and banks take in its images."""
    task.look_at(rows)
    views = task.views(batch, augmentation, generator(1))
    task.loss(views, generator(1))
    task.after_step(views, 0.0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", TASKS)
def test_a_task_says_that_it_decomposes_only_where_images_do_not_touch_each_other(
    name, norm, tiny_task, toy_images, augmentation
):
    images = toy_images(6)
    options = SMALL.get(name, {})
    task = tiny_task(name, norm, **options).train()
    touched = coupling(task, images, augmentation)
    # Not in training mode: here only what a task itself carries on is looked at, not batch norm's statistics.
    later = later_influence(lambda: tiny_task(name, norm, **options).eval(), images, augmentation)
    if task.decomposes_per_image(norm):
        assert touched < 1e-5
        assert later == 0
    else:
        assert max(touched, later) > 1e-4


def test_a_queue_alone_couples_the_images_of_different_steps(tiny_task, toy_images, augmentation):
    images = toy_images(6)
    assert coupling(tiny_task("moco", queue=64).train(), images, augmentation) < 1e-5
    assert later_influence(lambda: tiny_task("moco", queue=64), images, augmentation) > 1e-4


@pytest.mark.parametrize("name", TASKS)
def test_the_rows_of_an_image_stand_together(name, tiny_task, toy_images, augmentation):
    images = toy_images(4)
    task = tiny_task(name)
    batch = images.batch(torch.arange(4))
    changed = batch.clone()
    changed[2] = 255 - changed[2]
    for view, other in zip(
        task.views(batch, augmentation, generator(1)), task.views(changed, augmentation, generator(1)), strict=True
    ):
        assert len(view) % 4 == 0
        rows = len(view) // 4
        differs = (view != other).flatten(1).any(dim=1) if view.ndim > 1 else view != other
        assert not bool(differs[: 2 * rows].any())
        assert not bool(differs[3 * rows :].any())
        if view.is_floating_point():
            assert bool(differs[2 * rows : 3 * rows].all())


def test_rotation_shows_every_image_in_four_turns(tiny_task, toy_images, augmentation):
    batch = toy_images(3).batch(torch.arange(3))
    inputs, targets = tiny_task("rotation").views(batch, augmentation, generator(1))
    assert targets.tolist() == [0, 1, 2, 3] * 3
    for image in range(3):
        for turn in range(4):
            assert torch.equal(inputs[4 * image + turn], inputs[4 * image].rot90(turn, dims=(1, 2)))


def test_relative_location_cuts_a_patch_out_of_every_cell():
    images = torch.arange(2 * 48 * 48).float().view(2, 1, 48, 48)  # every pixel says where it is
    patches = cut_patches(images, generator(1)).view(2, 9, 12, 12)
    for image in range(2):
        for cell in range(9):
            first = int(patches[image, cell, 0, 0]) - image * 48 * 48
            row, column = divmod(first, 48)
            assert 0 <= row - cell // 3 * 16 <= 4
            assert 0 <= column - cell % 3 * 16 <= 4
            assert torch.equal(patches[image, cell], images[image, 0, row : row + 12, column : column + 12])


@pytest.mark.parametrize(
    ("name", "expected"),
    [("rotation", math.log(4)), ("relative-location", math.log(8)), ("jigsaw", math.log(100))],
)
def test_the_chance_loss_is_the_loss_of_a_head_that_says_nothing(name, expected, tiny_task, toy_images, augmentation):
    task = tiny_task(name)
    last = [layer for layer in task.head.modules() if isinstance(layer, torch.nn.Linear)][-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    views = task.views(toy_images(5).batch(torch.arange(5)), augmentation, generator(1))
    assert task.loss(views, generator(2)).item() == pytest.approx(expected, abs=1e-5)
    assert task.chance_loss(5) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["simclr", "barlow-twins"])
def test_the_chance_loss_of_what_compares_two_views_is_that_of_equal_projections(
    name, tiny_task, toy_images, augmentation
):
    task = tiny_task(name)
    torch.nn.init.zeros_(task.head[-1].weight)
    views = task.views(toy_images(6).batch(torch.arange(6)), augmentation, generator(1))
    assert task.loss(views, generator(2)).item() == pytest.approx(task.chance_loss(6), abs=1e-4)


def test_moco_replaces_its_oldest_keys_in_turn(tiny_task, toy_images, augmentation):
    task = tiny_task("moco", queue=8)
    before = task.local.queue.clone()
    batch = toy_images(6).batch(torch.arange(6))
    views = task.views(batch, augmentation, generator(1))
    task.after_step(views, 0.0)
    assert torch.equal(task.local.queue, torch.cat([views[-1], before[6:]]))
    task.after_step(views, 0.0)  # 6 more: wraps around
    assert torch.equal(task.local.queue, torch.cat([views[-1][2:], views[-1][4:6], views[-1][:2]]))
    assert int(task.local.position) == 4


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("name", ["moco", "moco-v1", "byol", "dino"])
def test_momentum_networks_average_the_online_network_and_restart_from_it(
    name, norm, tiny_task, toy_images, augmentation
):
    task = tiny_task(name, norm, momentum=0.9)
    followed = task.local.get_submodule(task.rederived[0]).network
    online = dict(task.backbone.state_dict())
    start = {key: value.clone() for key, value in online.items()}
    with torch.no_grad():
        for tensor in online.values():
            tensor.add_(1)
    task.after_step(task.views(toy_images(4).batch(torch.arange(4)), augmentation, generator(1)), 0.0)
    for key, value in followed[0].state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.9 * start[key] + 0.1 * online[key])
    task.begin_round()
    assert all(torch.equal(value, online[key]) for key, value in followed[0].state_dict().items())
    assert not any(weight.requires_grad for weight in task.local.parameters())
    assert not task.train().local.get_submodule(task.rederived[0]).network.training


@pytest.mark.parametrize("name", ["byol", "dino"])
def test_the_momentum_of_what_is_not_contrasted_ends_at_one(name, tiny_task, toy_images, augmentation):
    task = tiny_task(name)
    target = task.local.get_submodule(task.rederived[0])
    before = target.network[0].conv1.weight.clone()
    with torch.no_grad():
        task.backbone.conv1.weight.add_(1)
    task.after_step(task.views(toy_images(2).batch(torch.arange(2)), augmentation, generator(1)), 1.0)
    assert torch.equal(target.network[0].conv1.weight, before)


@pytest.mark.parametrize("name", TASKS)
def test_every_shared_parameter_gets_a_gradient_and_no_local_one_does(name, tiny_task, toy_images, augmentation):
    task = tiny_task(name, **SMALL.get(name, {}))
    views = task.views(toy_images(4).batch(torch.arange(4)), augmentation, generator(1))
    task.loss(views, generator(2)).backward()
    assert all(weight.grad is not None for weight in task.shared.parameters())
    assert all(weight.grad is None for weight in task.local.parameters())


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("name", TASKS)
def test_a_task_lowers_its_loss_on_images_that_it_suits(name, norm, tiny_task, toy_images, augmentation):
    if norm in pretext_tasks[name].collapses_with:
        pytest.skip("refused when the configuration is read")
    images = toy_images(64, size=toy_side(name))
    task = tiny_task(name, norm, **SMALL.get(name, {}))
    options = TrainingOptions(batch_size=16, local_epochs=8, lr=2e-3, schedule="constant")

    def look() -> float:
        return heldout_loss(task, images, options, augmentation=augmentation, seed=9, device=CPU)[0]

    for _ in range(4):  # queues and banks are filled first: random negatives are easier than real ones
        task.eval().begin_round()
        for rows in torch.arange(64).split(16):
            step_without_training(task, images.batch(rows), rows, augmentation)
    before = look()
    train_round(task, images, options, augmentation=augmentation, seed=2, stage_progress=(0.0, 1.0), device=CPU)
    after = look()
    assert after < 0.9 * before
    chance = task.chance_loss(16)
    assert chance is None or after < chance


def test_byol_keeps_images_apart_although_a_constant_would_have_the_lowest_loss(tiny_task, toy_images, augmentation):
    untrained, trained = spread_before_and_after(tiny_task("byol", "batch"), toy_images(64, size=32), augmentation)
    assert trained > 0.5 * untrained


def test_byol_without_batch_statistics_keeps_images_further_apart_with_standardised_weights(
    tiny_task, toy_images, augmentation
):
    """It is refused with plain group norm; with standardised weights it shrinks less, though it shrinks."""
    images = toy_images(64, size=32)
    untrained, plain = spread_before_and_after(tiny_task("byol", "group"), images, augmentation)
    untrained_ws, standardised = spread_before_and_after(tiny_task("byol", "group-ws"), images, augmentation)
    assert standardised / untrained_ws > plain / untrained


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", TASKS)
def test_norms_with_which_a_task_collapses_are_refused_and_no_others(name, norm):
    kind = pretext_tasks[name]

    def check():
        kind.check(kind.options_type(**required(name)), norm=norm, batch_size=64, image_size=224, channels=3)

    if norm in kind.collapses_with:
        with pytest.raises(InputError, match=f"{name} collapses with model.norm = '{norm}'"):
            check()
    else:
        check()


def test_impossible_combinations_are_refused_with_what_would_be_right():
    with pytest.raises(InputError, match="queue = 96"):
        MoCo.check(MoCoOptions(queue=100), norm="group", batch_size=48, image_size=48, channels=3)
    MoCo.check(MoCoOptions(queue=96), norm="group", batch_size=48, image_size=48, channels=3)
    with pytest.raises(InputError, match="at least 48"):
        RelativeLocation.check(RelativeLocationOptions(), norm="group", batch_size=8, image_size=47, channels=1)
    RelativeLocation.check(RelativeLocationOptions(), norm="group", batch_size=8, image_size=48, channels=1)
    with pytest.raises(InputError, match="at least 2"):
        SimCLR.check(SimCLROptions(), norm="group", batch_size=1, image_size=48, channels=3)
    for kind in (BarlowTwins, VICReg):
        with pytest.raises(InputError, match="at least 2"):
            kind.check(kind.options_type(), norm="group", batch_size=1, image_size=48, channels=3)
        kind.check(kind.options_type(), norm="group", batch_size=2, image_size=48, channels=3)
    with pytest.raises(InputError, match="queue = 96"):
        MoCoV1.check(MoCoV1Options(queue=100), norm="group", batch_size=48, image_size=48, channels=3)
    with pytest.raises(InputError, match="group-ws"):
        BYOL.check(BYOLOptions(), norm="group", batch_size=8, image_size=48, channels=3)
    BYOL.check(BYOLOptions(), norm="group-ws", batch_size=8, image_size=48, channels=3)


def test_the_defaults_are_those_for_small_data():
    assert SimCLROptions().temperature == 0.2
    assert (MoCoOptions().queue, MoCoOptions().momentum, MoCoOptions().temperature) == (1024, 0.99, 0.2)
    assert (MoCoV1Options().queue, MoCoV1Options().momentum, MoCoV1Options().temperature) == (1024, 0.99, 0.07)
    assert BarlowTwinsOptions().redundancy == 5e-3
    assert (VICRegOptions().invariance, VICRegOptions().variance, VICRegOptions().covariance) == (25, 25, 1)


def test_moco_v1_is_moco_with_a_linear_projector(tiny_task):
    assert isinstance(tiny_task("moco-v1"), MoCo)
    assert [tuple(weight.shape) for weight in tiny_task("moco-v1").head.parameters()] == [(128, 128), (128,)]
    assert len(list(tiny_task("moco").head.parameters())) == 4
