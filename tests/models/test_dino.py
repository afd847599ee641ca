"""DINO's teacher: centred, sharpened, and slow; its prototypes have length 1 whatever their weights."""

from __future__ import annotations

import math

import pytest
import torch
from lightly.loss import DINOLoss
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from aiseeme_models.errors import InputError
from aiseeme_models.pretext.dino import DINO, DINOOptions
from aiseeme_models.pretext.heads import PrototypeLayer
from aiseeme_models.seeding import generator
from aiseeme_models.training.shared_state import layout_of, load_local, local_tensors
from tests.models.spread import spread_before_and_after


def batch_of(toy_images, count=4):
    return toy_images(count).batch(torch.arange(count))


def test_a_student_sees_all_crops_and_the_teacher_the_global_ones(tiny_task, toy_images, augmentation):
    task = tiny_task("dino", local_crops=3, output_dim=32)
    wide, small, teachers = task.views(batch_of(toy_images), augmentation, generator(1))
    assert (wide.shape, small.shape, teachers.shape) == ((8, 3, 48, 48), (12, 3, 21, 21), (8, 32))
    torch.testing.assert_close(teachers, task.eval().head(task.backbone(wide)).detach())  # the weights are still equal
    assert not teachers.requires_grad


@pytest.mark.parametrize("local_crops", [0, 2])
def test_the_loss_of_a_step_and_the_centre_after_it_are_lightlys(local_crops, tiny_task, toy_images, augmentation):
    task = tiny_task("dino", local_crops=local_crops, output_dim=32, first_teacher_temperature=0.05)
    theirs = DINOLoss(output_dim=32, warmup_teacher_temp=0.05, teacher_temp=0.05)
    for step in range(3):
        views = task.views(batch_of(toy_images), augmentation, generator(step))
        with torch.no_grad():
            crops = [*views[0].unflatten(0, (4, 2)).unbind(1)]
            crops += [*views[1].unflatten(0, (4, local_crops)).unbind(1)] if local_crops else []
            students = [task.head(task.backbone(crop)) for crop in crops]
            expected = theirs(list(views[2].unflatten(0, (4, 2)).unbind(1)), students)
        assert task.loss(views, generator(2)).item() == pytest.approx(expected.item(), abs=1e-5)
        task.after_step(views, 0.0)
        torch.testing.assert_close(task.local.centre, theirs.center.flatten())


def test_the_teachers_temperature_rises_along_a_line_and_then_stays(tiny_task, toy_images, augmentation):
    task = tiny_task("dino", first_teacher_temperature=0.02, teacher_temperature=0.06, teacher_warmup=0.5)
    views = task.views(batch_of(toy_images), augmentation, generator(1))
    risen = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        task.after_step(views, progress)
        risen.append(float(task.teacher_temperature()))
    assert risen == pytest.approx([0.02, 0.04, 0.06, 0.06])
    task.reset_local(generator(1))
    assert float(task.teacher_temperature()) == pytest.approx(0.02)
    assert not task.local.centre.any()


def test_centre_and_progress_outlive_a_round_at_the_site(tiny_task, toy_images, augmentation):
    task, other = tiny_task("dino"), tiny_task("dino")
    task.after_step(task.views(batch_of(toy_images), augmentation, generator(1)), 0.2)
    layout = layout_of(task, "group")
    kept = local_tensors(task, layout)
    assert set(kept) == {"local.centre", "local.progress"}
    load_local(other, layout, kept)
    assert torch.equal(other.local.centre, task.local.centre)
    assert float(other.teacher_temperature()) == float(task.teacher_temperature()) > 0.04


def test_the_chance_loss_of_dino_is_that_of_a_student_that_says_nothing(tiny_task, toy_images, augmentation):
    task = tiny_task("dino", output_dim=32)
    views = task.views(batch_of(toy_images), augmentation, generator(1))
    torch.nn.init.ones_(task.head[-1].weight)  # all prototypes alike
    assert task.loss(views, generator(2)).item() == pytest.approx(math.log(32), abs=1e-5)
    assert task.chance_loss(4) == pytest.approx(math.log(32))


def test_prototypes_are_those_of_a_weight_normalised_layer():
    ours, theirs = PrototypeLayer(8, 5), weight_norm(nn.Linear(8, 5, bias=False))
    theirs.parametrizations.weight.original0.data.fill_(1)  # the gain, which DINO keeps
    theirs.parametrizations.weight.original1.data.copy_(ours.weight.data)
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(x), theirs(x))
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.parametrizations.weight.original1.grad)
    before = ours(x)
    ours.weight.data.mul_(3)
    torch.testing.assert_close(ours(x), before)


def test_crops_that_do_not_fit_are_refused():
    options = {"norm": "batch", "batch_size": 8, "channels": 3}
    DINO.check(DINOOptions(), image_size=32, **options)
    with pytest.raises(InputError, match="dino's local crops are 9 px wide"):
        DINO.check(DINOOptions(), image_size=21, **options)


@pytest.mark.parametrize(("norm", "least", "most"), [("batch", 1.5, 10), ("group-ws", 0.35, 10), ("group", 0, 0.25)])
def test_images_draw_together_with_plain_group_norm_only(norm, least, most, tiny_task, toy_images, augmentation):
    task = tiny_task("dino", norm, local_crops=0, output_dim=64, teacher_temperature=0.04)
    untrained, trained = spread_before_and_after(task, toy_images(64, size=32), augmentation)
    assert least < trained / untrained < most
