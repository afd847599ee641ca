"""Collapse is found where the features have become one, and not where they are healthy or untrained."""

from __future__ import annotations

import pytest
import torch

from aiseeme_models.analysis.collapse import FEWEST, IMAGES, has_collapsed
from aiseeme_models.backbones import backbones, initialise
from aiseeme_models.backbones.resnet import BasicBlock, ResNet
from aiseeme_models.curriculum.stage_tasks import build_task
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.images.augmentation_options import AugmentationOptions
from aiseeme_models.pretext import PretextTask, pretext_tasks
from aiseeme_models.seeding import generator
from aiseeme_models.training.loop import train_round
from aiseeme_models.training.options import TrainingOptions
from tests.models.conftest import TensorImages, toy_pixels
from tests.models.small_tasks import SMALL

CPU = torch.device("cpu")
AUGMENTATION = BatchAugmentation(
    AugmentationOptions(crop_min=0.5, flip_horizontal=True, brightness=0.1, contrast=0.1), (0.5,) * 3, (0.25,) * 3
)
PIXELS = toy_pixels(112)
TRAINING, HELDOUT = TensorImages(PIXELS[:96]), TensorImages(PIXELS[96:])


def new_backbone(norm: str = "group", name: str | None = None) -> ResNet:
    if name is None:
        made = ResNet(BasicBlock, (1, 1, 1, 1), width=16, small_images=True, norm=norm, in_channels=3)
    else:
        made = backbones[name](norm=norm, in_channels=3)
    initialise(made, generator(0, "weights"))
    return made


def new_task(name: str, norm: str = "group", backbone: str | None = None) -> PretextTask:
    options = pretext_tasks[name].options_type(**SMALL.get(name, {}))
    task = build_task(name, new_backbone(norm, backbone), options, norm)
    initialise(task.shared["head"], generator(0, "head"))
    task.make_room(len(TRAINING))
    task.reset_local(generator(0, "local"))
    task.begin_round()
    return task


def trained(name: str, norm: str, rounds: int) -> PretextTask:
    task = new_task(name, norm)
    options = TrainingOptions(batch_size=16, optimizer="adamw", lr=1e-3)
    for number in range(rounds):
        progress = (number / rounds, (number + 1) / rounds)
        train_round(
            task, TRAINING, options, augmentation=AUGMENTATION, seed=number, stage_progress=progress, device=CPU
        )
    return task


def collapsed(task: PretextTask, images: TensorImages = HELDOUT, norm: str = "group", name: str | None = None):
    untrained = lambda: new_backbone(norm, name)  # noqa: E731
    return has_collapsed(task, images, AUGMENTATION, seed=5, device=CPU, untrained=untrained)


def test_byol_with_plain_group_norm_is_found_out() -> None:
    assert collapsed(trained("byol", "group", 3)) is True


@pytest.mark.parametrize(("name", "norm"), [("simclr", "group"), ("rotation", "group"), ("byol", "batch")])
def test_healthy_training_is_not(name: str, norm: str) -> None:
    assert collapsed(trained(name, norm, 3), norm=norm) is False


@pytest.mark.parametrize("norm", ["group", "group-ws", "batch", "batch-local"])
@pytest.mark.parametrize("name", list(pretext_tasks))
def test_an_untrained_backbone_has_not_collapsed(name: str, norm: str) -> None:
    assert collapsed(new_task(name, norm), norm=norm) is False


def test_images_that_are_much_alike_are_not_taken_for_collapse() -> None:
    """What is small for some images is all that there is for others: the untrained backbone is what counts."""
    alike = TensorImages((PIXELS[:1].float() + 3 * PIXELS[96:].float() / 255).clamp(0, 255).to(torch.uint8))
    task = new_task("simclr")
    plain = BatchAugmentation(AugmentationOptions(crop_min=1, crop_max=1), (0.5,) * 3, (0.25,) * 3)
    asked: list[int] = []

    def untrained() -> ResNet:
        asked.append(1)
        return new_backbone()

    assert has_collapsed(task, alike, plain, seed=5, device=CPU, untrained=untrained) is False
    assert asked == [1], "the spread is small, so the untrained backbone was asked"


def test_a_dead_backbone_has_collapsed() -> None:
    task = new_task("simclr")
    with torch.no_grad():
        for weight in task.backbone.parameters():
            weight.zero_()
    assert collapsed(task) is True


def test_few_images_tell_nothing() -> None:
    task = new_task("simclr")
    assert collapsed(task, HELDOUT.select(range(FEWEST - 1))) is None
    assert collapsed(task, HELDOUT.select(range(FEWEST))) is False


@pytest.mark.parametrize("name", list(pretext_tasks))
def test_looking_changes_nothing_and_sees_the_first_images_only(name: str) -> None:
    task = new_task(name, "batch").train()
    before = {key: value.clone() for key, value in task.state_dict().items()}
    seen: list[int] = []

    class Watched(TensorImages):
        def batch(self, indices: torch.Tensor) -> torch.Tensor:
            seen.extend(indices.tolist())
            return super().batch(indices)

    assert collapsed(task, Watched(PIXELS), norm="batch") is False
    assert seen == list(range(IMAGES))
    assert all(torch.equal(task.state_dict()[key], value) for key, value in before.items())
    assert task.training and all(weight.grad is None for weight in task.parameters())
