"""Distillation adds the distance from a frozen backbone's features, and nothing else changes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from aiseeme_models.backbones import initialise
from aiseeme_models.distillation import DistillOptions, Teaching
from aiseeme_models.distillation.feature_kl import feature_kl
from aiseeme_models.distillation.feature_mse import feature_mse
from aiseeme_models.distillation.moon import model_contrastive
from aiseeme_models.privacy.patient_gradients import PatientGradients
from aiseeme_models.seeding import generator
from aiseeme_models.training.loop import train_round
from aiseeme_models.training.options import TrainingOptions

CPU = torch.device("cpu")


def features(rows: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn((rows, dim), generator=generator(seed), dtype=torch.float32)


def naive_kl(student, teacher, temperature):
    total = 0.0
    for s, t in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        p = [math.exp(value / temperature) for value in t]
        q = [math.exp(value / temperature) for value in s]
        p, q = [value / sum(p) for value in p], [value / sum(q) for value in q]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total * temperature**2 / len(student)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_kl_of_softened_features_equals_the_sum_written_out(temperature):
    student, teacher = features(5, 7, 1), features(5, 7, 2)
    assert feature_kl(student, teacher, temperature).item() == pytest.approx(naive_kl(student, teacher, temperature))


def test_the_gradient_of_the_kl_is_the_difference_of_the_distributions_times_the_temperature():
    student, teacher = features(5, 7, 1).requires_grad_(), features(5, 7, 2)
    (gradient,) = torch.autograd.grad(feature_kl(student, teacher, 4.0), student)
    by_hand = 4.0 * (F.softmax(student / 4, dim=1) - F.softmax(teacher / 4, dim=1)) / 5
    torch.testing.assert_close(gradient, by_hand.detach(), atol=1e-6, rtol=1e-5)


def test_the_mse_is_that_of_the_lab():
    student, teacher = features(4, 6, 1), features(4, 6, 2)
    by_hand = sum((a - b) ** 2 for a, b in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True))
    assert feature_mse(student, teacher).item() == pytest.approx(by_hand / 24, rel=1e-5)


def test_the_model_contrastive_loss_is_eq_3_of_moon():
    student, teacher, previous = (features(6, 5, seed) for seed in (1, 2, 3))
    total = 0.0
    for s, t, p in zip(student, teacher, previous, strict=True):
        near = math.exp(float(s @ t / (s.norm() * t.norm())) / 0.5)
        far = math.exp(float(s @ p / (s.norm() * p.norm())) / 0.5)
        total -= math.log(near / (near + far))
    assert model_contrastive(student, teacher, previous, 0.5).item() == pytest.approx(total / 6, rel=1e-5)


@pytest.mark.parametrize("distance", [lambda s, t: feature_kl(s, t, 4.0), feature_mse])
def test_distances_are_computed_in_float32_under_autocast(distance):
    student, teacher = features(4, 6, 1), features(4, 6, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert distance(student.bfloat16(), teacher.bfloat16()).dtype == torch.float32
        assert distance(student, teacher).item() == pytest.approx(distance(student, teacher).item(), rel=1e-6)


@pytest.fixture
def other_backbone(tiny_task):
    def make(name: str = "rotation", norm: str = "group", seed: int = 5):
        backbone = copy.deepcopy(tiny_task(name, norm).backbone)
        initialise(backbone, generator(seed, "weights"))
        return backbone

    return make


def test_a_student_that_is_its_teacher_feels_no_pull(tiny_task, toy_images, augmentation):
    task = tiny_task("rotation")
    teacher = copy.deepcopy(task.backbone)
    views = task.views(toy_images(4).batch(torch.arange(4)), augmentation, generator(1))
    for kind in ("kl", "mse"):
        options = DistillOptions(kind=kind, pretext_weight=0.0)
        total, alone = Teaching(options, copy.deepcopy(teacher)).loss(task, lambda: task.loss(views, generator(2)))
        assert total.item() == pytest.approx(0.0, abs=1e-6)
        assert alone.item() == pytest.approx(task.loss(views, generator(2)).item())
        total.backward()
        assert max(float(weight.grad.abs().max()) for weight in task.backbone.parameters()) < 1e-5
        task.zero_grad(set_to_none=True)


def test_the_sum_has_the_labs_weights(tiny_task, other_backbone, toy_images, augmentation):
    task, teacher = tiny_task("simclr"), other_backbone()
    views = task.views(toy_images(4).batch(torch.arange(4)), augmentation, generator(1))
    total, alone = Teaching(DistillOptions(kind="mse"), teacher).loss(task, lambda: task.loss(views, generator(2)))
    both = torch.cat(views)
    apart = feature_mse(task.backbone(both), teacher(both))
    assert total.item() == pytest.approx(0.1 * alone.item() + apart.item(), rel=1e-5)


def test_every_resolution_counts_alike(tiny_task, other_backbone, toy_images, augmentation):
    task, teacher = tiny_task("simclr"), other_backbone()
    images = toy_images(4).batch(torch.arange(4))
    large, small = augmentation(images, generator(1)), augmentation(images, generator(2), size=24)

    def pretext():
        return task.backbone(large).sum() + task.backbone(small).sum()

    total, _ = Teaching(DistillOptions(pretext_weight=0.0), teacher).loss(task, pretext)
    each = [feature_kl(task.backbone(view), teacher(view), 4.0).item() for view in (large, small)]
    assert total.item() == pytest.approx(sum(each) / 2, rel=1e-5)


def test_moon_is_silent_while_there_is_no_earlier_model(tiny_task, other_backbone, toy_images, augmentation):
    task = tiny_task("rotation")
    views = task.views(toy_images(4).batch(torch.arange(4)), augmentation, generator(1))
    options = DistillOptions(kind="moon", teacher="round", pretext_weight=1.0)
    total, alone = Teaching(options, other_backbone()).loss(task, lambda: task.loss(views, generator(2)))
    assert total.item() == alone.item()
    with_previous = Teaching(options, other_backbone(), other_backbone(seed=6))
    total, alone = with_previous.loss(task, lambda: task.loss(views, generator(2)))
    assert total.item() > alone.item()


@pytest.mark.parametrize(("name", "norm"), [("rotation", "group"), ("moco", "group"), ("byol", "group-ws")])
def test_a_taught_round_stays_nearer_to_its_teacher_and_tells_the_pretext_loss(
    name, norm, tiny_task, toy_images, augmentation
):
    images = toy_images(16, size=32)
    options = TrainingOptions(batch_size=8, local_epochs=4, lr=3e-3)
    moved, told = [], []
    for weight in (1e-6, 100.0):
        task = tiny_task(name, norm, **({"queue": 16} if name == "moco" else {}))
        teacher = copy.deepcopy(task.backbone)
        kept = {key: value.clone() for key, value in teacher.state_dict().items()}
        teaching = Teaching(DistillOptions(kind="mse", weight=weight, pretext_weight=1.0), teacher)
        outcome = train_round(
            task,
            images,
            options,
            augmentation=augmentation,
            seed=2,
            stage_progress=(0.0, 1.0),
            device=CPU,
            teaching=teaching,
        )
        assert all(torch.equal(value, kept[key]) for key, value in teacher.state_dict().items())
        assert not teacher.training
        plain = augmentation.plain(images.batch(torch.arange(16)))
        with torch.no_grad():
            moved.append(F.mse_loss(task.eval().backbone(plain), teacher(plain)).item())
        told.append(outcome.loss)
    assert moved[1] < 0.5 * moved[0]
    assert max(told) < 20, "what is told is the task's own loss, not 100 times a distance"


def test_one_patients_distillation_is_clipped_with_the_rest_of_it(tiny_task, other_backbone, toy_images, augmentation):
    task = tiny_task("rotation")
    teaching = Teaching(DistillOptions(kind="kl", weight=2.0), other_backbone())
    views = task.views(toy_images(3).pixels, augmentation, generator(2))

    def loss(own):
        return teaching.loss(task, lambda: task.loss(own, generator(1)))[0]

    _, norms = PatientGradients(task.shared).add_clipped(lambda: loss(views), 3, clipping="flat", bound=1.0)
    for patient in range(3):
        task.shared.zero_grad(set_to_none=True)
        loss(tuple(view.unflatten(0, (3, -1))[patient] for view in views)).backward()
        norm = torch.cat([weight.grad.flatten() for weight in task.shared.parameters()]).norm()
        assert norms[patient].item() == pytest.approx(norm.item(), rel=1e-4)


def test_options_of_the_wrong_kind_are_refused():
    with pytest.raises(ValidationError, match=r"options.temperature: unknown key"):
        DistillOptions.model_validate({"kind": "mse", "options": {"temperature": 2.0}})
    with pytest.raises(ValidationError, match="unknown distillation 'klt'"):
        DistillOptions.model_validate({"kind": "klt"})
