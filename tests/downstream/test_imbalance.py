"""Class weights, focal loss and class-wise curricula against independent references and written-out loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.losses import FocalLoss
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from aiseeme_models.downstream.ccl import CCLOptions, admitted, class_difficulties
from aiseeme_models.downstream.class_weights import class_weightings
from aiseeme_models.downstream.losses import batch_loss, class_sums, image_losses
from aiseeme_models.errors import InputError
from aiseeme_models.options import parse_options

COUNTS = torch.tensor([600, 300, 90, 10])


def drawn(images: int = 40, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    logits = torch.randn(images, classes, generator=source) * 3
    return logits.requires_grad_(), torch.randint(classes, (images,), generator=source)


def test_weights_by_hand_and_by_scikit_learn() -> None:
    labels = np.repeat(np.arange(4), COUNTS.numpy())
    expected = {
        "none": np.ones(4),
        "frequency": np.array([0.4, 0.7, 0.91, 0.99]),
        "inverse": compute_class_weight("balanced", classes=np.arange(4), y=labels),
        "effective-number": np.array([(1 - 0.9999) / (1 - 0.9999**n) for n in (600, 300, 90, 10)]),
    }
    expected["effective-number"] *= 4 / expected["effective-number"].sum()
    assert set(expected) == set(class_weightings)
    for name, weights in expected.items():
        found = class_weightings[name](COUNTS)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), weights, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(class_weightings))
def test_a_class_without_images_has_a_finite_weight(name: str) -> None:
    assert torch.isfinite(class_weightings[name](torch.tensor([5, 0, 3]))).all()


def test_the_weighted_mean_is_torchs() -> None:
    logits, targets = drawn()
    weights = torch.tensor([0.4, 0.7, 0.91, 0.99])
    ours = batch_loss(image_losses(logits, targets), targets, weights)
    theirs = functional.cross_entropy(logits, targets, weight=weights)
    torch.testing.assert_close(ours, theirs)
    (one,), (two,) = torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_the_focal_loss_is_monais(gamma: float) -> None:
    logits, targets = drawn()
    ours = image_losses(logits, targets, gamma=gamma)
    one_hot = functional.one_hot(targets, 4).float()
    theirs = FocalLoss(use_softmax=True, gamma=gamma, reduction="none")(logits, one_hot).sum(dim=1)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    (one,), (two,) = torch.autograd.grad(ours.sum(), logits), torch.autograd.grad(theirs.sum(), logits)
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_only_admitted_classes_are_in_the_mean_also_where_their_loss_is_zero() -> None:
    losses, targets = torch.tensor([0.0, 4.0, 2.0, 9.0]), torch.tensor([0, 1, 0, 2])
    weights, in_now = torch.ones(3), torch.tensor([True, True, False])
    assert batch_loss(losses, targets, weights, in_now) == pytest.approx(2.0)
    logits, of_class = drawn()
    ours = batch_loss(image_losses(logits, of_class), of_class, torch.ones(4), torch.tensor([True, False, True, False]))
    keep = (of_class == 0) | (of_class == 2)
    theirs = functional.cross_entropy(logits[keep], of_class[keep])
    torch.testing.assert_close(ours, theirs)
    (gradient,) = torch.autograd.grad(ours, logits)
    assert gradient[~keep].abs().max() == 0


def test_a_batch_of_classes_that_are_not_in_yet_moves_nothing() -> None:
    logits, targets = drawn(6)
    loss = batch_loss(image_losses(logits, targets), targets, torch.ones(4), torch.zeros(4, dtype=torch.bool))
    assert loss == 0
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.abs().max() == 0


def test_class_sums_are_those_of_a_loop() -> None:
    logits, targets = drawn(50)
    losses = image_losses(logits, targets).detach()
    sums, counts = class_sums(losses, targets, 5)
    for index in range(5):
        own = [float(loss) for loss, target in zip(losses, targets, strict=True) if target == index]
        assert sums[index] == pytest.approx(sum(own)) and counts[index] == len(own)
    assert counts[4] == 0 and sums[4] == 0


def lab_schedule(classes: int, start: int, step: int, increment: int, epochs: int) -> list[int]:
    """The published code's admission, in percent; its first epoch is on all classes, and K grows after it was used."""
    known = round(start * classes / 100)
    admitted_in = [classes]
    for epoch in range(1, epochs):
        admitted_in.append(known)
        if epoch % step == 0:
            known = min(classes, known + round(increment * classes / 100))
    return admitted_in


@pytest.mark.parametrize(("classes", "start", "step", "increment"), [(10, 50, 20, 10), (100, 20, 3, 7), (8, 50, 1, 25)])
def test_classes_are_let_in_as_the_published_code_does(classes: int, start: int, step: int, increment: int) -> None:
    options = CCLOptions(start=start / 100, increment=increment / 100, every=step)
    found = [options.admitted_classes(epoch, classes) for epoch in range(120)]
    assert found == lab_schedule(classes, start, step, increment, 120)


@pytest.mark.parametrize("classes", [1, 2, 3, 7, 8, 100])
@pytest.mark.parametrize("start", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("increment", [0.01, 0.3, 1.0])
def test_all_classes_come_in_and_never_more(classes: int, start: float, increment: float) -> None:
    options = CCLOptions(start=start, increment=increment, every=2, warmup=3)
    numbers = [options.admitted_classes(number, classes) for number in range(300)]
    assert numbers[:3] == [classes] * 3
    assert numbers[3:] == sorted(numbers[3:]) and numbers[3] >= 1 and numbers[-1] == classes
    first = options.all_in_from(classes)
    assert numbers[first] == classes and all(number < classes for number in numbers[3:first])


def test_the_learning_rate_waits_until_all_classes_are_in() -> None:
    options = CCLOptions(start=0.5, increment=0.25, every=2, warmup=1)
    assert options.all_in_from(4) == 5
    found = [options.progress(round_in_stage / 10, 10, 4) for round_in_stage in range(11)]
    assert found == pytest.approx([0, 0, 0, 0, 0, 0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert options.progress(1.0, 4, 4) == 0.0  # a stage that ends before never decays


def test_difficulties_are_means_over_all_sites_and_classes_nobody_has_are_last() -> None:
    sums = [[4.0, 0.0, 1.0, 0.0], [8.0, 6.0, 2.0, 0.0]]
    counts = [[2, 0, 10, 0], [2, 2, 20, 0]]
    found = class_difficulties(sums, counts)
    assert found == [3.0, 3.0, pytest.approx(0.1), None]
    assert admitted(CCLOptions(), found, 1) == [False, False, True, False]
    assert admitted(CCLOptions(), found, 2) == [True, False, True, False]
    assert admitted(CCLOptions(), found, 3) == [True, True, True, False]
    anti = CCLOptions(order="anti", difficulties={"a": 1.0})
    assert admitted(anti, found, 1) == [True, False, False, False]
    assert admitted(anti, found, 4) == [True] * 4


def test_the_split_of_images_over_sites_changes_no_difficulty() -> None:
    logits, targets = drawn(60)
    losses = image_losses(logits, targets).detach()
    whole = [one.tolist() for one in class_sums(losses, targets, 4)]
    parts = [class_sums(losses[rows], targets[rows], 4) for rows in torch.arange(60).split([7, 23, 30])]
    apart = class_difficulties([one.tolist() for one, _ in parts], [one.tolist() for _, one in parts])
    assert apart == pytest.approx(class_difficulties([whole[0]], [whole[1]]))
    assert all(one is not None and math.isfinite(one) for one in apart)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"order": "static"}, "give them"),
        ({"order": "anti"}, "give them"),
        ({"difficulties": {"a": 1.0}}, "leave ccl.difficulties out"),
        ({"warmup": 0}, "needs a round on all classes"),
        ({"start": 0.0}, "ccl.start"),
    ],
)
def test_what_cannot_be_is_said(given: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_options(CCLOptions, given, where="ccl", owner="ccl")
