"""SwAV: its assignments and its loss are lightly's; prototypes, queue and frozen start are as they are said to be."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import SwaVLoss
from lightly.loss.swav_loss import sinkhorn as lightly_sinkhorn

from aiseeme_models.errors import InputError
from aiseeme_models.pretext.swav import SwAV, SwAVOptions, sinkhorn, swapped_prediction
from aiseeme_models.seeding import generator
from aiseeme_models.training.shared_state import flatten, layout_of, load_flat, load_local, local_tensors
from tests.models.test_losses import assert_same_loss_and_gradients, projections


def similarities(*shape: int, seed: int) -> torch.Tensor:
    return torch.tanh(projections(*shape, seed=seed).detach())


@pytest.mark.parametrize(("batch", "prototypes"), [(8, 5), (32, 64), (3, 2)])
@pytest.mark.parametrize(("epsilon", "iterations"), [(0.05, 3), (0.3, 1), (0.05, 10)])
def test_assignments_equal_lightlys(batch, prototypes, epsilon, iterations):
    scores = similarities(batch, prototypes, seed=1)
    expected = lightly_sinkhorn(scores.clone(), iterations, epsilon)
    torch.testing.assert_close(sinkhorn(scores, epsilon, iterations), expected, atol=1e-5, rtol=1e-4)


def test_assignments_equal_the_naive_loops():
    scores = similarities(6, 4, seed=2)
    share = [[math.exp(float(score) / 0.1) for score in row] for row in scores]
    for _ in range(3):
        for k in range(4):
            total = sum(row[k] for row in share)
            for row in share:
                row[k] /= total * 4
        share = [[value / (sum(row) * 6) for value in row] for row in share]
    expected = torch.tensor([[value * 6 for value in row] for row in share])
    torch.testing.assert_close(sinkhorn(scores, 0.1, 3), expected, atol=1e-5, rtol=1e-5)


def test_assignments_use_all_prototypes_alike():
    codes = sinkhorn(similarities(40, 8, seed=3) + torch.linspace(-1, 1, 8), 0.2, 100)
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(40))
    torch.testing.assert_close(codes.sum(dim=0), torch.full((8,), 5.0), atol=1e-2, rtol=0)


def test_assignments_are_finite_and_sharp_where_plain_exponentials_would_overflow():
    scores = similarities(40, 8, seed=3)
    assert not bool(lightly_sinkhorn(scores.clone(), 3, 0.002).isfinite().all())
    codes = sinkhorn(scores, 0.002, 3)
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(40))
    assert float(codes.max(dim=1).values.mean()) > 0.9


@pytest.mark.parametrize("local", [0, 3])
@pytest.mark.parametrize("queued", [0, 12])
def test_the_loss_equals_lightlys(local, queued):
    scores = projections(6, 2 + local, 10, seed=1)
    queue = [similarities(queued, 10, seed=seed) for seed in (2, 3)]

    def ours(scores):
        codes = [sinkhorn(torch.cat([scores[:, i].detach(), queue[i]]), 0.3, 3)[:6] for i in range(2)]
        return swapped_prediction(scores, torch.stack(codes, dim=1), 0.1)

    def theirs(scores):
        views = list(scores.unbind(dim=1))
        loss = SwaVLoss(temperature=0.1, sinkhorn_epsilon=0.3)
        return loss(views[:2], views[2:], queue if queued else None).squeeze()

    assert_same_loss_and_gradients(ours, theirs, (scores,))


def test_the_loss_equals_the_naive_loop():
    scores, codes = projections(3, 4, 5, seed=1).detach(), F.softmax(projections(3, 2, 5, seed=2).detach(), dim=2)
    total = 0.0
    for image in range(3):
        for code in range(2):
            for crop in range(4):
                if crop != code:
                    exponentials = [math.exp(float(score) / 0.5) for score in scores[image, crop]]
                    for k in range(5):
                        total -= float(codes[image, code, k]) * math.log(exponentials[k] / sum(exponentials))
    assert swapped_prediction(scores, codes, 0.5).item() == pytest.approx(total / (3 * 2 * 3), abs=1e-5)


def crops_of(task, toy_images, augmentation, seed: int = 1):
    return task.views(toy_images(8).batch(torch.arange(8)), augmentation, generator(seed))


def step(task, toy_images, augmentation, progress: float, seed: int = 1) -> None:
    views = crops_of(task, toy_images, augmentation, seed)
    task.loss(views, generator(1))
    task.after_step(views, progress)


@pytest.mark.parametrize("queue", [0, 16])
def test_the_tasks_loss_is_lightlys_on_its_crops(queue, tiny_task, toy_images, augmentation):
    task = tiny_task("swav", prototypes=12, local_crops=2, freeze=0.0, queue=queue, queue_from=0.0)
    for seed in (3, 4):
        step(task, toy_images, augmentation, 0.1, seed)
    wide, small = crops_of(task, toy_images, augmentation)
    projector, prototypes = task.head.projector, task.head.prototypes.weight
    unit = prototypes / prototypes.norm(dim=1, keepdim=True)
    outputs = [F.normalize(projector(task.backbone(crops)), dim=1) @ unit.T for crops in (wide, small)]
    first, second = (outputs[0][crop::2] for crop in range(2))
    local = [outputs[1][crop::2] for crop in range(2)]
    queued = [task.local.queue[crop] @ unit.T for crop in range(2)] if queue else None
    expected = SwaVLoss()([first, second], local, queued).squeeze()
    ours = task.loss((wide, small), generator(1))
    assert ours.item() == pytest.approx(expected.item(), abs=1e-5)
    weights = list(task.shared.parameters())
    for own, other in zip(torch.autograd.grad(ours, weights), torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-3)


def test_similarities_are_computed_in_float32_under_autocast_too(tiny_task, toy_images, augmentation):
    task = tiny_task("swav", prototypes=12)
    views = crops_of(task, toy_images, augmentation)
    features = projections(8, 6, 128, seed=1).detach()
    task.head.projector.forward = lambda crops: features[:, : len(crops) // 8].flatten(0, 1)
    expected = task.loss(views, generator(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = task.loss(views, generator(1))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), abs=1e-6)


def test_a_prototype_is_a_direction_whatever_its_length(tiny_task, toy_images, augmentation):
    """Sites' prototypes are averaged: a mean of unit vectors is shorter."""
    task = tiny_task("swav", prototypes=12, freeze=0.0)
    views = crops_of(task, toy_images, augmentation)
    loss = task.loss(views, generator(1))
    with torch.no_grad():
        task.head.prototypes.weight.mul_(torch.linspace(0.1, 3, 12).unsqueeze(1))
    assert task.loss(views, generator(1)).item() == pytest.approx(loss.item(), abs=1e-5)


def test_the_chance_loss_is_that_of_prototypes_that_are_all_the_same(tiny_task, toy_images, augmentation):
    task = tiny_task("swav", prototypes=12)
    with torch.no_grad():
        task.head.prototypes.weight.fill_(1.0)
    loss = task.loss(crops_of(task, toy_images, augmentation), generator(1))
    assert loss.item() == pytest.approx(math.log(12), abs=1e-5)
    assert task.chance_loss(8) == pytest.approx(math.log(12))


def test_prototypes_are_not_trained_at_the_start_of_a_stage(tiny_task, toy_images, augmentation):
    task = tiny_task("swav", prototypes=12, freeze=0.3)

    def trained() -> bool:
        task.zero_grad(set_to_none=True)
        task.loss(crops_of(task, toy_images, augmentation), generator(1)).backward()
        assert task.head.projector[0].weight.grad is not None
        return task.head.prototypes.weight.grad is not None

    seen = [trained()]
    for progress in (0.1, 0.29, 0.3, 0.5):
        step(task, toy_images, augmentation, progress)
        seen.append(trained())
    assert seen == [False, False, False, True, True]


def test_the_queue_is_filled_from_its_time_on_and_used_when_it_is_full(tiny_task, toy_images, augmentation):
    task = tiny_task("swav", prototypes=12, local_crops=0, queue=24, queue_from=0.2)
    plain = tiny_task("swav", prototypes=12, local_crops=0)
    views = crops_of(task, toy_images, augmentation, seed=9)
    without = plain.loss(views, generator(1)).item()
    entered = []
    for seed, progress in enumerate((0.1, 0.2, 0.3, 0.4, 0.5)):
        assert task.loss(views, generator(1)).item() == without
        step(task, toy_images, augmentation, progress, seed)
        entered.append(int(task.local.entered))
    assert entered == [0, 0, 8, 16, 24]
    assert task.loss(views, generator(1)).item() != without

    wide, _ = crops_of(task, toy_images, augmentation, seed=2)
    embeddings = F.normalize(task.head.projector(task.backbone(wide)), dim=1)
    for crop in range(2):
        torch.testing.assert_close(task.local.queue[crop, :8], embeddings[crop::2])
    before = task.local.queue.clone()
    step(task, toy_images, augmentation, 0.6, seed=7)
    assert not torch.equal(task.local.queue[:, :8], before[:, :8]), "the oldest are replaced"
    assert torch.equal(task.local.queue[:, 8:], before[:, 8:])


@pytest.mark.parametrize("stopped_after", [1, 3, 5])
def test_a_site_goes_on_in_the_middle_of_a_stage_where_it_was(stopped_after, tiny_task, toy_images, augmentation):
    """With prototypes still frozen, a queue half full, and a full one."""
    options = {"prototypes": 12, "local_crops": 1, "freeze": 0.3, "queue": 24, "queue_from": 0.2}
    whole, first = tiny_task("swav", **options), tiny_task("swav", **options)
    second = tiny_task("swav", seed=5, **options)
    layout = layout_of(whole, "group")

    def steps(task, numbers) -> list[float]:
        losses = []
        for number in numbers:
            views = crops_of(task, toy_images, augmentation, seed=number)
            task.zero_grad(set_to_none=True)
            loss = task.loss(views, generator(1))
            loss.backward()
            with torch.no_grad():
                for weight in task.shared.parameters():
                    if weight.grad is not None:
                        weight.sub_(weight.grad, alpha=0.1)
            task.after_step(views, (number + 1) / 8)
            losses.append(loss.item())
        return losses

    expected = steps(whole, range(8))[stopped_after:]
    steps(first, range(stopped_after))
    load_flat(second, layout, flatten(first, layout))
    load_local(second, layout, local_tensors(first, layout))
    assert steps(second, range(stopped_after, 8)) == expected
    assert all(torch.equal(second.state_dict()[name], value) for name, value in whole.state_dict().items())


def test_a_new_stage_begins_without_a_queue(tiny_task, toy_images, augmentation):
    options = {"prototypes": 12, "freeze": 0.3, "queue": 8, "queue_from": 0.0}
    task, fresh = tiny_task("swav", **options), tiny_task("swav", **options)
    step(task, toy_images, augmentation, 0.9)
    views = crops_of(task, toy_images, augmentation, seed=4)
    assert task.loss(views, generator(1)).item() != fresh.loss(views, generator(1)).item()
    task.reset_local(generator(1))
    assert task.loss(views, generator(1)).item() == fresh.loss(views, generator(1)).item()


def test_impossible_combinations_are_refused_with_what_would_be_right():
    def check(batch_size: int = 48, image_size: int = 48, **options) -> None:
        SwAV.check(SwAVOptions(**options), norm="group", batch_size=batch_size, image_size=image_size, channels=3)

    check()
    check(queue=96)
    with pytest.raises(InputError, match="queue = 96, or 0"):
        check(queue=100)
    with pytest.raises(InputError, match="queue = 48"):
        check(queue=10)
    with pytest.raises(InputError, match="at least 2"):
        check(batch_size=1)
    with pytest.raises(InputError, match="swav's local crops are 49 px wide"):
        check(local_size=49)


def test_the_defaults_are_the_papers_but_for_what_depends_on_the_number_of_images():
    options = SwAVOptions()
    assert (options.epsilon, options.iterations, options.temperature, options.projection_dim) == (0.05, 3, 0.1, 128)
    assert (options.prototypes, options.queue) == (64, 0)
