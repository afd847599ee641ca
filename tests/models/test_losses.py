"""The losses are those of the papers: equal to lightly's, to MONAI's and to a naive version."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import BarlowTwinsLoss, DINOLoss, NegativeCosineSimilarity, NTXentLoss, VICRegLoss
from monai.losses import ContrastiveLoss

from aiseeme_models.pretext.barlow_twins import barlow_twins_loss
from aiseeme_models.pretext.byol import negative_cosine
from aiseeme_models.pretext.correlation import squared_norm_of_product
from aiseeme_models.pretext.dino import dino_loss
from aiseeme_models.pretext.moco import info_nce
from aiseeme_models.pretext.simclr import nt_xent
from aiseeme_models.pretext.vicreg import vicreg_loss


def projections(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def assert_same_loss_and_gradients(ours, theirs, inputs):
    value, reference = ours(*inputs), theirs(*inputs)
    assert value.item() == pytest.approx(reference.item(), abs=1e-5)
    for own, other in zip(torch.autograd.grad(value, inputs), torch.autograd.grad(reference, inputs), strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)


def naive_nt_xent(first, second, temperature):
    """Eq. 1 of SimCLR, written out."""
    z = [row / row.norm() for row in (*first, *second)]
    count = len(first)
    total = 0.0
    for i, anchor in enumerate(z):
        partner = (i + count) % (2 * count)
        terms = [math.exp(float(anchor @ other) / temperature) for j, other in enumerate(z) if j != i]
        total -= math.log(math.exp(float(anchor @ z[partner]) / temperature) / sum(terms))
    return total / (2 * count)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 0.5])
@pytest.mark.parametrize(("batch", "dim"), [(2, 3), (17, 32), (64, 128)])
def test_nt_xent_equals_lightly(batch, dim, temperature):
    inputs = (projections(batch, dim, seed=1), projections(batch, dim, seed=2))
    assert_same_loss_and_gradients(lambda a, b: nt_xent(a, b, temperature), NTXentLoss(temperature), inputs)


def test_nt_xent_equals_the_naive_double_loop():
    first, second = projections(5, 4, seed=1).detach(), projections(5, 4, seed=2).detach()
    assert nt_xent(first, second, 0.3).item() == pytest.approx(naive_nt_xent(first, second, 0.3), abs=1e-5)


def test_nt_xent_equals_monais_contrastive_loss():
    inputs = (projections(12, 16, seed=1), projections(12, 16, seed=2))
    assert_same_loss_and_gradients(lambda a, b: nt_xent(a, b, 0.2), ContrastiveLoss(temperature=0.2), inputs)


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_info_nce_equals_lightly_with_a_memory_bank(temperature):
    theirs = NTXentLoss(temperature, memory_bank_size=(32, 16))
    bank = F.normalize(projections(32, 16, seed=5).detach(), dim=1)
    theirs.memory_bank.bank.copy_(bank)
    theirs.memory_bank._dequeue_and_enqueue = lambda batch: None  # the same bank for both calls
    queries = projections(8, 16, seed=3)
    keys = F.normalize(projections(8, 16, seed=4).detach(), dim=1)
    assert_same_loss_and_gradients(
        lambda q: info_nce(q, keys, bank, temperature), lambda q: theirs(q, keys), (queries,)
    )


def test_info_nce_equals_the_naive_loop():
    queries = projections(3, 4, seed=3).detach()
    keys = F.normalize(projections(3, 4, seed=4).detach(), dim=1)
    bank = F.normalize(projections(6, 4, seed=5).detach(), dim=1)
    total = 0.0
    for query, key in zip(queries, keys, strict=True):
        q = query / query.norm()
        positive = math.exp(float(q @ key) / 0.2)
        total -= math.log(positive / (positive + sum(math.exp(float(q @ other) / 0.2) for other in bank)))
    assert info_nce(queries, keys, bank, 0.2).item() == pytest.approx(total / 3, abs=1e-5)


def test_negative_cosine_equals_lightly():
    inputs = (projections(9, 16, seed=1), projections(9, 16, seed=2))
    assert_same_loss_and_gradients(negative_cosine, NegativeCosineSimilarity(), inputs)


@pytest.mark.parametrize(("batch", "dim"), [(3, 8), (8, 3), (5, 5)])
def test_the_norm_of_a_product_is_that_of_the_matrix(batch, dim):
    inputs = (projections(batch, dim, seed=1), projections(batch, dim, seed=2))
    assert_same_loss_and_gradients(
        lambda a, b: squared_norm_of_product(a / 4, b / 4), lambda a, b: (a.T @ b / 16).norm().square(), inputs
    )


@pytest.mark.parametrize("redundancy", [5e-3, 0.5])
@pytest.mark.parametrize(("batch", "dim"), [(2, 3), (17, 32), (64, 128), (128, 16)])
def test_barlow_twins_equals_lightly(batch, dim, redundancy):
    first = projections(batch, dim, seed=1)
    inputs = (first, (first.detach() + 0.3 * projections(batch, dim, seed=2).detach()).requires_grad_())
    assert_same_loss_and_gradients(
        lambda a, b: barlow_twins_loss(a, b, redundancy), BarlowTwinsLoss(redundancy), inputs
    )


def test_barlow_twins_equals_the_naive_loops():
    """Algorithm 1 of the paper, element by element."""
    first, second = (3 * projections(6, 4, seed=1) + 1).detach(), projections(6, 4, seed=2).detach()
    a, b = ((z - z.mean(dim=0)) / z.std(dim=0, unbiased=False) for z in (first, second))
    total = 0.0
    for i in range(4):
        for j in range(4):
            correlation = sum(float(a[n, i] * b[n, j]) for n in range(6)) / 6
            total += (correlation - 1) ** 2 if i == j else 0.02 * correlation**2
    assert barlow_twins_loss(first, second, 0.02).item() == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
@pytest.mark.parametrize(("batch", "dim"), [(2, 3), (17, 32), (64, 128), (128, 16)])
def test_vicreg_equals_lightly(batch, dim, weights):
    scale = torch.linspace(0.2, 1.5, dim)  # standard deviations on both sides of 1
    inputs = tuple((projections(batch, dim, seed=seed).detach() * scale).requires_grad_() for seed in (1, 2))
    assert_same_loss_and_gradients(lambda a, b: vicreg_loss(a, b, *weights), VICRegLoss(*weights), inputs)


@pytest.mark.parametrize("local_crops", [0, 3])
@pytest.mark.parametrize("temperature", [0.04, 0.07])
def test_dinos_loss_equals_lightly(temperature, local_crops):
    theirs = DINOLoss(output_dim=32)
    theirs.center.copy_(projections(1, 1, 32, seed=5).detach() / 10)
    centre = theirs.center.flatten().clone()
    theirs.update_center = lambda outputs: None  # the same centre for both calls
    students = (projections(6, 2 + local_crops, 32, seed=3) / 5).detach().requires_grad_()
    teachers = projections(6, 2, 32, seed=4).detach() / 5
    assert_same_loss_and_gradients(
        lambda s: dino_loss(s, teachers, centre, 0.1, torch.tensor(temperature)),
        lambda s: theirs(list(teachers.unbind(1)), list(s.unbind(1)), teacher_temp=temperature),
        (students,),
    )


def test_dinos_loss_equals_the_naive_loops():
    """Algorithm 1 of the paper, element by element, with one local crop."""
    students, teachers = projections(2, 3, 5, seed=3).detach(), projections(2, 2, 5, seed=4).detach() / 5
    centre = projections(5, seed=5).detach() / 5
    total, terms = 0.0, 0
    for image in range(2):
        for teacher in range(2):
            weights = [math.exp(float(value) / 0.05) for value in teachers[image, teacher] - centre]
            for student in range(3):
                if student != teacher:
                    values = [math.exp(float(value) / 0.1) for value in students[image, student]]
                    terms += 1
                    for weight, value in zip(weights, values, strict=True):
                        total -= weight / sum(weights) * math.log(value / sum(values))
    loss = dino_loss(students, teachers, centre, 0.1, torch.tensor(0.05))
    assert loss.item() == pytest.approx(total / terms, abs=1e-4)


def test_losses_are_computed_in_float32_whatever_the_precision_of_the_network():
    first, second = projections(8, 16, seed=1).bfloat16(), projections(8, 16, seed=2).bfloat16()
    assert nt_xent(first, second, 0.1).dtype == torch.float32
    assert negative_cosine(first, second).dtype == torch.float32
    assert info_nce(first, F.normalize(second.float()), F.normalize(second.float()), 0.1).dtype == torch.float32
    assert barlow_twins_loss(first, second, 5e-3).dtype == torch.float32
    assert vicreg_loss(first, second, 25.0, 25.0, 1.0).dtype == torch.float32
    students, teachers = first.view(4, 2, 16), second.view(4, 2, 16)
    assert dino_loss(students, teachers, torch.zeros(16), 0.1, torch.tensor(0.04)).dtype == torch.float32


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_similarities_are_computed_in_float32_under_autocast_too(temperature):
    first, second = projections(32, 64, seed=1).bfloat16(), projections(32, 64, seed=2).bfloat16()
    bank = F.normalize(projections(128, 64, seed=3).detach(), dim=1)
    keys = F.normalize(second.detach().float(), dim=1)
    rounded = first.detach().float().requires_grad_()
    for loss in (
        lambda x: nt_xent(x, second.to(x.dtype), temperature),
        lambda x: info_nce(x, keys, bank, temperature),
        lambda x: barlow_twins_loss(x, second.to(x.dtype), 5e-3),
        lambda x: vicreg_loss(x, second.to(x.dtype), 25.0, 25.0, 1.0),
        lambda x: dino_loss(x.view(8, 4, 64), bank[:16].view(8, 2, 64), bank[0], temperature, torch.tensor(0.04)),
    ):
        expected = loss(rounded)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(first)
            in_float32 = loss(rounded)
        assert value.item() == pytest.approx(expected.item(), abs=1e-6)
        assert in_float32.item() == pytest.approx(expected.item(), abs=1e-6)
        (gradient,) = torch.autograd.grad(in_float32, rounded)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, rounded)[0], atol=1e-7, rtol=1e-5)
