"""The model that stays in memory between messages, so that a round costs no imports and no construction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aiseeme_models.backbones import build_backbone
from aiseeme_models.curriculum.stage_tasks import build_task
from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.pretext import PretextTask
from aiseeme_models.training.device import make_deterministic
from aiseeme_models.training.shared_state import (
    SharedLayout,
    layout_of,
    load_local,
    local_tensors,
)
from federation_configs.loading import config_sha256
from federation_configs.schema import FederationConfig


@dataclass(frozen=True)
class Workbench:
    """A pretext task built for one stage of one configuration, ready to be loaded with weights.

    Every message loads the shared weights and resets or restores the local state, so that sites which take turns on
    one workbench (a simulation) cannot see each other's.
    """

    key: tuple[str, int, str]
    task: PretextTask
    layout: SharedLayout
    augmentation: BatchAugmentation
    fresh_local: dict[str, Tensor]

    def start_local(self, kept: dict[str, Tensor] | None, images: int, generator: torch.Generator) -> None:
        """Restore the local state of a site with so many training images, or give it its first values."""
        self.task.make_room(images)
        load_local(self.task, self.layout, self.fresh_local)
        self.task.reset_local(generator)
        if kept is not None:
            load_local(self.task, self.layout, kept)


_resident: list[Workbench] = []


def workbench(config: FederationConfig, stage: int, device: str) -> Workbench:
    """The resident workbench of a stage; another stage's or configuration's is let go first."""
    key = (config_sha256(config), stage, device)
    if not _resident or _resident[0].key != key:
        _resident.clear()
        _resident.append(_build(config, stage, device, key))
    return _resident[0]


def _build(config: FederationConfig, stage: int, device: str, key: tuple[str, int, str]) -> Workbench:
    make_deterministic(device)
    preset = config.images.resolved_preset
    options = config.curriculum.stage[stage]
    backbone = build_backbone(config.model.backbone, norm=config.model.norm, in_channels=preset.channels)
    task = build_task(options.task, backbone, options.options, config.model.norm).to(device)
    layout = layout_of(task, config.model.norm)
    fresh = {name: tensor.detach().clone() for name, tensor in local_tensors(task, layout).items()}
    return Workbench(
        key,
        task,
        layout,
        BatchAugmentation.of(preset),
        fresh,
    )
