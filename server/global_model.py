"""The federation's model as the coordinator holds it: one flat vector, its layout, and what becomes of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save

from aiseeme_models import __version__
from aiseeme_models.atomic_files import write_atomically
from aiseeme_models.backbones import Backbone, build_backbone
from aiseeme_models.backbones.initialise import initialise
from aiseeme_models.errors import InputError
from aiseeme_models.pretext import build_task
from aiseeme_models.seeding import generator
from aiseeme_models.training.shared_state import SharedLayout, flatten, layout_of, load_flat
from federation_configs.loading import config_sha256
from federation_configs.schema import FederationConfig

WEIGHTS_FILE, MANIFEST_FILE = "backbone.safetensors", "model.json"
NEAR_CHANCE = 0.75


@dataclass(frozen=True)
class StageModel:
    """What a stage starts from.

    Attributes:
        layout: what of the model travels, in which order; backbone first.
        vector: ``(P,)`` float32.
        chance_loss: the loss of a model that knows nothing, where the task has such a level.
    """

    layout: SharedLayout
    vector: NDArray[np.float32]
    chance_loss: float | None


def start_of_stage(config: FederationConfig, stage: int, backbone: NDArray[np.float32] | None) -> StageModel:
    """The model at the start of a stage: the backbone so far (or a seeded fresh one) and a seeded fresh head.

    Args:
        config: the federation.
        stage: index into its curriculum.
        backbone: ``(B,)`` float32, the backbone's part of the vector so far; None at the very start.
    """
    options = config.curriculum.stage[stage]
    task = build_task(options.task, new_backbone(config), options.options, config.model.norm)
    initialise(task.shared["head"], generator(config.seed, "head", stage))
    layout = layout_of(task, config.model.norm)
    vector = flatten(task, layout)
    if backbone is not None:
        vector[: layout.backbone_size] = backbone
    return StageModel(layout, vector, task.chance_loss(options.batch_size))


def new_backbone(config: FederationConfig) -> Backbone:
    """The backbone before any training: the federation's starting point, and the baseline of its probe."""
    channels = config.images.resolved_preset.channels
    backbone = build_backbone(config.model.backbone, norm=config.model.norm, in_channels=channels)
    initialise(backbone, generator(config.seed, "backbone"))
    return backbone


def backbone_of(config: FederationConfig, stage: int, vector: NDArray[np.float32]) -> Backbone:
    """The backbone inside a stage's flat vector."""
    options = config.curriculum.stage[stage]
    task = build_task(options.task, new_backbone(config), options.options, config.model.norm)
    load_flat(task, layout_of(task, config.model.norm), vector)
    return task.backbone


def save_backbone(folder: Path, config: FederationConfig, backbone: Backbone, run: str) -> str:
    """Write ``backbone.safetensors`` (torchvision's names) and ``model.json``; gives the weights' SHA-256.

    The weights' bytes depend on the weights only, so that equal models have equal files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in backbone.state_dict().items()}
    payload = save(tensors)
    digest = hashlib.sha256(payload).hexdigest()
    write_atomically(folder / WEIGHTS_FILE, payload)
    manifest = {
        "format": 1,
        "run": run,
        "backbone": config.model.backbone,
        "norm": config.model.norm,
        "images": config.images.model_dump(mode="json", exclude_none=True),
        "config_sha256": config_sha256(config),
        "sha256": digest,
        "version": __version__,
    }
    write_atomically(folder / MANIFEST_FILE, json.dumps(manifest, indent=2).encode())
    return digest


def load_backbone(folder: Path, config: FederationConfig) -> Backbone:
    """Read a backbone that `save_backbone` wrote.

    Raises:
        InputError: missing or altered files, or weights of another architecture.
    """
    path = folder / WEIGHTS_FILE
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_bytes())
        payload = path.read_bytes()
    except (OSError, ValueError):
        raise InputError(
            f"{folder}: no readable model here; a finished run has {WEIGHTS_FILE} and {MANIFEST_FILE}"
        ) from None
    if hashlib.sha256(payload).hexdigest() != manifest.get("sha256"):
        raise InputError(f"{path}: its SHA-256 is not the one in {MANIFEST_FILE}; the file was altered")
    backbone = new_backbone(config)
    tensors = load_file(path)
    expected = {name: tuple(value.shape) for name, value in backbone.state_dict().items()}
    if {name: tuple(value.shape) for name, value in tensors.items()} != expected:
        raise InputError(
            f"{path}: its weights are not those of a {config.model.backbone} with {config.model.norm} norm"
        )
    backbone.load_state_dict({name: torch.as_tensor(value) for name, value in tensors.items()})
    return backbone
