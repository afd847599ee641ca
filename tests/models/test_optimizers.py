"""Optimisers and schedules follow their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from aiseeme_models.errors import InputError
from aiseeme_models.training.optimizers import build_optimizer, load_optimizer_tensors, optimizer_tensors
from aiseeme_models.training.options import TrainingOptions
from aiseeme_models.training.schedules import learning_rate_factor


def test_lars_follows_its_equation_and_spares_biases():
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    v_weight, v_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    optimizer = build_optimizer("lars", layer, lr=0.3, weight_decay=0.01, momentum=0.9)
    for _ in range(4):
        gradient = torch.randn(3, 4), torch.randn(3)
        layer.weight.grad, layer.bias.grad = gradient[0].clone(), gradient[1].clone()
        optimizer.step()
        decayed = gradient[0] + 0.01 * weight
        v_weight = 0.9 * v_weight + 0.3 * 0.001 * (weight.norm() / decayed.norm()) * decayed
        v_bias = 0.9 * v_bias + 0.3 * gradient[1]
        weight, bias = weight - v_weight, bias - v_bias
    torch.testing.assert_close(layer.weight.detach(), weight)
    torch.testing.assert_close(layer.bias.detach(), bias)


def test_lars_moves_weights_that_are_zero():
    layer = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(layer.weight)
    optimizer = build_optimizer("lars", layer, lr=0.1, weight_decay=0.0, momentum=0.0)
    layer.weight.grad = torch.ones(2, 2)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), torch.full((2, 2), -0.1))


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_normalisation_and_biases_are_not_decayed(name):
    module = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    before = [weight.detach().clone() for weight in module.parameters()]
    optimizer = build_optimizer(name, module, lr=1.0, weight_decay=0.5, momentum=0.0)
    for weight in module.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    moved = [not torch.equal(weight, old) for weight, old in zip(module.parameters(), before, strict=True)]
    assert moved == [True, False, False, False]


def test_optimizer_state_of_other_parameters_is_refused():
    module, other = nn.Linear(3, 2), nn.Linear(4, 2)
    optimizer = build_optimizer("sgd", module, lr=0.1, weight_decay=0.0, momentum=0.9)
    for weight in module.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    tensors = optimizer_tensors(optimizer, module)
    assert set(tensors) == {"weight/momentum_buffer", "bias/momentum_buffer"}
    elsewhere = build_optimizer("sgd", other, lr=0.1, weight_decay=0.0, momentum=0.9)
    with pytest.raises(InputError, match="does not fit"):
        load_optimizer_tensors(elsewhere, other, tensors)


@pytest.mark.parametrize(
    ("name", "fused", "step_on"),
    [("sgd", None, None), ("lars", None, None), ("adamw", False, "cpu"), ("adamw", True, "meta")],
)
def test_kept_state_lands_on_the_device_of_its_parameter(name, fused, step_on):
    # PyTorch's "meta" device stands in for a GPU: it has no values, but everything knows where it is.
    here, there = nn.Linear(3, 2), nn.Linear(3, 2, device="meta")
    optimizer = build_optimizer(name, here, lr=0.1, weight_decay=0.0, momentum=0.9)
    for weight in here.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    elsewhere = build_optimizer("sgd", there, lr=0.1, weight_decay=0.0, momentum=0.9)
    elsewhere.defaults["fused"] = fused  # a fused optimiser cannot be built on "meta"
    load_optimizer_tensors(elsewhere, there, optimizer_tensors(optimizer, here))
    for weight in there.parameters():
        state = dict(elsewhere.state[weight])
        step = state.pop("step", None)
        assert (None if step is None else step.device.type) == step_on
        assert state
        assert {value.device.type for value in state.values()} == {"meta"}


@pytest.mark.parametrize(
    ("schedule", "progress", "factor"),
    [
        ("constant", 0.7, 1.0),
        ("cosine", 0.0, 1.0),
        ("cosine", 0.5, 0.5),
        ("cosine", 1.0, 0.0),
        ("cosine", 0.25, (1 + math.cos(math.pi / 4)) / 2),
        ("step", 0.59, 1.0),
        ("step", 0.6, 0.1),
        ("step", 0.8, 0.01),
        ("one-cycle", 0.0, 0.04),
        ("one-cycle", 0.3, 1.0),
        ("one-cycle", 1.0, 4e-6),
    ],
)
def test_schedules(schedule, progress, factor):
    assert learning_rate_factor(schedule, 0.0, progress) == pytest.approx(factor, abs=1e-9)


def test_warm_up_rises_from_zero_to_where_the_schedule_starts():
    assert [learning_rate_factor("cosine", 0.1, p) for p in (0.0, 0.05, 0.1)] == pytest.approx([0.0, 0.5, 1.0])
    assert learning_rate_factor("cosine", 0.1, 0.55) == pytest.approx(0.5)


def test_options_name_what_is_wrong():
    for wrong in ({"optimizer": "adam"}, {"schedule": "linear"}, {"local_epochs": 0}, {"lr": 0.0}, {"epochs": 3}):
        with pytest.raises(ValidationError):
            TrainingOptions(**wrong)
    with pytest.raises(ValidationError, match="one-cycle warms up by itself"):
        TrainingOptions(schedule="one-cycle", warmup=0.1)
    with pytest.raises(ValidationError, match="did you mean 'adamw'"):
        TrainingOptions(optimizer="adam")


def test_defaults_follow_the_optimizer():
    assert TrainingOptions(optimizer="sgd").learning_rate == 0.05
    assert TrainingOptions(optimizer="lars").decay == 1e-6
    assert TrainingOptions(optimizer="sgd", lr=1.0, weight_decay=0.0).learning_rate == 1.0
    assert TrainingOptions(optimizer="sgd", lr=1.0, weight_decay=0.0).decay == 0.0
