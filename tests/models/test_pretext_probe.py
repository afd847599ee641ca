"""Every pretext task teaches a backbone something: a linear probe on it beats the one on the same backbone untrained.

On phantom lesions or radiographs, whose classes differ in their structure and in nothing else. Short trainings of a
tiny backbone: what is shown is that a task teaches something that another question needs, not how much it can teach.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from aiseeme_models.backbones import Backbone, Norm, build_backbone, initialise
from aiseeme_models.curriculum.stage_tasks import build_task
from aiseeme_models.downstream.features import extract_features, recalibrate_batch_norm
from aiseeme_models.downstream.probe import linear_probe
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.images.phantom_lesions import LESION_PATTERNS, phantom_lesion
from aiseeme_models.images.phantom_radiographs import RADIOGRAPH_PATTERNS, phantom_radiograph
from aiseeme_models.images.presets import image_presets
from aiseeme_models.pretext import PretextTask, pretext_tasks
from aiseeme_models.seeding import generator
from aiseeme_models.training.loop import train_round
from aiseeme_models.training.options import TrainingOptions
from tests.models.conftest import TensorImages

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
IMAGES, TRAIN, TEST = 480, 400, 800


def lesions(rng: np.random.Generator, label: str, side: int) -> np.ndarray:
    """A lesion of its own patient and device, ``(3, side, side)`` in about [0, 1]."""
    tone = rng.uniform()
    skin = np.array([0.86, 0.68, 0.60]) * (1 - tone) + np.array([0.72, 0.52, 0.43]) * tone
    pigment = skin * np.array([0.68, 0.58, 0.52]) * rng.uniform(0.97, 1.03)
    lesion = phantom_lesion(rng, label, skin.astype(np.float32), pigment.astype(np.float32), side)
    return (lesion * rng.uniform(0.92, 1.06, 3)).transpose(2, 0, 1)


def radiographs(rng: np.random.Generator, label: str, side: int) -> np.ndarray:
    """A chest radiograph, ``(1, side, side)`` in [0, 1]."""
    return phantom_radiograph(rng, label, side)[None]


@dataclass(frozen=True)
class Domain:
    """Phantoms whose classes differ in structure alone."""

    preset: str
    classes: Sequence[str]
    draw: Callable[[np.random.Generator, str, int], np.ndarray]

    def phantoms(self, count: int, seed: int, side: int) -> tuple[TensorImages, list[str]]:
        """Of all classes alike, with a little noise."""
        rng = np.random.default_rng(seed)
        labels = [sorted(self.classes)[index % len(self.classes)] for index in range(count)]
        drawn = [self.draw(rng, label, side) for label in labels]
        noisy = [image + rng.normal(0, 0.015, image.shape) for image in drawn]
        pixels = np.stack([np.rint(255 * image.clip(0, 1)).astype(np.uint8) for image in noisy])
        return TensorImages(torch.from_numpy(pixels)), labels

    @property
    def views(self) -> BatchAugmentation:
        """Its preset's."""
        preset = image_presets[self.preset]
        return BatchAugmentation(preset.augmentation, preset.mean, preset.std)


LESIONS = Domain("dermoscopy", tuple(LESION_PATTERNS), lesions)
RADIOGRAPHS = Domain("chest-xray", tuple(RADIOGRAPH_PATTERNS), radiographs)


@dataclass(frozen=True)
class Setting:
    """A short training; None for norm: batch norm, but for the tasks that collapse with it."""

    domain: Domain = LESIONS
    norm: Norm | None = None
    side: int = 48
    epochs: int = 4
    batch: int = 16
    lr: float = 2e-3
    options: dict[str, Any] = field(default_factory=dict)


# Where that does not suit a task. What they gain was also seen with seeds that the settings were not chosen by.
SETTINGS: dict[str, Setting] = {
    # A lesion has no upright, and its outline tells where a patch lies; a radiograph has both an upright and a layout.
    # With batch norm the two that cut patches gained nothing in as many passes.
    "rotation": Setting(RADIOGRAPHS),
    "jigsaw": Setting(RADIOGRAPHS, norm="group-ws", epochs=16, batch=32),
    "relative-location": Setting(RADIOGRAPHS, norm="group-ws", side=96, epochs=12, batch=32, lr=1e-3),
    # Batch statistics tell a view's key from the queue's (section 3.3 of the paper); in a few hundred steps the
    # paper's momentum of 0.999 leaves the keys where they began.
    "moco": Setting(norm="group", epochs=12, batch=32, options={"queue": 256, "momentum": 0.9}),
    "moco-v1": Setting(options={"queue": 256}),
    "multi-task": Setting(options={"tasks": [{"task": "masked"}, {"task": "simclr"}]}),
    "simsiam": Setting(epochs=12, batch=32),  # four passes are too few: -0.02
    # With batch norm (byol: group norm, for it collapses with batch norm) these gained nothing in as many passes.
    "byol": Setting(norm="group-ws", epochs=12, batch=32),
    "swav": Setting(norm="group-ws", epochs=12, batch=32),
    "dino": Setting(norm="group-ws", epochs=12, batch=32),
    "deepcluster": Setting(epochs=24, batch=32),  # four passes gained 0.01, twelve 0.05
}


@pytest.fixture(scope="module")
def phantoms():
    """The images to train on, and those that a probe is fitted and tested on."""
    return cache(
        lambda domain, side: (
            domain.phantoms(IMAGES, 1, side)[0],
            (domain.phantoms(TRAIN, 2, side), domain.phantoms(TEST, 3, side)),
        )
    )


def probed(backbone: Backbone, labelled: Sequence[tuple[TensorImages, list[str]]], views: BatchAugmentation) -> float:
    """Balanced accuracy of a linear probe, with statistics of whole images in colour under batch norm."""
    (train, train_labels), (test, test_labels) = labelled
    backbone = copy.deepcopy(backbone)
    recalibrate_batch_norm(backbone, train, views.plain, device=CPU)
    x, x_test = (extract_features(backbone, images, views.plain, device=CPU) for images in (train, test))
    return linear_probe(x, train_labels, x_test, test_labels, seed=0).balanced_accuracy


def started(name: str, norm: Norm, options: dict[str, Any], channels: int, seed: int) -> PretextTask:
    """A task with weights that, in its backbone, are the same for every task."""
    backbone = build_backbone("resnet-tiny", norm=norm, in_channels=channels)
    task = build_task(name, backbone, pretext_tasks[name].options_type(**options), norm)
    initialise(task.shared, generator(seed, "weights"))
    task.make_room(IMAGES)
    task.reset_local(generator(seed, "local"))
    return task


@pytest.mark.parametrize("name", list(pretext_tasks))
def test_a_task_teaches_what_a_probe_can_use(name, phantoms):
    setting = SETTINGS.get(name, Setting())
    norm: Norm = setting.norm or ("group" if "batch" in pretext_tasks[name].collapses_with else "batch")
    unlabelled, labelled = phantoms(setting.domain, setting.side)
    views, channels = setting.domain.views, image_presets[setting.domain.preset].channels
    options = TrainingOptions(batch_size=setting.batch, local_epochs=setting.epochs, lr=setting.lr)
    gains = []
    for seed in (0, 1):
        task = started(name, norm, setting.options, channels, seed)
        untrained = probed(task.backbone, labelled, views)
        train_round(task, unlabelled, options, augmentation=views, seed=seed, stage_progress=(0.0, 1.0), device=CPU)
        gains.append(probed(task.backbone, labelled, views) - untrained)
    assert sum(gains) / len(gains) > 0.02, gains
