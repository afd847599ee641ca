"""SimSiam predicts the other view, and nothing but the stopped gradient and the norm keeps it from collapsing."""

from __future__ import annotations

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity

from aiseeme_models.seeding import generator
from tests.models.spread import spread_before_and_after


def test_the_loss_and_its_gradients_are_those_of_lightlys_two_passes(tiny_task, toy_images, augmentation):
    task = tiny_task("simsiam", "group")  # no batch statistics: two passes are one
    views = task.views(toy_images(5).batch(torch.arange(5)), augmentation, generator(1))
    loss = task.loss(views, generator(2))
    criterion, (projector, predictor) = NegativeCosineSimilarity(), task.head
    first, second = views[0].unflatten(0, (5, 2)).unbind(1)
    z0, z1 = projector(task.backbone(first)), projector(task.backbone(second))
    p0, p1 = predictor(z0), predictor(z1)
    expected = 0.5 * (criterion(p0, z1.detach()) + criterion(p1, z0.detach()))
    assert loss.item() == pytest.approx(1 + expected.item(), abs=1e-5)
    weights = list(task.shared.parameters())
    for own, other in zip(torch.autograd.grad(loss, weights), torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_projections_are_normalised_without_weights_of_their_own(norm, tiny_task):
    projector, predictor = tiny_task("simsiam", norm, projection_dim=32, bottleneck_dim=8).train().head
    assert not list(projector[-1].parameters())
    assert [tuple(layer.weight.shape) for layer in predictor if isinstance(layer, torch.nn.Linear)] == [
        (8, 32),
        (32, 8),
    ]
    rows = projector(torch.randn(64, 128, generator=torch.Generator().manual_seed(0)))
    over = 0 if norm == "batch" else 1
    torch.testing.assert_close(rows.mean(dim=over), torch.zeros(rows.shape[1 - over]), atol=1e-4, rtol=0)
    torch.testing.assert_close(rows.var(dim=over, unbiased=False).mean(), torch.tensor(1.0), atol=1e-2, rtol=0)


@pytest.mark.parametrize(("norm", "apart"), [("batch", True), ("group", False), ("group-ws", False)])
def test_images_stay_apart_with_batch_statistics_only(norm, apart, tiny_task, toy_images, augmentation):
    untrained, trained = spread_before_and_after(tiny_task("simsiam", norm), toy_images(64, size=32), augmentation)
    assert (trained > untrained) if apart else (trained < 0.4 * untrained)
