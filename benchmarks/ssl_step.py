"""A self-supervised step against lightly's of the same method: ``python -m benchmarks.ssl_step``.

A step is all that follows the views: forward (momentum encoders too), backward, optimiser, queues and moving averages.
Ours is the one of `aiseeme_models.training.loop`; lightly's is that of its example for PyTorch (examples/pytorch), its
heads and losses on torchvision's ResNet-18. Backbone, widths of the heads, queue, optimiser and views are the same, and
so are the images' memory layouts where ``--channels-last-both`` is given: the loop here asks for channels last,
lightly's examples do not. Apart from that the views: ours of a whole batch, lightly's image by image with torchvision
on Pillow images (its data loader without workers), and both together. Steps of both alternate in one process; a ratio
is the median of the pairs, beside the least and the most. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the commands have it

import numpy as np
import torch
import torchvision
from lightly import loss as losses
from lightly import transforms
from lightly.models import modules
from lightly.models.utils import deactivate_requires_grad, update_momentum
from PIL import Image
from torch import Tensor, nn

from aiseeme_models.backbones import build_backbone, initialise
from aiseeme_models.curriculum.stage_tasks import build_task
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.images.augmentation_options import AugmentationOptions
from aiseeme_models.pretext import PretextTask, pretext_tasks
from aiseeme_models.seeding import generator
from aiseeme_models.training.optimizers import build_optimizer

_FEATURES = 512  # of a ResNet-18
_QUEUE = 4096
_PROTOTYPES = 512
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What lightly's SimCLRTransform does by default; there colours change in 8 views of 10 only.
_STRENGTHS = AugmentationOptions(
    crop_min=0.08,
    aspect=4 / 3,
    flip_horizontal=True,
    brightness=0.8,
    contrast=0.8,
    saturation=0.8,
    hue=0.2,
    grayscale_p=0.2,
    blur_p=0.5,
)

Step = Callable[[], object]
Views = list[Tensor]


class _Ready(BatchAugmentation):
    """Gives views that were made before, in turn."""

    def __init__(self, views: Views) -> None:
        super().__init__(_STRENGTHS, _MEAN, _STD)
        self._views = itertools.cycle(views)

    def cropped(self, crop_min: float, crop_max: float) -> BatchAugmentation:
        return self

    def __call__(self, images: Tensor, generator: torch.Generator, size: int | None = None) -> Tensor:
        view = next(self._views)
        assert view.shape[-1] == (size or images.shape[-1])
        return view


class _Lightly(nn.Module):
    """A method of lightly.

    Args:
        head: on the pooled features.
    """

    def __init__(self, *head: nn.Module) -> None:
        super().__init__()
        backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])
        self.online = nn.Sequential(backbone, nn.Flatten(), *head)

    def loss(self, views: Views) -> Tensor:
        """The loss of a step."""
        raise NotImplementedError

    def before_step(self) -> None:
        """What the example does first."""


class _LightlySimCLR(_Lightly):
    def __init__(self) -> None:
        super().__init__(modules.SimCLRProjectionHead(_FEATURES, _FEATURES, 128))
        self.criterion = losses.NTXentLoss(0.2)

    def loss(self, views: Views) -> Tensor:
        first, second = (self.online(view) for view in views)
        loss: Tensor = self.criterion(first, second)
        return loss


class _LightlyBarlowTwins(_LightlySimCLR):
    def __init__(self) -> None:
        _Lightly.__init__(self, modules.BarlowTwinsProjectionHead(_FEATURES, 1024, 1024))
        self.criterion = losses.BarlowTwinsLoss()


class _LightlyMoCo(_Lightly):
    def __init__(self) -> None:
        super().__init__(modules.MoCoProjectionHead(_FEATURES, _FEATURES, 128))
        self.followed = self.online
        self.momentum = copy.deepcopy(self.followed)
        deactivate_requires_grad(self.momentum)
        self.criterion = losses.NTXentLoss(0.2, memory_bank_size=(_QUEUE, 128))

    def before_step(self) -> None:
        update_momentum(self.followed, self.momentum, m=0.99)

    def loss(self, views: Views) -> Tensor:
        query, key = views
        loss: Tensor = self.criterion(self.online(query), self.momentum(key).detach())
        return loss


class _LightlyBYOL(_LightlyMoCo):
    def __init__(self) -> None:
        super().__init__()
        self.followed = self.online = _Lightly(modules.BYOLProjectionHead(_FEATURES, 1024, 256)).online
        self.momentum = copy.deepcopy(self.followed)
        deactivate_requires_grad(self.momentum)
        self.predictor = modules.BYOLPredictionHead(256, 1024, 256)
        self.criterion = losses.NegativeCosineSimilarity()

    def loss(self, views: Views) -> Tensor:
        predictions = [self.predictor(self.online(view)) for view in views]
        first, second = (self.momentum(view).detach() for view in views)
        loss: Tensor = 0.5 * (self.criterion(predictions[0], second) + self.criterion(predictions[1], first))
        return loss


class _LightlySwAV(_Lightly):
    def __init__(self) -> None:
        super().__init__(modules.SwaVProjectionHead(_FEATURES, _FEATURES, 128))
        self.prototypes = modules.SwaVPrototypes(128, _PROTOTYPES)
        self.criterion = losses.SwaVLoss()

    def before_step(self) -> None:
        self.prototypes.normalize()

    def loss(self, views: Views) -> Tensor:
        outputs = [self.prototypes(nn.functional.normalize(self.online(view), dim=1)) for view in views]
        loss: Tensor = self.criterion(outputs[:2], outputs[2:])
        return loss


@dataclass(frozen=True)
class _Method:
    """A method on both sides, and how many local crops it sees."""

    theirs: type[_Lightly]
    options: dict[str, float] = field(default_factory=dict)
    local_crops: int = 0


_METHODS = {
    "simclr": _Method(_LightlySimCLR),
    "moco": _Method(_LightlyMoCo, {"queue": _QUEUE}),
    "byol": _Method(_LightlyBYOL, {"hidden_dim": 1024, "projection_dim": 256}),
    "barlow-twins": _Method(_LightlyBarlowTwins, {"hidden_dim": 1024, "projection_dim": 1024}),
    "swav": _Method(_LightlySwAV, {"prototypes": _PROTOTYPES, "local_crops": 6, "freeze": 0.0}, local_crops=6),
}


def _our_step(task: PretextTask, pixels: Tensor, augmentation: BatchAugmentation) -> Step:
    task.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    task.train()
    optimizer = build_optimizer("sgd", task.shared, lr=1e-3, weight_decay=1e-4, momentum=0.9)
    random, indices = generator(3, "step"), torch.arange(len(pixels))

    def step() -> None:
        task.look_at(indices)
        views = task.views(pixels, augmentation, random)
        optimizer.zero_grad(set_to_none=True)
        task.loss(views, random).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        task.after_step(views, 0.0)

    return step


def _their_step(method: _Lightly, views: Callable[[], Views]) -> Step:
    method.train()
    optimizer = build_optimizer("sgd", method, lr=1e-3, weight_decay=1e-4, momentum=0.9)

    def step() -> None:
        made = views()
        method.before_step()
        optimizer.zero_grad(set_to_none=True)
        method.loss(made).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _their_views(pictures: list[Image.Image], size: int, local_size: int, local_crops: int) -> Views:
    transform = (
        transforms.SwaVTransform(crop_sizes=(size, local_size), crop_counts=(2, local_crops))
        if local_crops
        else transforms.SimCLRTransform(input_size=size)
    )
    return [torch.stack(view) for view in zip(*map(transform, pictures), strict=True)]


def _our_views(pixels: Tensor, local_size: int, local_crops: int) -> Views:
    augmentation, random = BatchAugmentation(_STRENGTHS, _MEAN, _STD), generator(2, "views")
    wide = [augmentation(pixels, random) for _ in range(2)]
    return wide + [augmentation.cropped(0.05, 0.14)(pixels, random, local_size) for _ in range(local_crops)]


def _seconds(step: Step) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def _pairs(ours: Step, theirs: Step, turns: int) -> dict[str, object]:
    """Times of both, each warmed up once, in turn."""
    ours()
    theirs()
    pairs = [(_seconds(ours), _seconds(theirs)) for _ in range(turns)]
    ratios = [own / other for own, other in pairs]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "least_and_most": [round(min(ratios), 3), round(max(ratios), 3)],
        "ours_s": round(statistics.median(own for own, _ in pairs), 3),
        "lightly_s": round(statistics.median(other for _, other in pairs), 3),
    }


def _measure(name: str, arguments: argparse.Namespace) -> dict[str, object]:
    method, size = _METHODS[name], arguments.size
    local_size = round(size * 96 / 224)
    draws = generator(1, "pixels")
    pixels = torch.randint(0, 256, (arguments.batch, 3, size, size), dtype=torch.uint8, generator=draws)
    pictures = [Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())) for image in pixels]
    views = _our_views(pixels, local_size, method.local_crops)
    backbone = build_backbone("resnet18", norm="batch", in_channels=3)
    task = build_task(name, backbone, pretext_tasks[name].options_type(**method.options), "batch")
    initialise(task.shared, generator(1, "weights"))
    task.make_room(arguments.batch)
    task.reset_local(generator(1, "local"))
    task.begin_round()
    theirs = method.theirs()
    if arguments.channels_last_both:
        theirs.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ready, real = _Ready(views), BatchAugmentation(_STRENGTHS, _MEAN, _STD)
    turns = arguments.turns

    def their_views() -> Views:
        return _their_views(pictures, size, local_size, method.local_crops)

    def our_views() -> Views:
        return _our_views(pixels, local_size, method.local_crops)

    return {
        "step": _pairs(_our_step(task, pixels, ready), _their_step(theirs, lambda: views), turns),
        "views": _pairs(our_views, their_views, turns),
        "both": _pairs(_our_step(task, pixels, real), _their_step(theirs, their_views), turns),
    }


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--methods", default=",".join(_METHODS))
    parser.add_argument("--channels-last-both", action="store_true")
    arguments = parser.parse_args()
    found: dict[str, object] = {}
    for name in arguments.methods.split(","):
        if name not in set(pretext_tasks):
            print(f"{name} is not registered: left out", file=sys.stderr)
            continue
        found[name] = _measure(name, arguments)
    print(
        json.dumps(
            {
                "benchmark": "ssl_step",
                "model": f"resnet18 batch {arguments.size} px batch {arguments.batch} cpu",
                "threads": torch.get_num_threads(),
                "lightly_channels_last": arguments.channels_last_both,
                "ours_over_lightly": found,
            }
        )
    )


if __name__ == "__main__":
    main()
