"""Tasks that do not look at whole images leave a backbone with the statistics of whole images."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from aiseeme_models.analysis.collapse import has_collapsed
from aiseeme_models.backbones import build_backbone, initialise
from aiseeme_models.curriculum.stage_tasks import build_task
from aiseeme_models.distillation import DistillOptions, Teaching
from aiseeme_models.pretext import PretextTask, pretext_tasks
from aiseeme_models.seeding import generator

CPU = torch.device("cpu")
IN_PART = ["relative-location", "jigsaw", "masked"]


def task_of(name: str) -> PretextTask:
    task = build_task(
        name, build_backbone("tiny", norm="batch", in_channels=3), pretext_tasks[name].options_type(), "batch"
    )
    initialise(task.shared, generator(3))
    return task.train()


def running(task: PretextTask) -> list[torch.Tensor]:
    layers = (layer for layer in task.backbone.modules() if isinstance(layer, _BatchNorm))
    return [statistic.clone() for layer in layers for statistic in (layer.running_mean, layer.running_var)]


@pytest.mark.parametrize("name", IN_PART)
def test_the_statistics_after_many_steps_are_those_of_whole_images(name, toy_images, augmentation):
    task, images = task_of(name), toy_images(48).pixels
    views = task.views(images, augmentation, generator(1))
    before = running(task)
    for _ in range(2):
        task.loss(views, generator(2)).backward()
    assert all(map(torch.equal, running(task), before)), "what is looked at is not remembered"
    for _ in range(200):
        task.after_step(views, 0.5)
    found = running(task)

    layers = [layer for layer in task.backbone.modules() if isinstance(layer, _BatchNorm)]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
    seen = views[0 if name == "masked" else 1][:16]
    with torch.no_grad():
        task.backbone(seen)
    for one, exact in zip(found, running(task), strict=True):
        torch.testing.assert_close(one, exact, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", IN_PART)
def test_a_held_out_loss_does_not_depend_on_what_is_remembered(name, toy_images, augmentation):
    task = task_of(name)
    views = task.views(toy_images(16).pixels, augmentation, generator(1))
    trained = task.loss(views, generator(2)).item()
    for layer in task.backbone.modules():
        if isinstance(layer, _BatchNorm):
            layer.running_mean.fill_(5.0)
    modes = {name: module.training for name, module in task.backbone.named_modules()}
    task.backbone.eval()
    with torch.no_grad():
        assert task.loss(views, generator(2)).item() == pytest.approx(trained, rel=1e-5)
    assert not any(module.training for module in task.backbone.modules()) and all(modes.values())
    layers = [layer for layer in task.backbone.modules() if isinstance(layer, _BatchNorm)]
    assert all(layer.track_running_stats and layer.num_batches_tracked == 0 for layer in layers)


@pytest.mark.parametrize("name", IN_PART)
def test_a_student_that_is_its_teacher_is_at_no_distance_from_it(name, toy_images, augmentation):
    task = task_of(name)
    views = task.views(toy_images(16).pixels, augmentation, generator(1))
    teaching = Teaching(DistillOptions(kind="mse", weight=1.0, pretext_weight=0.0), copy.deepcopy(task.backbone))
    distance, alone = teaching.loss(task, lambda: task.loss(views, generator(2)))
    assert distance.item() == pytest.approx(0, abs=1e-6) and alone.item() > 0


@pytest.mark.parametrize("name", ["relative-location", "jigsaw"])
def test_whether_patches_have_become_one_is_seen_by_their_own_statistics(name, toy_images, augmentation):
    task = task_of(name)
    for layer in task.backbone.modules():
        if isinstance(layer, _BatchNorm):
            layer.running_var.fill_(1e8)  # by these all patches look alike
    found = has_collapsed(task, toy_images(16), augmentation, seed=0, device=CPU, untrained=lambda: task.backbone)
    assert found is False
