"""The losses are those of the papers: equal to lightly's, to MONAI's and to a naive version."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from monai.losses import ContrastiveLoss

from aiseeme_models.pretext.byol import negative_cosine
from aiseeme_models.pretext.moco import info_nce
from aiseeme_models.pretext.simclr import nt_xent


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


def test_losses_are_computed_in_float32_whatever_the_precision_of_the_network():
    first, second = projections(8, 16, seed=1).bfloat16(), projections(8, 16, seed=2).bfloat16()
    assert nt_xent(first, second, 0.1).dtype == torch.float32
    assert negative_cosine(first, second).dtype == torch.float32
    assert info_nce(first, F.normalize(second.float()), F.normalize(second.float()), 0.1).dtype == torch.float32


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_similarities_are_computed_in_float32_under_autocast_too(temperature):
    first, second = projections(32, 64, seed=1).bfloat16(), projections(32, 64, seed=2).bfloat16()
    bank = F.normalize(projections(128, 64, seed=3).detach(), dim=1)
    keys = F.normalize(second.detach().float(), dim=1)
    rounded = first.detach().float().requires_grad_()
    for loss in (
        lambda x: nt_xent(x, second.to(x.dtype), temperature),
        lambda x: info_nce(x, keys, bank, temperature),
    ):
        expected = loss(rounded)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(first)
            in_float32 = loss(rounded)
        assert value.item() == pytest.approx(expected.item(), abs=1e-6)
        assert in_float32.item() == pytest.approx(expected.item(), abs=1e-6)
        (gradient,) = torch.autograd.grad(in_float32, rounded)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, rounded)[0], atol=1e-7, rtol=1e-5)
