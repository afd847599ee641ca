"""Stand-ins for a site's images, and small tasks on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from aiseeme_models.backbones import Backbone, Norm, build_backbone, initialise
from aiseeme_models.backbones.resnet import BasicBlock, ResNet
from aiseeme_models.curriculum.stage_tasks import build_task
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.images.augmentation_options import AugmentationOptions
from aiseeme_models.pretext import PretextTask, pretext_tasks
from aiseeme_models.seeding import generator
from tests.models.small_tasks import required


class TensorImages:
    """Images in memory, with the interface of ``CachedImages``."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels
        self.shape = tuple(pixels.shape[1:])

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: Tensor) -> Tensor:
        return self.pixels[indices]

    def select(self, indices: Sequence[int]) -> TensorImages:
        return TensorImages(self.pixels[list(indices)])


def toy_pixels(count: int, channels: int = 3, size: int = 48) -> Tensor:
    """Every image: a vertical brightness gradient (so there is an upright) and a disc of its own place and colour."""
    random = generator(11, "toy")
    axis = torch.linspace(0, 1, size)
    centre = 0.25 + 0.5 * torch.rand((count, 2), generator=random)
    colour = torch.rand((count, channels), generator=random)
    distance = (axis.view(1, -1, 1) - centre[:, 0].view(-1, 1, 1)) ** 2
    distance = distance + (axis.view(1, 1, -1) - centre[:, 1].view(-1, 1, 1)) ** 2  # (N, S, S)
    disc = (distance < 0.03).float().unsqueeze(1)  # (N, 1, S, S)
    background = (0.2 + 0.5 * axis).view(1, 1, -1, 1)
    image = background * (1 - disc) + colour.view(count, channels, 1, 1) * disc
    return (image * 255).to(torch.uint8)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """The networks here are tiny: threads of several test processes would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def toy_images() -> Callable[..., TensorImages]:
    return lambda count, channels=3, size=48: TensorImages(toy_pixels(count, channels, size))


@pytest.fixture
def tiny_task() -> Callable[..., PretextTask]:
    """A seeded task on a ResNet of width 16 with one block per layer (or the backbone called ``backbone``)."""

    def make(name: str, norm: Norm = "group", *, seed: int = 0, backbone: str | None = None, **options) -> PretextTask:
        encoder: Backbone
        if backbone is None:
            encoder = ResNet(BasicBlock, (1, 1, 1, 1), width=16, small_images=True, norm=norm, in_channels=3)
        else:
            encoder = build_backbone(backbone, norm=norm, in_channels=3)
        task = build_task(name, encoder, pretext_tasks[name].options_type(**(required(name) | options)), norm)
        initialise(task.shared, generator(seed, "weights"))
        task.make_room(64)
        task.reset_local(generator(seed, "local"))
        task.begin_round()
        return task

    return make


@pytest.fixture
def augmentation() -> BatchAugmentation:
    options = AugmentationOptions(crop_min=0.5, flip_horizontal=True, brightness=0.1, contrast=0.1)
    return BatchAugmentation(options, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
