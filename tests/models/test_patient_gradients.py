"""No patient counts for more than was promised: checked against gradients of one patient at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from aiseeme_models.backbones import PER_IMAGE_NORMS
from aiseeme_models.errors import InputError
from aiseeme_models.pretext import pretext_tasks
from aiseeme_models.privacy.patient_gradients import PatientGradients
from aiseeme_models.seeding import generator
from tests.models.small_tasks import toy_side

PATIENTS = 3
CASES = [
    (task, norm, backbone)
    for task in sorted(pretext_tasks)
    for norm in sorted(PER_IMAGE_NORMS)
    if pretext_tasks[task].decomposes_per_image(norm) and norm not in pretext_tasks[task].collapses_with
    for backbone in ("resnet-tiny", "resnet-small", "resnet18", "resnet34", "resnet50")
]


def one_at_a_time(task, views, patients=PATIENTS):
    """Every patient's gradient by autograd alone, ``{parameter: (B, ...)}``, in double precision."""
    found = []
    for one in range(patients):
        own = tuple(view.unflatten(0, (patients, -1))[one] for view in views)
        task.shared.zero_grad()
        task.loss(own, generator(1)).backward()
        found.append(
            {
                name: (torch.zeros_like(weight) if weight.grad is None else weight.grad).double().clone()
                for name, weight in task.shared.named_parameters()
            }
        )
    return {name: torch.stack([gradient[name] for gradient in found]) for name in found[0]}


def norms_of(gradients):
    return torch.stack([rows.flatten(1).square().sum(1) for rows in gradients.values()]).sum(0).sqrt()


def clipped_by_us(task, views, **how):
    task.shared.zero_grad(set_to_none=True)
    loss, norms = PatientGradients(task.shared).add_clipped(lambda: task.loss(views, generator(1)), PATIENTS, **how)
    return loss, norms, {name: weight.grad.detach() for name, weight in task.shared.named_parameters()}


# In double precision: a deep random network amplifies float32's rounding beyond 1e-4 by itself (resnet50: 2e-3).
@pytest.mark.parametrize(
    ("name", "norm", "backbone", "dtype"),
    [(*case, torch.float64) for case in CASES]
    + [(*case, torch.float32) for case in CASES if case[2] in ("resnet-tiny", "resnet18")],
)
def test_sums_and_norms_are_those_of_one_patient_at_a_time(
    name, norm, backbone, dtype, tiny_task, toy_images, augmentation
):
    task = tiny_task(name, norm, backbone=backbone)
    images = toy_images(PATIENTS, size=toy_side(name)).pixels
    if backbone not in ("resnet34", "resnet50"):
        images = images.repeat_interleave(2, dim=0)  # two augmented views of a patient's image
    views = task.views(images, augmentation, generator(2))
    task.to(dtype)
    views = tuple(view.to(dtype) if view.is_floating_point() else view for view in views)
    expected = one_at_a_time(task, views)
    norms = norms_of(expected)
    bound = float(norms.median())  # some are clipped, some are not
    loss, found_norms, found = clipped_by_us(task, views, clipping="flat", bound=bound)

    torch.testing.assert_close(found_norms.double(), norms, rtol=1e-4, atol=0)
    torch.testing.assert_close(loss, task.loss(views, generator(1)).detach(), check_dtype=False)
    factors = (bound / norms).clamp(max=1)
    whole = math.sqrt(
        sum(float(torch.einsum("b,b...->...", factors, rows).square().sum()) for rows in expected.values())
    )
    for parameter, rows in expected.items():
        wanted = torch.einsum("b,b...->...", factors, rows)
        assert float((found[parameter].double() - wanted).norm()) <= 1e-4 * max(float(wanted.norm()), 1e-3 * whole), (
            parameter
        )


def test_clipping_by_layers_bounds_each_layer_and_so_the_whole(tiny_task, toy_images, augmentation):
    task = tiny_task("relative-location", "group-ws")
    views = task.views(toy_images(PATIENTS).pixels, augmentation, generator(2))
    expected = one_at_a_time(task, views)
    _, _, found = clipped_by_us(task, views, clipping="per-layer", bound=0.1)
    share = 0.1 / math.sqrt(len(expected))
    for parameter, rows in expected.items():
        factors = (share / rows.flatten(1).norm(dim=1)).clamp(max=1)
        wanted = torch.einsum("b,b...->...", factors, rows)
        assert float((found[parameter].double() - wanted).norm()) <= 1e-4 * float(wanted.norm())


@pytest.mark.parametrize("clipping", ["flat", "per-layer", "adaptive"])
def test_taking_a_patient_away_moves_the_sum_by_at_most_the_bound(clipping, tiny_task, toy_images, augmentation):
    task = tiny_task("rotation")
    pixels, sums = toy_images(PATIENTS).pixels, []
    views = task.views(pixels, augmentation, generator(2))
    for patients in (PATIENTS, PATIENTS - 1):
        own = tuple(view.unflatten(0, (PATIENTS, -1))[:patients].flatten(0, 1) for view in views)
        task.shared.zero_grad(set_to_none=True)
        PatientGradients(task.shared).add_clipped(
            lambda own=own: task.loss(own, generator(1)), patients, clipping=clipping, bound=0.05
        )
        sums.append(torch.cat([weight.grad.flatten() for weight in task.shared.parameters()]))
    moved = float((sums[0] - sums[1]).double().norm())
    assert 0.04 < moved <= 0.05 * (1 + 1e-4)


def test_an_image_that_makes_no_finite_gradient_counts_for_nothing(tiny_task, toy_images, augmentation):
    task = tiny_task("rotation")
    (inputs, targets) = task.views(toy_images(PATIENTS).pixels, augmentation, generator(2))
    spoilt = inputs.clone()
    spoilt[4:8] = math.inf  # the second patient
    _, norms, found = clipped_by_us(task, (spoilt, targets), clipping="flat", bound=1.0)
    assert not norms[1].isfinite() and norms[[0, 2]].isfinite().all()
    kept = torch.cat([inputs[:4], inputs[8:]]), torch.cat([targets[:4], targets[8:]])
    task.shared.zero_grad(set_to_none=True)
    PatientGradients(task.shared).add_clipped(
        lambda: task.loss(kept, generator(1)), PATIENTS - 1, clipping="flat", bound=1.0
    )
    for name, weight in task.shared.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("places", [2, 31])  # few places: ghost norms; many: written-down gradients
@pytest.mark.parametrize("bias", [True, False])
def test_both_ways_to_a_norm_agree_also_with_strides_dilation_and_two_uses_of_a_layer(places, bias):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), bias=bias))
    x, z = torch.randn(4, 3, places, places + 2), torch.randn(4, 3, places, places + 2)

    def loss(x, z):
        return (net(x).sin().flatten(1).sum(1) + net(z).cos().flatten(1).sum(1)).mean()

    expected = []
    for one in range(4):
        net.zero_grad()
        loss(x[one : one + 1], z[one : one + 1]).backward()
        expected.append(torch.cat([weight.grad.flatten() for weight in net.parameters()]).double())
    net.zero_grad(set_to_none=True)
    _, norms = PatientGradients(net).add_clipped(lambda: loss(x, z), 4, clipping="flat", bound=1e9)
    torch.testing.assert_close(norms.double(), torch.stack(expected).norm(dim=1), rtol=1e-4, atol=0)
    total = torch.cat([weight.grad.flatten() for weight in net.parameters()]).double()
    torch.testing.assert_close(total, torch.stack(expected).sum(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(4), nn.ConvTranspose2d(3, 3, 2), nn.Conv2d(4, 4, 1, groups=2)])
def test_layers_without_a_rule_are_refused(layer):
    with pytest.raises(InputError, match="no rule for"):
        PatientGradients(nn.Sequential(layer)).add_clipped(
            lambda: layer(torch.randn(2, 4, 3, 3)).mean(), 2, clipping="flat", bound=1.0
        )
