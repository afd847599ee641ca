"""NPID finds an image among the rows of its site's bank, which follow the embeddings."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss

from aiseeme_models.pretext.npid import NPIDOptions, instance_discrimination
from aiseeme_models.seeding import generator
from tests.models.test_losses import assert_same_loss_and_gradients, projections


def directions(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(projections(*shape, seed=seed).detach(), dim=1)


def test_the_loss_equals_the_naive_loop():
    embeddings, positives, bank = directions(3, 4, seed=1), directions(3, 4, seed=2), directions(9, 4, seed=3)
    negatives = torch.tensor([[0, 5, 5, 8], [1, 2, 3, 4], [8, 7, 0, 1]])
    total = 0.0
    for embedding, positive, rows in zip(embeddings, positives, negatives, strict=True):
        own = math.exp(float(embedding @ positive) / 0.1)
        total -= math.log(own / (own + sum(math.exp(float(embedding @ bank[row]) / 0.1) for row in rows)))
    ours = instance_discrimination(embeddings, positives, bank, negatives, 0.1)
    assert ours.item() == pytest.approx(total / 3, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_the_loss_equals_lightlys_where_all_images_have_the_same_negatives(temperature):
    theirs = NTXentLoss(temperature, memory_bank_size=(32, 16))
    bank = directions(32, 16, seed=5)
    theirs.memory_bank.bank.copy_(bank)
    theirs.memory_bank._dequeue_and_enqueue = lambda batch: None  # the same bank for both calls
    positives, negatives = directions(8, 16, seed=4), torch.arange(32).expand(8, -1)
    assert_same_loss_and_gradients(
        lambda x: instance_discrimination(F.normalize(x, dim=1), positives, bank, negatives, temperature),
        lambda x: theirs(x, positives),
        (projections(8, 16, seed=3),),
    )


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_similarities_are_computed_in_float32_under_autocast_too(temperature):
    embeddings, positives, bank = directions(16, 64, seed=1), directions(16, 64, seed=2), directions(64, 64, seed=3)
    negatives = torch.randint(64, (16, 20), generator=generator(1))
    embeddings.requires_grad_()
    expected = instance_discrimination(embeddings, positives, bank, negatives, temperature)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = instance_discrimination(embeddings, positives, bank, negatives, temperature)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), abs=1e-6)


def test_with_fewer_images_than_negatives_the_loss_is_the_papers_softmax_over_all_images(
    tiny_task, toy_images, augmentation
):
    """Eq. 2 of the paper: every image is a class, its weights its row of the bank."""
    images, rows = toy_images(10), torch.tensor([7, 2, 9])
    task = tiny_task("npid", negatives=100)
    task.make_room(10)
    task.reset_local(generator(3))
    task.look_at(rows)
    views = task.views(images.batch(rows), augmentation, generator(1))
    embeddings = F.normalize(task.head(task.backbone(views[0])), dim=1)
    expected = F.cross_entropy(embeddings @ task.local.bank.T / 0.07, rows)
    ours = task.loss(views, generator(2))
    assert ours.item() == pytest.approx(expected.item(), abs=1e-5)
    weights = list(task.shared.parameters())
    for own, other in zip(torch.autograd.grad(ours, weights), torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-4)


def test_an_image_is_never_its_own_negative_and_all_others_are_equally_often(tiny_task, toy_images, augmentation):
    task = tiny_task("npid", negatives=4000)
    task.make_room(6001)
    rows = torch.tensor([0, 3000, 6000])
    task.look_at(rows)
    *_, negatives = task.views(toy_images(3).pixels, augmentation, generator(1))
    assert negatives.shape == (3, 4000)
    assert not bool((negatives == rows.unsqueeze(1)).any())
    for drawn in negatives:
        assert 0 <= int(drawn.min()) < 20
        assert 5980 < int(drawn.max()) <= 6000
        assert drawn.double().mean().item() == pytest.approx(3000, abs=100)


def test_an_images_row_goes_half_way_to_its_embedding_and_no_other_row_moves(tiny_task, toy_images, augmentation):
    task = tiny_task("npid")
    before = task.local.bank.clone()
    rows = torch.tensor([5, 40])
    task.look_at(rows)
    views = task.views(toy_images(2).pixels, augmentation, generator(1))
    assert torch.equal(views[1], before[rows])
    task.loss(views, generator(2))
    assert torch.equal(task.local.bank, before)
    task.after_step(views, 0.0)
    embeddings = F.normalize(task.head(task.backbone(views[0])), dim=1)
    for row, embedding in zip(rows, embeddings, strict=True):
        mean = 0.5 * before[row] + 0.5 * embedding
        torch.testing.assert_close(task.local.bank[row], mean / mean.norm())
    others = [row for row in range(64) if row not in rows.tolist()]
    assert torch.equal(task.local.bank[others], before[others])


def test_an_image_that_is_held_out_is_to_be_found_by_its_other_view_and_leaves_nothing(
    tiny_task, toy_images, augmentation
):
    task = tiny_task("npid").eval()
    before = task.local.bank.clone()
    task.look_at(torch.tensor([1, 2]))
    task.look_at(None)
    views = task.views(toy_images(2).pixels, augmentation, generator(1))
    random = generator(1)
    first, second = augmentation(toy_images(2).pixels, random), augmentation(toy_images(2).pixels, random)
    assert torch.equal(views[0], first)
    torch.testing.assert_close(views[1], F.normalize(task.head(task.backbone(second)), dim=1))
    assert [sorted(rows) for rows in views[2].tolist()] == [list(range(64))] * 2
    task.loss(views, generator(2))
    task.after_step(views, 0.0)
    assert torch.equal(task.local.bank, before)


def test_the_defaults_are_the_papers_but_for_the_number_of_negatives():
    options = NPIDOptions()
    assert (options.negatives, options.momentum, options.temperature, options.projection_dim) == (1024, 0.5, 0.07, 128)
