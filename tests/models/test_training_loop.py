"""The loop does what a plain PyTorch loop does, the same bits every time, and can be taken up where it was left."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import safetensors.torch
import torch

from aiseeme_models.errors import InputError
from aiseeme_models.pretext import pretext_tasks
from aiseeme_models.seeding import generator
from aiseeme_models.training.loop import NonFiniteLoss, heldout_loss, train_round
from aiseeme_models.training.options import TrainingOptions
from aiseeme_models.training.shared_state import flatten, layout_of, load_flat, load_local, local_tensors
from tests.models.small_tasks import SMALL

CPU = torch.device("cpu")
TASKS = list(pretext_tasks)


@pytest.fixture
def images(toy_images):
    return toy_images(20, size=48)


def run(task, images, augmentation, seed=7, progress=(0.0, 0.5), state=None, **options):
    mu = options.pop("mu", 0.0)
    options = TrainingOptions(**{"batch_size": 8, **options})
    return train_round(
        task,
        images,
        options,
        augmentation=augmentation,
        seed=seed,
        stage_progress=progress,
        device=CPU,
        proximal_mu=mu,
        optimizer_state=state,
    )


def vector(task, norm="group"):
    return flatten(task, layout_of(task, norm))


def plain_loop(task, images, augmentation, *, seed, epochs, lr, mu=0.0):
    """The loop of a tutorial: SGD with momentum, cosine over the first half of a stage."""
    task.to(memory_format=torch.channels_last).train()
    decayed = [weight for weight in task.shared.parameters() if weight.ndim > 1]
    others = [weight for weight in task.shared.parameters() if weight.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 1e-4}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
    start = copy.deepcopy(list(task.shared.parameters()))
    views_generator, steps, step = generator(seed, "views"), epochs * (len(images) // 8), 0
    losses = []
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator(seed, "order", epoch))
        for indices in order.split(8):
            if len(indices) < 8:
                continue
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 + math.cos(math.pi * 0.5 * step / steps)) / 2
            optimizer.zero_grad()
            task.look_at(indices)
            views = task.views(images.batch(indices), augmentation, views_generator)
            loss = task.loss(views, generator(0))
            losses.append(loss.item())
            pull = sum((w - w0.detach()).square().sum() for w, w0 in zip(task.shared.parameters(), start, strict=True))
            (loss + mu / 2 * pull if mu else loss).backward()
            optimizer.step()
            step += 1
            task.after_step(views, 0.5 * step / steps)
    return losses


@pytest.mark.parametrize("name", TASKS)
def test_a_round_gives_the_bits_of_a_plain_pytorch_loop(name, tiny_task, images, augmentation):
    ours, plain = tiny_task(name, **SMALL.get(name, {})), tiny_task(name, **SMALL.get(name, {}))
    outcome = run(ours, images, augmentation, optimizer="sgd", lr=0.02, local_epochs=2)
    losses = plain_loop(plain, images, augmentation, seed=7, epochs=2, lr=0.02)
    assert np.array_equal(vector(ours), vector(plain))
    assert (outcome.images, outcome.steps) == (20, 4)
    assert outcome.loss == pytest.approx(sum(losses) / 4)


def test_the_proximal_term_is_that_of_fedprox(tiny_task, images, augmentation):
    ours, plain, free = tiny_task("simclr"), tiny_task("simclr"), tiny_task("simclr")
    outcome = run(ours, images, augmentation, optimizer="sgd", lr=0.02, local_epochs=2, mu=5.0)
    losses = plain_loop(plain, images, augmentation, seed=7, epochs=2, lr=0.02, mu=5.0)
    run(free, images, augmentation, optimizer="sgd", lr=0.02, local_epochs=2)
    np.testing.assert_allclose(vector(ours), vector(plain), atol=3e-6)
    assert np.abs(vector(ours) - vector(free)).max() > 3e-4
    assert outcome.loss == pytest.approx(sum(losses) / 4, abs=1e-4)  # the reported loss is the task's alone


@pytest.mark.parametrize("name", TASKS)
def test_the_same_seed_gives_the_same_bits(name, tiny_task, images, augmentation):
    results = []
    for disturb in (1, 2):
        torch.manual_seed(disturb)
        task = tiny_task(name, "batch", **SMALL.get(name, {}))
        outcome = run(task, images, augmentation)
        results.append((vector(task, "batch"), outcome.loss))
    assert np.array_equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    other = tiny_task(name, "batch", **SMALL.get(name, {}))
    run(other, images, augmentation, seed=8)
    assert not np.array_equal(vector(other, "batch"), results[0][0])


@pytest.mark.parametrize(
    ("name", "norm", "optimizer"),
    [
        ("rotation", "group", "sgd"),
        ("moco", "batch-local", "adamw"),
        ("moco", "batch", "sgd"),
        ("byol", "group", "lars"),
        ("simclr", "batch", "adamw"),
        ("npid", "batch", "adamw"),
        ("deepcluster", "group", "adamw"),
        ("swav", "batch", "lars"),
        ("dino", "batch", "sgd"),
    ],
)
def test_a_resumed_site_ends_with_the_bits_of_an_uninterrupted_one(
    name, norm, optimizer, tiny_task, images, augmentation
):
    settings = {"optimizer": optimizer, "lr": 0.01, "precision": "fp32"}
    task = tiny_task(name, norm, **SMALL.get(name, {}))
    layout = layout_of(task, norm)
    first = run(task, images, augmentation, seed=1, progress=(0.0, 0.5), **settings)
    weights = flatten(task, layout).tobytes()
    kept = safetensors.torch.save(local_tensors(task, layout))
    state = safetensors.torch.save(first.optimizer_state)
    run(task, images, augmentation, seed=2, progress=(0.5, 1.0), state=first.optimizer_state, **settings)

    resumed = tiny_task(name, norm, seed=99, **SMALL.get(name, {}))
    load_flat(resumed, layout, np.frombuffer(weights, dtype=np.float32))
    load_local(resumed, layout, safetensors.torch.load(kept))
    loaded = safetensors.torch.load(state)
    run(resumed, images, augmentation, seed=2, progress=(0.5, 1.0), state=loaded, **settings)
    assert all(torch.equal(task.state_dict()[key], tensor) for key, tensor in resumed.state_dict().items())

    forgetful = tiny_task(name, norm, seed=99, **SMALL.get(name, {}))
    load_flat(forgetful, layout, np.frombuffer(weights, dtype=np.float32))
    load_local(forgetful, layout, safetensors.torch.load(kept))
    run(forgetful, images, augmentation, seed=2, progress=(0.5, 1.0), **settings)
    assert not np.array_equal(flatten(forgetful, layout), flatten(task, layout))


def test_optimizer_state_is_dropped_where_it_is_not_to_be_carried(tiny_task, images, augmentation):
    with_state, without = tiny_task("rotation"), tiny_task("rotation")
    state = run(tiny_task("rotation", seed=3), images, augmentation).optimizer_state
    assert state
    outcome = run(with_state, images, augmentation, state=state, carry_optimizer=False)
    run(without, images, augmentation, carry_optimizer=False)
    assert outcome.optimizer_state == {}
    assert np.array_equal(vector(with_state), vector(without))


@pytest.mark.parametrize("norm", ["group", "batch", "batch-local"])
@pytest.mark.parametrize("name", TASKS)
def test_a_held_out_loss_changes_no_state(name, norm, tiny_task, images, augmentation):
    task = tiny_task(name, norm, **SMALL.get(name, {})).train()
    before = {key: value.clone() for key, value in task.state_dict().items()}
    options = TrainingOptions(batch_size=8)
    first = heldout_loss(task, images, options, augmentation=augmentation, seed=3, device=CPU)
    assert all(torch.equal(task.state_dict()[key], value) for key, value in before.items())
    assert task.training
    assert all(weight.grad is None for weight in task.parameters())
    assert heldout_loss(task, images, options, augmentation=augmentation, seed=3, device=CPU) == first
    assert first[1] == 16
    looked_at, untouched = task, tiny_task(name, norm, **SMALL.get(name, {}))
    run(looked_at, images, augmentation)
    run(untouched, images, augmentation)
    assert np.array_equal(vector(looked_at, norm), vector(untouched, norm))


def test_a_held_out_set_that_is_too_small_gives_no_figure(tiny_task, images, augmentation):
    options = TrainingOptions(batch_size=8)
    for count, expected in ((0, 0), (1, 0), (2, 2), (7, 7), (8, 8), (9, 8)):
        part = images.select(range(count))
        loss, behind = heldout_loss(tiny_task("simclr"), part, options, augmentation=augmentation, seed=3, device=CPU)
        assert behind == expected
        assert (loss == 0.0) == (expected == 0)


def test_a_site_smaller_than_a_batch_trains_on_one_batch_of_all_it_has(tiny_task, images, augmentation):
    outcome = run(tiny_task("moco", queue=16), images.select(range(5)), augmentation, local_epochs=3)
    assert (outcome.images, outcome.steps) == (5, 3)


@pytest.mark.parametrize(
    ("name", "norm", "count"),
    [
        ("simclr", "group", 1),
        ("rotation", "batch", 1),
        ("byol", "group", 0),
        ("barlow-twins", "group", 1),
        ("vicreg", "group", 1),
    ],
)
def test_too_few_images_for_the_task_are_refused(name, norm, count, tiny_task, images, augmentation):
    with pytest.raises(InputError, match="training images"):
        run(tiny_task(name, norm), images.select(range(count)), augmentation)


def test_a_diverged_training_is_said_so(tiny_task, images, augmentation):
    with pytest.raises(NonFiniteLoss, match="diverged"):
        run(tiny_task("rotation"), images, augmentation, optimizer="sgd", lr=1e30, local_epochs=5)
    task = tiny_task("rotation")
    with torch.no_grad():
        task.backbone.conv1.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteLoss):
        heldout_loss(task, images, TrainingOptions(batch_size=8), augmentation=augmentation, seed=3, device=CPU)


def test_clipping_bounds_the_step(tiny_task, images, augmentation):
    task = tiny_task("rotation")
    before = vector(task)
    one = images.select(range(8))
    settings = {"optimizer": "sgd", "lr": 1.0, "weight_decay": 0.0, "momentum": 0.0}
    run(task, one, augmentation, gradient_clip=0.01, **settings)
    assert np.linalg.norm(vector(task) - before) == pytest.approx(0.01, rel=1e-3)


def test_every_step_is_reported(tiny_task, images, augmentation):
    seen = []
    outcome = train_round(
        tiny_task("rotation"),
        images,
        TrainingOptions(batch_size=8, local_epochs=2),
        augmentation=augmentation,
        seed=1,
        stage_progress=(0.0, 1.0),
        device=CPU,
        on_step=lambda step, steps, loss: seen.append((step, steps, loss)),
    )
    assert [(step, steps) for step, steps, _ in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert sum(loss for _, _, loss in seen) / 4 == pytest.approx(outcome.loss)


@pytest.mark.parametrize("name", TASKS)
def test_bfloat16_trains_to_about_the_same_loss(name, tiny_task, images, augmentation):
    full = run(tiny_task(name, **SMALL.get(name, {})), images, augmentation, precision="fp32")
    task = tiny_task(name, **SMALL.get(name, {}))
    half = run(task, images, augmentation, precision="bf16")
    assert half.loss == pytest.approx(full.loss, rel=0.1)
    assert half.loss != full.loss
    assert all(weight.dtype == torch.float32 for weight in task.parameters())
