"""Whatever weights a coordinator sends, no patient counts for more than the bound, and views are nobody's to know."""

from __future__ import annotations

import math

import pytest
import torch

from aiseeme_models.privacy.patient_gradients import PatientGradients
from aiseeme_models.seeding import generator

BOUND = 1e-3


def let_through(task, views, patients=1, bound=BOUND) -> tuple[float, float]:
    """The norm of what is let through of one patient, and the one that was found."""
    task.shared.zero_grad(set_to_none=True)
    _, norms = PatientGradients(task.shared).add_clipped(
        lambda: task.loss(views, generator(1)), patients, clipping="flat", bound=bound
    )
    whole = math.sqrt(sum(float(weight.grad.double().square().sum()) for weight in task.shared.parameters()))
    return whole, float(norms[0])


@pytest.fixture
def underflow(tiny_task):
    """Inputs of 1e-23 meet gradients of 1e18: in single precision their squares are nothing."""

    def make(scale: float):
        task = tiny_task("rotation", backbone="resnet-tiny")
        with torch.no_grad():
            block = task.backbone.layer4[0]
            block.bn1.weight.fill_(5e-24 * scale)
            block.bn1.bias.zero_()
            block.conv2.weight.zero_()
            block.bn2.weight.fill_(1e31 / scale)
            block.bn2.bias.fill_(1e-10)
            block.downsample[1].weight.zero_()
            block.downsample[1].bias.zero_()
            task.head.weight.normal_(generator=generator(3)).mul_(1e-15)
            task.head.bias.zero_()
        return task

    return make


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e8, 1e12, 1e16, 1e20])
def test_weights_of_extreme_sizes_do_not_get_round_the_bound(scale, underflow, toy_images, augmentation):
    task = underflow(scale)
    views = task.views(toy_images(1, size=32).pixels, augmentation, generator(2))
    whole, _ = let_through(task, views)
    assert whole <= BOUND * (1 + 1e-5)


def test_a_gradient_that_cancels_out_is_not_taken_for_none(tiny_task, toy_images, augmentation):
    """Its rounding is what is left of it, and that is bounded too."""
    task = tiny_task("rotation", backbone="resnet-tiny")
    with torch.no_grad():
        task.head.weight.mul_(1e6)
    views = task.views(toy_images(1, size=32).pixels, augmentation, generator(2))
    whole, found = let_through(task, views)
    assert whole <= BOUND * (1 + 1e-5)
    task.shared.zero_grad(set_to_none=True)
    task.loss(views, generator(1)).backward()
    true = math.sqrt(sum(float(weight.grad.double().square().sum()) for weight in task.shared.parameters()))
    assert true * (1 - 1e-5) <= found <= true * (1 + 1e-3)


@pytest.mark.parametrize("norm", ["group", "group-ws"])
@pytest.mark.parametrize("seed", range(4))
def test_random_weights_of_every_size_do_not_get_round_the_bound(norm, seed, tiny_task, toy_images, augmentation):
    task, sizes = tiny_task("rotation", norm, backbone="resnet-tiny"), generator(seed, "sizes")
    with torch.no_grad():
        for weight in task.shared.parameters():
            weight.mul_(10.0 ** float(24 * torch.rand(1, generator=sizes) - 12))
    views = task.views(toy_images(1, size=32).pixels, augmentation, generator(2))
    whole, _ = let_through(task, views)
    assert whole <= BOUND * (1 + 1e-5)


def test_a_patient_beyond_the_range_counts_for_nothing_and_the_others_as_ever(tiny_task, toy_images, augmentation):
    task = tiny_task("rotation")
    (inputs, targets) = task.views(toy_images(2).pixels, augmentation, generator(2))
    spoilt = torch.cat([inputs[:4], inputs[4:] * 1e12])
    whole, _ = let_through(task, (spoilt, targets), patients=2, bound=1e3)
    alone, _ = let_through(task, (inputs[:4], targets[:4]), patients=1, bound=1e3)
    assert whole == pytest.approx(alone, rel=1e-4)
